"""Outputs wanted as their largest values."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.rpc.status import Code
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

Make = Callable[..., pb.ModelInferRequest]

SCORES = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 4)),),
    (TensorSpec("p", dtypes.FP32, ("batch", 4)), TensorSpec("text", dtypes.BYTES, ("batch",))),
    max_batch_size=8,
)


def scores(inputs: list[np.ndarray]) -> list[np.ndarray]:
    rows = len(inputs[0])
    return [np.tile(np.array([0.1, 0.6, 0.3, 0], "<f4"), (rows, 1)), np.array(["t"] * rows, object)]


@pytest.fixture(autouse=True)
def nothing_left_behind(models: "Models", server: "Server") -> Iterator[None]:
    models.add("scores", 1, SCORES, compute=scores, labels={"p": ("no", "yes")})
    yield
    server.until(lambda: models.held("scores") == 0)


def asking(request_for: Make, output: str, value: dict[str, object], rows: int = 1) -> pb.ModelInferRequest:
    message = request_for("scores", rows=rows)
    message.outputs.add(name=output).parameters["classification"].MergeFrom(pb.InferParameter(**value))  # type: ignore[arg-type]
    return message


@pytest.mark.parametrize(("k", "clipped"), [(1, 1), (3, 3), (100, 4)])
def test_the_largest_values_come_as_bytes_with_labels(
    server: "Server", request_for: Make, k: int, clipped: int
) -> None:
    result = server.infer(asking(request_for, "p", {"int64_param": k}, rows=2))
    assert result.body is not None, result
    reply = pb.ModelInferResponse.FromString(result.body)
    (output,) = reply.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("p", "BYTES", [2, clipped])
    texts = ["0.600000:1:yes", "0.300000:2", "0.100000:0:no", "0.000000:3"][:clipped]
    raw = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts)
    assert reply.raw_output_contents[0] == raw * 2


def test_other_outputs_come_as_they_are(server: "Server", request_for: Make) -> None:
    message = asking(request_for, "p", {"uint64_param": 1})
    message.outputs.add(name="text")
    result = server.infer(message)
    assert result.body is not None, result
    reply = pb.ModelInferResponse.FromString(result.body)
    assert [(output.name, list(output.shape)) for output in reply.outputs] == [("p", [1, 1]), ("text", [1])]


@pytest.mark.parametrize(
    "value",
    [{"int64_param": 0}, {"int64_param": -1}, {"bool_param": True}, {"string_param": "1"}, {"double_param": 1.0}],
    ids=str,
)
def test_a_number_of_classes_that_cannot_be_is_refused(
    server: "Server", request_for: Make, value: dict[str, object]
) -> None:
    result = server.infer(asking(request_for, "p", value))
    assert result.code == Code.INVALID_ARGUMENT
    assert "output 'p': parameter 'classification' is an integer from 1 up" in result.message


def test_text_has_no_largest_values(server: "Server", request_for: Make) -> None:
    result = server.infer(asking(request_for, "text", {"int64_param": 1}))
    assert (result.code, "'text'" in result.message, "BYTES" in result.message) == (Code.INVALID_ARGUMENT, True, True)
