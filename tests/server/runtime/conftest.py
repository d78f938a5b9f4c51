"""Tiny ONNX models, built here, each with one trait that bites."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def info(name: str, dtype: int, shape: Sequence[int | str | None]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def weight(name: str, values: object, dtype: str = "float32") -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def identity(dtype: int, shape: Sequence[int | str | None]) -> GraphProto:
    return helper.make_graph(
        [node("Identity", "x", "y")], "identity", [info("x", dtype, shape)], [info("y", dtype, shape)]
    )


def one_to_one(
    nodes: Sequence[NodeProto],
    *weights: TensorProto,
    shape: Sequence[int | str | None] = ("batch", 2),
    out: Sequence[int | str | None] = ("batch", 2),
    dtype: int = FLOAT,
) -> GraphProto:
    return helper.make_graph(nodes, "g", [info("x", dtype, shape)], [info("y", FLOAT, out)], weights)


def mlp() -> GraphProto:
    rng = np.random.default_rng(7)
    nodes = [
        node("Gemm", "x w1 b1", "h"),
        node("Relu", "h", "r"),
        node("Gemm", "r w2 b2", "z"),
        node("Sigmoid", "z", "y"),
    ]
    weights = [
        weight("w1", rng.normal(size=(10, 10))),
        weight("b1", rng.normal(size=10)),
        weight("w2", rng.normal(size=(10, 1))),
        weight("b2", rng.normal(size=1)),
    ]
    return one_to_one(nodes, *weights, shape=("batch", 10), out=("batch", 1))


def two_by_two() -> GraphProto:
    """Inputs a and b, outputs their sum and difference."""
    return helper.make_graph(
        [node("Add", "a b", "sum"), node("Sub", "a b", "difference")],
        "g",
        [info(name, FLOAT, ("batch", 2)) for name in ("a", "b")],
        [info(name, FLOAT, ("batch", 2)) for name in ("sum", "difference")],
    )


def branch(inner: Sequence[NodeProto] = ()) -> GraphProto:
    """An If whose branches hold `inner`."""
    then, other = (
        helper.make_graph([*inner, node("Identity", "x", name)], name, [], [info(name, FLOAT, ("batch", 2))])
        for name in ("then", "other")
    )
    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    return one_to_one(nodes, weight("zero", 0))


GRAPHS: dict[str, Callable[[], GraphProto]] = {
    "identity": lambda: identity(FLOAT, ("batch", 2)),
    "identity_fp64": lambda: identity(TensorProto.DOUBLE, ("batch", 2)),
    "identity_fp16": lambda: identity(TensorProto.FLOAT16, ("batch", 2)),
    "identity_bf16": lambda: identity(TensorProto.BFLOAT16, ("batch", "width")),
    "identity_bool": lambda: identity(TensorProto.BOOL, ("batch", 2)),
    "identity_uint8": lambda: identity(TensorProto.UINT8, ("batch", 2)),
    "identity_int64": lambda: identity(TensorProto.INT64, ("batch", "width")),
    "strings": lambda: identity(TensorProto.STRING, ("batch",)),
    "scalar": lambda: identity(FLOAT, ()),
    "cast_bf16": lambda: helper.make_graph(
        [node("Cast", "x", "y", to=TensorProto.BFLOAT16)],
        "g",
        [info("x", FLOAT, ("batch",))],
        [info("y", TensorProto.BFLOAT16, ("batch",))],
    ),
    "mlp": mlp,
    "two_by_two": two_by_two,
    "gather": lambda: one_to_one(
        [node("Gather", "table x", "y")],
        weight("table", [[0, 1], [2, 3], [4, 5]]),
        shape=("batch",),
        dtype=TensorProto.INT64,
    ),
    "mean": lambda: one_to_one(
        [node("ReduceMean", "x axes", "m", keepdims=1), node("Sub", "x m", "y")], weight("axes", [0], "int64")
    ),
    "one_row": lambda: one_to_one([node("ReduceMean", "x axes", "y", keepdims=1)], weight("axes", [0], "int64")),
    "variable": lambda: one_to_one([node("Relu", "x", "y")], shape=("batch", "time"), out=("batch", "time")),
    "reshape": lambda: one_to_one([node("Reshape", "x shape", "y")], weight("shape", [1, 2], "int64")),
    "huge": lambda: one_to_one(
        [node("ConstantOfShape", "x", "y")], shape=("rank",), out=(None,), dtype=TensorProto.INT64
    ),
    "if": branch,
    "if_in_if": lambda: branch([node("Neg", "x", "unused")]),
    "negative_time": lambda: one_to_one(
        [node("Slice", "x start end axes", "y")],
        weight("start", [100], "int64"),
        weight("end", [200], "int64"),
        weight("axes", [1], "int64"),
        shape=("batch", "time"),
        out=("batch", "rest"),
    ),
}


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the model of that name and returns its path."""

    def write(name: str) -> Path:
        made = helper.make_model(GRAPHS[name](), ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
        helper.set_model_props(made, {"forwardpass.recipe": name})
        onnx.checker.check_model(made)
        path = tmp_path / f"{name}.onnx"
        onnx.save(made, path)
        return path

    return write
