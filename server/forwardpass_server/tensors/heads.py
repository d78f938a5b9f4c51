"""The head of a request: all of it that is neither tensor data nor the caller's id for it.

A caller sends thousands of requests with the same head and other data, so a parsed head is kept and shared between
requests, and whatever follows from it alone (see `signature`) is worked out once and kept with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest
from forwardpass_server.tensors import scan

Parameters: TypeAlias = Mapping[str, bool | int | float | str]

REGION = "shared_memory_region"
"""The parameter of a tensor whose data are not in the message."""

INPUTS, OUTPUTS = 5, 6
"""Field numbers of ModelInferRequest whose messages are bounded before protobuf builds them."""


@dataclass(frozen=True, kw_only=True)
class WireLimits:
    """How much of each thing one request may hold; beyond it the request is refused before anything is built."""

    inputs: int = 64
    """Input tensors, requested outputs, and raw tensors: each."""
    dims: int = 16
    """Dimensions of one tensor."""
    name_characters: int = 128
    """Any name: of the model, its version, a tensor, a datatype, a parameter."""
    id_characters: int = 128
    parameters: int = 64
    """Parameters of the request, and of each tensor."""


@dataclass(frozen=True, slots=True)
class InputHead:
    """One input without its raw data."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters
    contents: pb.InferTensorContents | None
    """Typed data, when the caller sent it that way."""

    @property
    def elsewhere(self) -> bool:
        """Its data are in shared memory, and no raw tensor of the message is its."""
        return REGION in self.parameters


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output that the caller asks for."""

    name: str
    parameters: Parameters


@dataclass(slots=True)
class Head:
    """A parsed head. Shared by requests; nobody changes it, save for the two notes at its end."""

    model_name: str
    model_version: str
    parameters: Parameters
    inputs: tuple[InputHead, ...]
    outputs: tuple[RequestedOutput, ...]
    typed: bool
    """Some input carries typed contents: the head holds data, and belongs to one request."""
    has_parameters: bool
    """The request, an input or a requested output has parameters."""
    elsewhere: bool = False
    """Some input's data are in shared memory."""
    id_at: int = -1
    """A note of the decoder: where the id stood when it was cut out of these bytes, a boundary between fields."""
    plan: Any = field(default=None, compare=False)
    """A note of the signature that last checked this head: what it found."""
    hints: Any = field(default=None, compare=False)
    """A note of whoever read the parameters (see `rpc.parameters`)."""


def parse(encoded: bytes, limits: WireLimits) -> Head:
    """A head from the bytes of a ModelInferRequest that has no raw contents.

    Raises:
        InvalidRequest: not a ModelInferRequest, or beyond a limit.
    """
    for top in scan.fields(encoded, 0, len(encoded)):
        if top.number in (INPUTS, OUTPUTS) and top.wire_type == scan.LENGTH:
            _bound_tensor(encoded, top, limits)
    try:
        message = pb.ModelInferRequest.FromString(encoded)
    except DecodeError as error:
        raise InvalidRequest("malformed message: not a ModelInferRequest, or text in it is not UTF-8") from error
    _bound_name("model name", message.model_name, limits)
    _bound_name("model version", message.model_version, limits)
    parameters = _parameters(message.parameters, "the request", limits)
    inputs = tuple(_input(tensor, limits) for tensor in message.inputs)
    outputs = tuple(_output(output, limits) for output in message.outputs)
    return Head(
        message.model_name,
        message.model_version,
        parameters,
        inputs,
        outputs,
        typed=any(tensor.contents is not None for tensor in inputs),
        has_parameters=bool(parameters)
        or any(tensor.parameters for tensor in inputs)
        or any(output.parameters for output in outputs),
        elsewhere=any(tensor.elsewhere for tensor in inputs),
    )


def _bound_tensor(encoded: bytes, tensor: scan.Field, limits: WireLimits) -> None:
    """Refuse a tensor that would make protobuf build far more than its bytes: millions of dimensions or parameters."""
    most = limits.dims + limits.parameters + 8
    for count, part in enumerate(scan.fields(encoded, tensor.start, tensor.stop), 1):
        if count > most:
            raise InvalidRequest(f"a tensor with more than {most} fields")
        if tensor.number == INPUTS and part.number == 3 and part.stop - part.start > 10 * limits.dims:
            raise InvalidRequest(f"a tensor with more than {limits.dims} dimensions")


def _input(tensor: pb.ModelInferRequest.InferInputTensor, limits: WireLimits) -> InputHead:
    name = _bound_name("input name", tensor.name, limits)
    shape = tuple(tensor.shape)
    if len(shape) > limits.dims:
        raise InvalidRequest(f"input '{name}' has {len(shape)} dimensions; at most {limits.dims}")
    parameters = _parameters(tensor.parameters, f"input '{name}'", limits)
    if REGION in parameters and tensor.HasField("contents"):
        raise InvalidRequest(f"input '{name}' has data both in shared memory and in contents; use one of them")
    return InputHead(
        name,
        _bound_name("datatype", tensor.datatype, limits),
        shape,
        parameters,
        tensor.contents if tensor.HasField("contents") else None,
    )


def _output(output: pb.ModelInferRequest.InferRequestedOutputTensor, limits: WireLimits) -> RequestedOutput:
    name = _bound_name("output name", output.name, limits)
    return RequestedOutput(name, _parameters(output.parameters, f"output '{name}'", limits))


def _bound_name(what: str, name: str, limits: WireLimits) -> str:
    if len(name) > limits.name_characters:
        raise InvalidRequest(f"{what} of {len(name)} characters; at most {limits.name_characters}")
    return name


def _parameters(given: Mapping[str, pb.InferParameter], where: str, limits: WireLimits) -> Parameters:
    if len(given) > limits.parameters:
        raise InvalidRequest(f"{where} has {len(given)} parameters; at most {limits.parameters}")
    return dict(_values(given.items(), where, limits))


def _values(
    given: Iterable[tuple[str, pb.InferParameter]], where: str, limits: WireLimits
) -> Iterable[tuple[str, bool | int | float | str]]:
    for key, parameter in given:
        _bound_name(f"parameter name of {where}", key, limits)
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter '{key}' of {where} has no value")
        yield key, getattr(parameter, choice)
