"""Requests from arguments, results from replies. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from forwardpass import tensors
from forwardpass.dtypes import by_wire
from forwardpass.errors import InvalidRequest, MalformedReply, TooLarge
from forwardpass.results import (
    Health,
    InferResult,
    ModelMetadata,
    ModelStatus,
    Parameter,
    ServerMetadata,
    TensorMetadata,
)
from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

Trailers = Iterable[tuple[str, str | bytes]]


def infer_request(
    signature: ModelMetadata,
    inputs: Mapping[str, npt.ArrayLike],
    *,
    model: str,
    version: str,
    outputs: Sequence[str],
    parameters: Mapping[str, Parameter],
    request_id: str,
    max_message_bytes: int,
) -> pb.ModelInferRequest:
    """A ModelInferRequest with every tensor raw.

    Which inputs are needed, and their shapes, is for the server to judge; datatypes are converted here.

    Raises:
        InvalidRequest: an input the model does not have, or a value that its datatype cannot hold.
        TooLarge: the tensors alone are beyond `max_message_bytes`.
    """
    takes = {tensor.name: tensor for tensor in signature.inputs}
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    total = 0
    for name, value in inputs.items():
        if name not in takes:
            known = "; ".join(str(tensor) for tensor in signature.inputs)
            raise InvalidRequest(f"there is no input '{name}'; the model takes {known}")
        shape, raw = tensors.encode(value, by_wire(takes[name].datatype), name)
        request.inputs.add(name=name, datatype=takes[name].datatype, shape=shape)
        request.raw_input_contents.append(raw)
        total += len(raw)
    if total > max_message_bytes:
        raise TooLarge(
            f"the inputs hold {total} bytes, beyond the limit of {max_message_bytes}; send fewer rows a call, "
            "or raise max_message_bytes here and the server's limit"
        )
    for name in outputs:
        request.outputs.add(name=name)
    set_parameters(request, parameters)
    return request


def set_parameters(request: pb.ModelInferRequest, parameters: Mapping[str, Parameter]) -> None:
    """Write request parameters.

    Raises:
        InvalidRequest: a value that no parameter can have.
    """
    for key, parameter in parameters.items():
        _set_parameter(request.parameters[key], key, parameter)


def infer_result(reply: pb.ModelInferResponse, trailers: Trailers) -> InferResult:
    """Arrays by name; raw contents, and typed ones for servers that answer so.

    Raises:
        MalformedReply: the reply contradicts itself.
    """
    raws = reply.raw_output_contents
    if raws and len(raws) != len(reply.outputs):
        raise MalformedReply(f"{len(reply.outputs)} outputs came with {len(raws)} raw contents")
    arrays = {
        output.name: _from_raw(output, raws[index]) if raws else _from_contents(output)
        for index, output in enumerate(reply.outputs)
    }
    if len(arrays) != len(reply.outputs):
        raise MalformedReply(f"an output came twice: {', '.join(output.name for output in reply.outputs)}")
    return InferResult(
        arrays=arrays,
        model_name=reply.model_name,
        model_version=reply.model_version,
        id=reply.id,
        parameters={key: _parameter(value) for key, value in reply.parameters.items()},
        trailers=dict(trailers),
    )


def model_metadata(reply: pb.ModelMetadataResponse) -> ModelMetadata:
    """The signature and properties of a model."""
    return ModelMetadata(
        name=reply.name,
        versions=tuple(reply.versions),
        platform=reply.platform,
        inputs=tuple(TensorMetadata(item.name, item.datatype, tuple(item.shape)) for item in reply.inputs),
        outputs=tuple(TensorMetadata(item.name, item.datatype, tuple(item.shape)) for item in reply.outputs),
        properties=dict(reply.properties),
    )


def index(reply: pb.RepositoryIndexResponse) -> tuple[ModelStatus, ...]:
    """Versions of the repository, by model and then by number."""
    rows = [ModelStatus(item.name, item.version, item.state, item.reason) for item in reply.models]
    return tuple(sorted(rows, key=lambda row: (row.name, len(row.version), row.version)))


def server_metadata(reply: pb.ServerMetadataResponse) -> ServerMetadata:
    """Who answers."""
    return ServerMetadata(reply.name, reply.version, tuple(reply.extensions))


def health(reply: health_pb2.HealthCheckResponse) -> Health:
    """The word for the number; a number this client does not know is UNKNOWN."""
    names = health_pb2.HealthCheckResponse.ServingStatus
    return Health(names.Name(reply.status)) if reply.status in names.values() else Health.UNKNOWN


def _from_raw(output: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> npt.NDArray[Any]:
    return tensors.decode(raw, _dtype(output), tuple(output.shape), output.name)


def _from_contents(output: pb.ModelInferResponse.InferOutputTensor) -> npt.NDArray[Any]:
    dtype = _dtype(output)
    if dtype.contents is None:
        raise MalformedReply(f"output '{output.name}' of {dtype.wire} came without raw contents")
    values = list(getattr(output.contents, dtype.contents))
    try:
        array = np.empty(len(values), dtype=dtype.numpy)
        array[:] = values
        return array.reshape(tuple(output.shape))
    except (ValueError, OverflowError) as misfit:
        raise MalformedReply(
            f"output '{output.name}' of {dtype.wire} {list(output.shape)} came with {len(values)} values: {misfit}"
        ) from misfit


def _dtype(output: pb.ModelInferResponse.InferOutputTensor) -> Any:
    try:
        return by_wire(output.datatype)
    except InvalidRequest as unknown:
        raise MalformedReply(f"output '{output.name}': {unknown.reason}") from unknown


def _set_parameter(slot: pb.InferParameter, key: str, value: Parameter) -> None:
    if isinstance(value, bool):  # before int, which a bool also is
        slot.bool_param = value
    elif isinstance(value, str):
        slot.string_param = value
    elif isinstance(value, float):
        slot.double_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        slot.int64_param = value
    elif isinstance(value, int) and 0 <= value < 2**64:
        slot.uint64_param = value
    else:
        raise InvalidRequest(
            f"parameter '{key}' is {value!r:.60} ({type(value).__name__}); a parameter is a bool, a 64-bit int, "
            "a float or a str"
        )


def _parameter(slot: pb.InferParameter) -> Parameter:
    kind = slot.WhichOneof("parameter_choice")
    value: Parameter = getattr(slot, kind) if kind else ""
    return value
