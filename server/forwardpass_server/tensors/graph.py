"""What an ONNX file says its model takes and gives. Reads the graph; never weights outside it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from forwardpass_server.errors import LoadFailed
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.specs import Dim, TensorSpec


def read(path: Path, optional: Collection[str] = ()) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the model in a file, in the graph's order.

    Inputs that have an initializer are weights, not inputs: old exporters list every weight as an input. The graph
    cannot say which of them are meant as inputs with a default.

    Args:
        path: of the .onnx file.
        optional: names of those that are.

    Raises:
        LoadFailed: unreadable, not an ONNX model, or with a tensor that the protocol cannot carry.
    """
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except OSError as error:
        raise LoadFailed(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (DecodeError, ValueError) as error:
        raise LoadFailed(f"{path.name} is not an ONNX model: {error}") from error
    weights = {weight.name for weight in graph.initializer} | {
        weight.values.name for weight in graph.sparse_initializer
    }
    inputs = tuple(
        replace(_spec("input", value), optional=value.name in weights)
        for value in graph.input
        if value.name not in weights or value.name in optional
    )
    outputs = tuple(_spec("output", value) for value in graph.output)
    if not outputs:
        raise LoadFailed(f"{path.name} has no outputs: not an ONNX model, or cut short")
    return inputs, outputs


def batches(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether the declared shapes allow that rows of several requests run as one batch.

    Every input and output must have a dynamic first dimension, and no names may say that these are different things:
    the inputs agree on one name, and an output does not begin with some other dimension of the inputs. Outputs often
    begin with a name of their own, given by an exporter that did not follow the batch through the graph; that the rows
    really are independent is for a probe of the running model to show.
    """
    if not inputs or not all(spec.shape and not isinstance(spec.shape[0], int) for spec in (*inputs, *outputs)):
        return False
    names = {spec.shape[0] for spec in inputs} - {None}
    others = {dim for spec in inputs for dim in spec.shape[1:] if isinstance(dim, str)} - names
    return len(names) <= 1 and not any(spec.shape[0] in others for spec in outputs)


def _spec(role: str, value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        kind = (kind or "value without type").removesuffix("_type")
        raise LoadFailed(f"{role} '{value.name}' is a {kind}; only tensors are served")
    tensor = value.type.tensor_type
    dtype = dtypes.by_onnx(tensor.elem_type)
    if dtype is None:
        raise LoadFailed(
            f"{role} '{value.name}' has {_onnx_name(tensor.elem_type)} elements, which the protocol has no name for"
        )
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, (), ranked=False)
    return TensorSpec(value.name, dtype, tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # some exporters write -1 for dynamic
        return dim.dim_value
    return dim.dim_param or None


def _onnx_name(code: int) -> str:
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(code, f"unknown ({code})")
