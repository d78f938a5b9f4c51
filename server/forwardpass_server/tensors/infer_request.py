"""A decoded inference request: its head, and where in the message its tensors lie."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.tensors.heads import Head, Parameters, RequestedOutput

Span: TypeAlias = tuple[int, int]
"""Where a raw tensor begins and ends in its message."""


class InputTensor(NamedTuple):
    """One input: what it is said to be, and its data, raw or typed (neither: it has no elements)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters
    raw: memoryview | None
    contents: pb.InferTensorContents | None


class Source(Protocol):
    """Where the data of an input are when they are not in the message; a `shared_memory.Part`."""

    nbytes: int

    def read(self) -> memoryview:
        """A copy of them. Raises InvalidRequest."""


NOWHERE_ELSE: Mapping[int, Source] = {}


class InferRequest:
    """A decoded ModelInferRequest. Its tensors are checked by nobody yet: see `signature`."""

    __slots__ = ("body", "elsewhere", "head", "id", "spans")

    def __init__(self, head: Head, request_id: str, body: bytes, spans: tuple[Span, ...]) -> None:
        self.head = head
        self.id = request_id
        self.body = body
        self.spans = spans
        """Where in `body` the raw tensor of each input lies; empty when the inputs came typed."""
        self.elsewhere = NOWHERE_ELSE
        """The source of each input whose data are in shared memory, by its place in the request; set by `rpc`."""

    @property
    def model_name(self) -> str:
        return self.head.model_name

    @property
    def model_version(self) -> str:
        return self.head.model_version

    @property
    def parameters(self) -> Parameters:
        return self.head.parameters

    @property
    def outputs(self) -> tuple[RequestedOutput, ...]:
        return self.head.outputs

    @property
    def inputs(self) -> tuple[InputTensor, ...]:
        return tuple(self.input(index) for index in range(len(self.head.inputs)))

    def input(self, index: int) -> InputTensor:
        """The input at `index` of the request, its raw data a view into the message."""
        head = self.head.inputs[index]
        raw = None
        if index in self.elsewhere:
            raw = self.elsewhere[index].read()
        elif self.spans:
            start, stop = self.spans[index]
            raw = memoryview(self.body)[start:stop]
        return InputTensor(head.name, head.datatype, head.shape, head.parameters, raw, head.contents)
