"""How a caller wants its outputs: as tensors in the message, as the largest values by name, or in shared memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest, NotImplementedHere
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.rpc.parameters import CLASSIFICATION, Hints
from forwardpass_server.tensors import strings
from forwardpass_server.tensors.classification import top_k
from forwardpass_server.tensors.dtypes import BYTES, Dtype
from forwardpass_server.tensors.heads import REGION
from forwardpass_server.tensors.shared_memory import Part, SharedMemory
from forwardpass_server.tensors.wire import Encoder

Outputs = Sequence[tuple[str, Dtype, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Forms:
    """The outputs that are not wanted as they are, by name."""

    classes: Mapping[str, int] = field(default_factory=dict)
    """How many of the largest values are wanted instead."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Where in shared memory they are to be written."""


AS_THEY_ARE = Forms()


def forms(hints: Hints, version: LoadedVersion, wanted: Sequence[int], memory: SharedMemory | None) -> Forms:
    """The forms of a request that fits its model.

    Args:
        hints: of the request.
        version: that will answer.
        wanted: indices of the outputs asked for.
        memory: the regions; None where there is no shared memory.

    Raises:
        InvalidRequest: an output that cannot be had so.
        NotImplementedHere: shared memory is off.
        TooLarge: see `SharedMemory.part`.
    """
    if not hints.classes and not hints.targets:
        return AS_THEY_ARE
    for spec in (version.signature.outputs[index] for index in wanted):
        if spec.name in hints.classes and spec.dtype is BYTES:
            raise InvalidRequest(f"output '{spec.name}': '{CLASSIFICATION}' is of numbers, and this is BYTES")
    parts = {
        name: regions(memory).part(place.region, place.offset, place.nbytes, f"output '{name}'")
        for name, place in hints.targets.items()
    }
    return Forms(hints.classes, parts)


def regions(memory: SharedMemory | None) -> SharedMemory:
    """The regions. Raises NotImplementedHere where there is no shared memory."""
    if memory is None:
        raise NotImplementedHere("shared memory is off: start the server with --enable-shared-memory")
    return memory


def encode(encoder: Encoder, version: LoadedVersion, request_id: str, outputs: Outputs, wanted: Forms) -> bytes:
    """The bytes of a ModelInferResponse with the outputs in their forms; those for shared memory are written there.

    Raises:
        InvalidRequest: an output is larger than its part of shared memory.
        RunFailed, TooLarge: see `Encoder.encode`.
    """
    if wanted.classes:
        outputs = [_classified(each, wanted.classes, version) for each in outputs]
    if wanted.parts:
        return _encode_apart(version, request_id, outputs, wanted.parts)
    return encoder.encode(
        model_name=version.model, model_version=str(version.number), request_id=request_id, outputs=outputs
    )


def _classified(
    output: tuple[str, Dtype, np.ndarray], classes: Mapping[str, int], version: LoadedVersion
) -> tuple[str, Dtype, np.ndarray]:
    name, dtype, array = output
    if name not in classes:
        return output
    batched = version.signature.max_batch_size > 0
    labels = version.labels.get(name, ())
    return name, BYTES, top_k(array, dtype, classes[name], batched=batched, labels=labels)


def _encode_apart(version: LoadedVersion, request_id: str, outputs: Outputs, parts: Mapping[str, Part]) -> bytes:
    """A response some of whose outputs are in shared memory: those have an empty raw tensor, since clients count."""
    message = pb.ModelInferResponse(model_name=version.model, model_version=str(version.number), id=request_id)
    for name, dtype, array in outputs:
        output = message.outputs.add(name=name, datatype=dtype.wire, shape=array.shape)
        data = strings.encode(array) if dtype is BYTES else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        view = memoryview(data)  # type: ignore[arg-type]  # numpy arrays are buffers
        part = parts.get(name)
        if part is None:
            message.raw_output_contents.append(view.tobytes())
            continue
        part.write(view, name)
        output.parameters[REGION].string_param = part.region.name
        output.parameters["shared_memory_byte_size"].int64_param = len(view)
        if part.offset:
            output.parameters["shared_memory_offset"].int64_param = part.offset
        message.raw_output_contents.append(b"")
    return message.SerializeToString()
