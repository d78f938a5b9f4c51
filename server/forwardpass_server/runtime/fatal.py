"""What ONNX Runtime does not survive: values that end the whole process where others raise an error.

Found by giving every operator of ONNX's backend tests empty tensors and the extremes of its integers, each in a process
of its own (ONNX Runtime 1.31.1, CPU). Two kinds, each with its guard:

* Some kernels end the process on a tensor without elements: LSTM and GRU abort, ConvTranspose reads where nothing is,
  QuantizeLinear in blocks and STFT divide by zero, Unique along an axis throws where nobody catches. The session
  refuses empty inputs of models that have one.
* The smallest integer divided by -1 traps, in Div and in Mod. A guard is put before each that may meet it: the divisor
  is 1 there, which gives what two's complement gives (the quotient wraps to the smallest integer, the rest is 0).

Not covered: an empty tensor that arises inside the graph, an STFT whose frame length is an input, and operators of
other domains. With `--processes` a process that ended so is started again.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

_EMPTY_ENDS = {
    "LSTM": None,
    "GRU": None,
    "ConvTranspose": None,
    "STFT": None,
    "QuantizeLinear": "block_size",
    "Unique": "axis",
}
"""Operators that do not survive an empty tensor; with the attribute without which they do."""

_SMALLEST: Mapping[int, int] = {
    TensorProto.INT32: np.iinfo(np.int32).min,
    TensorProto.INT64: np.iinfo(np.int64).min,
}
"""Element types whose division traps. Smaller ones are widened first."""

_WHERE_SINCE = 9
_LARGE_BYTES = 4096

Types = Mapping[str, int]


class Survivable(NamedTuple):
    """What to load, and what not to give it."""

    file: Path
    """In place of the model's own."""
    refuses_empty: str | None
    """The operator for which no input may be empty; None when all may."""


@contextlib.contextmanager
def survivable(path: Path) -> Iterator[Survivable]:
    """A model in a form that cannot end the process. What cannot be read is left as it is: the loader says why.

    Args:
        path: of the model; where divisions need a guard, another file lies beside it while the context lasts, since
            external data is found relative to the file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError):
        yield Survivable(path, None)
        return
    refuses_empty = ends_on_empty(model)
    if not guard_divisions(model):
        yield Survivable(path, refuses_empty)
        return
    with tempfile.NamedTemporaryFile(prefix=path.stem, suffix=".onnx", dir=path.parent) as file:
        file.write(model.SerializeToString())
        file.flush()
        yield Survivable(Path(file.name), refuses_empty)


def ends_on_empty(model: ModelProto) -> str | None:
    """The first operator of a model that does not survive an empty tensor; None when all do."""
    for node in itertools.chain(_nodes(model.graph), *(_all(function.node) for function in model.functions)):
        if node.op_type in _EMPTY_ENDS and _standard(node):
            needs = _EMPTY_ENDS[node.op_type]
            if needs is None or any(attribute.name == needs for attribute in node.attribute):
                return node.op_type
    return None


def guard_divisions(model: ModelProto) -> int:
    """Guard every Div and Mod of 32- or 64-bit integers whose divisor may be -1, in place. Returns how many there were.

    None in functions of the model, and none below opset 9, which has no Where.
    """
    version = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if version < _WHERE_SINCE or not any(_divides(node) for node in _nodes(model.graph)):
        return 0
    return _guard(model.graph, _inferred(model).graph, {}, frozenset())


def _guard(graph: GraphProto, inferred: GraphProto, outer: Types, harmless: frozenset[str]) -> int:
    """Guard the divisions of one graph and of those inside it.

    Args:
        graph: to change.
        inferred: the same graph with the types of its values.
        outer: element types of the values that it sees from around it.
        harmless: constants among those without -1.
    """
    types = {**outer, **_types(inferred)}
    harmless |= {tensor.name for tensor in graph.initializer if _without_minus_one(tensor)}
    harmless -= {value.name for value in graph.input if value.name not in {each.name for each in graph.initializer}}
    nodes: list[NodeProto] = []
    count = 0
    for node, twin in zip(graph.node, inferred.node, strict=True):
        if node.op_type == "Constant" and any(
            each.name == "value" and _without_minus_one(each.t) for each in node.attribute
        ):
            harmless |= set(node.output)
        for inner, inner_twin in zip(_subgraphs(node), _subgraphs(twin), strict=True):
            count += _guard(inner, inner_twin, types, harmless)
        smallest = _SMALLEST.get(types.get(node.input[0], 0)) if _divides(node) else None
        if smallest is not None and node.input[1] not in harmless:
            nodes += _before(node, smallest, types[node.input[0]])
            count += 1
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return count


def _before(node: NodeProto, smallest: int, element: int) -> list[NodeProto]:
    """The nodes that make a divisor safe; points `node` to it."""
    dividend, divisor = node.input
    prefix = f"{node.output[0]}/guard/"
    constants = [
        helper.make_node(
            "Constant",
            [],
            [f"{prefix}{name}"],
            value=helper.make_tensor(name, element, (), [value]),
        )
        for name, value in (("smallest", smallest), ("minus_one", -1), ("one", 1))
    ]
    node.input[1] = f"{prefix}divisor"
    return [
        *constants,
        helper.make_node("Equal", [dividend, f"{prefix}smallest"], [f"{prefix}is_smallest"]),
        helper.make_node("Equal", [divisor, f"{prefix}minus_one"], [f"{prefix}is_minus_one"]),
        helper.make_node("And", [f"{prefix}is_smallest", f"{prefix}is_minus_one"], [f"{prefix}traps"]),
        helper.make_node("Where", [f"{prefix}traps", f"{prefix}one", divisor], [f"{prefix}divisor"]),
    ]


def _inferred(model: ModelProto) -> ModelProto:
    """The model with the types of all its values, and without its large weights: types do not depend on them."""
    graph = model.graph
    light = [
        tensor
        if len(tensor.raw_data) <= _LARGE_BYTES
        else TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        for tensor in graph.initializer
    ]
    skeleton = helper.make_graph(
        graph.node, graph.name, graph.input, graph.output, initializer=light, value_info=graph.value_info
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(
            skeleton, ir_version=model.ir_version, opset_imports=model.opset_import, functions=model.functions
        )
    )


def _types(graph: GraphProto) -> dict[str, int]:
    """Element types of the values of a graph."""
    values = (*graph.input, *graph.value_info, *graph.output)
    return {tensor.name: tensor.data_type for tensor in graph.initializer} | {
        value.name: value.type.tensor_type.elem_type for value in values
    }


def _without_minus_one(tensor: TensorProto) -> bool:
    """Whether a constant certainly holds no -1. Weights outside the file are not read."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type not in _SMALLEST:
        return False
    return not (numpy_helper.to_array(tensor) == -1).any()


def _divides(node: NodeProto) -> bool:
    return node.op_type in ("Div", "Mod") and _standard(node)


def _standard(node: NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    return _all(graph.node)


def _all(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for inner in _subgraphs(node):
            yield from _nodes(inner)


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs in a node's attributes, in order."""
    found: list[GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found
