"""Requests and outcomes, through stock grpcio: bytes out, whatever came back in.

Nothing here checks or mends a request, so that a test can send anything at all.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
import numpy as np

from forwardpass_proto import grpc_service_pb2 as pb

INFERENCE = "/inference.GRPCInferenceService"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"

NUMPY: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("V2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes of fixed size, written down here a second time on purpose: the server's table is what is tested."""

CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

DATATYPES = (*NUMPY, "BYTES")

# Wide open on the client's side: the limits under test are the server's.
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 1 << 20),
    ("grpc.absolute_max_metadata_size", 1 << 20),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    # NOTE: "min reconnect backoff" is also how long an attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 200),
)

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Outcome:
    """How one unary call ended."""

    method: str
    code: grpc.StatusCode
    details: str
    body: bytes | None
    initial: Metadata
    trailing: Metadata
    seconds: float

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK

    @cached_property
    def reply(self) -> pb.ModelInferResponse:
        """The parsed answer of a ModelInfer that succeeded."""
        assert self.ok, self
        assert self.body is not None
        return pb.ModelInferResponse.FromString(self.body)

    @property
    def outputs(self) -> dict[str, "Tensor"]:
        """Outputs by name. Raises AssertionError unless each has its raw bytes, and nothing but raw bytes."""
        reply = self.reply
        assert len(reply.outputs) == len(reply.raw_output_contents), reply
        assert not any(each.HasField("contents") for each in reply.outputs), reply
        return {
            each.name: Tensor(each.name, each.datatype, tuple(each.shape), raw)
            for each, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }

    def __str__(self) -> str:
        return self.code.name if self.ok else f"{self.code.name}: {self.details}"


@dataclass(frozen=True)
class Tensor:
    """A tensor as it travels: `raw` is trusted by nobody, least of all here."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.raw, NUMPY[self.datatype]).reshape(self.shape)

    @property
    def strings(self) -> list[bytes]:
        """The elements of a BYTES tensor, flat."""
        found, at = [], 0
        while at < len(self.raw):
            length = int.from_bytes(self.raw[at : at + 4], "little")
            assert at + 4 + length <= len(self.raw), "the server's own BYTES are malformed"
            found.append(self.raw[at + 4 : at + 4 + length])
            at += 4 + length
        return found


def tensor(name: str, array: np.ndarray, datatype: str | None = None) -> Tensor:
    """A well-formed tensor of `array`."""
    datatype = datatype or next(wire for wire, dtype in NUMPY.items() if dtype == array.dtype)
    return Tensor(name, datatype, array.shape, array.tobytes())


def strings(name: str, elements: Sequence[bytes], shape: tuple[int, ...] | None = None) -> Tensor:
    """A well-formed BYTES tensor; of shape [1, n] unless told."""
    raw = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
    return Tensor(name, "BYTES", shape if shape is not None else (1, len(elements)), raw)


def declared(each: Tensor) -> pb.ModelInferRequest.InferInputTensor:
    """The head of a tensor, without its bytes."""
    return pb.ModelInferRequest.InferInputTensor(name=each.name, datatype=each.datatype, shape=each.shape)


def ask(
    model: str, *tensors: Tensor, outputs: Sequence[str] = (), version: str = "", request_id: str = ""
) -> pb.ModelInferRequest:
    """A request with raw contents."""
    return pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        id=request_id,
        inputs=[declared(each) for each in tensors],
        raw_input_contents=[each.raw for each in tensors],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    )


def zeros(datatype: str, shape: tuple[int, ...], name: str = "x") -> Tensor:
    """A well-formed tensor of zeros, or of empty strings."""
    elements = int(np.prod(shape))
    return Tensor(name, datatype, shape, bytes(elements * (4 if datatype == "BYTES" else NUMPY[datatype].itemsize)))


def trips(*turns: int) -> Tensor:
    """The input of the `slow…` models, one row for each number of turns."""
    return tensor("trips", np.array(turns, np.int64).reshape(-1, 1))


class Caller:
    """One channel, and a memory of what came back over it.

    Args:
        target: "127.0.0.1:8001".
        remember: called with every outcome; the table at the end of the run is made from it.
        options: of the channel, over CHANNEL_OPTIONS.
    """

    def __init__(
        self,
        target: str,
        remember: Callable[[Outcome], None] | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.channel = grpc.insecure_channel(target, options=[*CHANNEL_OPTIONS, *options])
        self._remember = remember

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def start(
        self,
        method: str,
        body: bytes,
        *,
        timeout_s: float | None = 20.0,
        metadata: Metadata = (),
        compression: grpc.Compression | None = None,
        wait_for_ready: bool = False,
    ) -> "Pending":
        """Begin a unary call; `method` is an rpc of the inference service, or a full path."""
        path = method if method.startswith("/") else f"{INFERENCE}/{method}"
        begun = time.monotonic()
        call = self.channel.unary_unary(path).future(
            body, timeout=timeout_s, metadata=metadata, compression=compression, wait_for_ready=wait_for_ready
        )
        return Pending(path, call, begun, self._remember)

    def call(self, method: str, body: bytes = b"", **how: Any) -> Outcome:
        """Make a unary call and wait for its end, whatever that is. Keyword arguments as `start`."""
        return self.start(method, body, **how).outcome()

    def begin(self, request: pb.ModelInferRequest, **how: Any) -> "Pending":
        """Begin a ModelInfer. Keyword arguments as `start`."""
        return self.start("ModelInfer", request.SerializeToString(), **how)

    def infer(self, request: pb.ModelInferRequest, **how: Any) -> Outcome:
        """Make a ModelInfer. Keyword arguments as `start`."""
        return self.begin(request, **how).outcome()


class Pending:
    """A unary call under way."""

    def __init__(self, method: str, call: grpc.Call, begun: float, remember: Callable[[Outcome], None] | None) -> None:
        self._method = method
        self._call = call
        self._begun = begun
        self._remember = remember
        self._ended = 0.0
        call.add_done_callback(self._stop_watch)

    def _stop_watch(self, _: object) -> None:
        self._ended = time.monotonic()

    def cancel(self) -> None:
        self._call.cancel()

    def spin(self, seconds: float) -> None:
        """Hold until so long after its beginning, to a few microseconds: no sleep is as exact."""
        until = self._begun + seconds
        while time.monotonic() < until:
            pass

    @property
    def done(self) -> bool:
        return bool(self._call.done())

    def outcome(self) -> Outcome:
        """Wait for the end."""
        code = self._call.code()
        outcome = Outcome(
            method=self._method,
            code=code,
            details=self._call.details() or "",
            body=self._call.result() if code is grpc.StatusCode.OK else None,
            initial=tuple(self._call.initial_metadata() or ()),
            trailing=tuple(self._call.trailing_metadata() or ()),
            seconds=(self._ended or time.monotonic()) - self._begun,
        )
        if self._remember:
            self._remember(outcome)
        return outcome


def refused(outcome: Outcome, code: grpc.StatusCode, *words: str | int) -> None:
    """Assert that a call ended in `code`, and that its details have each of `words`, whole.

    A number or a name counts only by itself: 32 is not found in 320.
    """
    assert outcome.code is code, f"expected {code.name}, got {outcome}"
    for word in words:
        found = re.search(rf"(?<![\w.-]){re.escape(str(word))}(?![\w-])", outcome.details)
        assert found, f"{str(word)!r} is missing from {outcome}"


def invalid(outcome: Outcome, *words: str | int) -> None:
    """Assert INVALID_ARGUMENT, with each of `words` in its details."""
    refused(outcome, grpc.StatusCode.INVALID_ARGUMENT, *words)


def ok(outcome: Outcome) -> dict[str, Tensor]:
    """Assert OK. Returns the outputs by name."""
    assert outcome.ok, f"expected OK, got {outcome}"
    return outcome.outputs
