"""How often our own code copies the tensors of a request on their way in and out: counted, as server/README.md says."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.runtime import providers
from forwardpass_server.runtime.options import SessionOptions
from forwardpass_server.runtime.session import Session
from forwardpass_server.scheduling import batch
from forwardpass_server.scheduling.request import Request
from forwardpass_server.tensors.signature import Signature
from forwardpass_server.tensors.wire import Decoder, Replies

T = TypeVar("T")

IMAGE = (3, 224, 224)
NBYTES = 3 * 224 * 224 * 4


class Nobody:
    """Waits for an answer that the test itself encodes."""

    cancelled = False

    def on_cancel(self, _callback: object) -> None: ...
    def succeed(self, _outputs: object, _request: object) -> None: ...
    def fail(self, error: Exception) -> None:
        raise error


class Server:
    """The rooms that touch an image, one after the other, for a model that answers with what it is asked."""

    def __init__(self, path: Path) -> None:
        shape: list[str | int] = ["batch", *IMAGE]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", [x], [y])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        self.signature = Signature.from_onnx(path, max_batch_size=8)
        self.session = Session(path, self.signature, providers.resolve("cpu"), SessionOptions(intra_op_threads=1))
        self.decoder = Decoder()
        self.replies = Replies("echo", "1", [(spec.name, spec.dtype) for spec in self.signature.outputs])

    def answers(self, bodies: list[bytes]) -> tuple[list[bytes], float]:
        """The answers to requests that ride in one batch, and how many copies of an image each step made together."""
        steps = Steps()
        requests = steps.take(lambda: [self._request(body) for body in bodies])
        inputs = steps.take(lambda: batch.stack(requests))
        outputs = steps.take(lambda: self.session.run(inputs, (0,)))
        parts = steps.take(lambda: batch.split(outputs, (0,), requests, len(bodies)))
        encoded = steps.take(lambda: [self.replies.encode("", (0,), part) for part in parts])
        return encoded, steps.nbytes / NBYTES / len(bodies)

    def _request(self, body: bytes) -> Request:
        checked = self.signature.check(self.decoder.decode(body))
        return Request(
            checked.inputs,
            rows=checked.rows,
            nbytes=checked.nbytes,
            outputs=checked.outputs,
            responder=Nobody(),
            timeline=Timeline(0),
        )


class Steps:
    """The most memory that Python and numpy asked for within each step, added. ONNX Runtime's own is not seen."""

    def __init__(self) -> None:
        self.nbytes = 0

    def take(self, step: Callable[[], T]) -> T:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        made = step()
        self.nbytes += tracemalloc.get_traced_memory()[1] - before
        return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("echo") / "model.onnx")
    yield server
    server.session.close()


def request(offset: int) -> bytes:
    """A request whose floats begin `offset` bytes, modulo 4, past an aligned address."""
    for extra in range(8):
        message = pb.ModelInferRequest(model_name="e" * (1 + extra))
        message.inputs.add(name="x", datatype="FP32", shape=[1, *IMAGE])
        message.raw_input_contents.append(np.arange(NBYTES // 4, dtype="<f4").tobytes())
        body = message.SerializeToString()
        address = np.frombuffer(body, np.uint8).ctypes.data + len(body) - NBYTES
        if address % 4 == offset:
            return body
    raise AssertionError("no length of name gives that offset")


def copies(server: Server, bodies: list[bytes]) -> float:
    """Copies of one image, on the way in and out together."""
    server.answers(bodies)  # heads and plans are remembered from the first time on
    tracemalloc.start()
    try:
        encoded, copied = server.answers(bodies)
    finally:
        tracemalloc.stop()
    for body, answer in zip(bodies, encoded, strict=True):
        assert answer.endswith(body[-NBYTES:])
    return copied


def test_an_image_alone_is_copied_once_into_its_answer(server: Server) -> None:
    assert copies(server, [request(0)]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_floats_at_an_odd_address_are_copied_once_more_for_kernels_that_would_crash(
    server: Server, offset: int
) -> None:
    assert copies(server, [request(offset)]) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("offset", [0, 1])
def test_images_in_a_batch_are_copied_once_to_be_stacked_and_once_into_their_answers(
    server: Server, offset: int
) -> None:
    # NOTE: stacking aligns them, so it takes the place of the copy that an odd address costs.
    assert copies(server, [request(offset)] * 4) == pytest.approx(2, abs=0.05)
