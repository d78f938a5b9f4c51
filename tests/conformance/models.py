"""The tiny ONNX models that the conformance tests ask: each exists to make one kind of request possible.

Shapes: letters name dynamic dimensions, b is the batch. Every model but `fixed` and `scalar` shares b between all of
its inputs and outputs, and may therefore be batched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.manifest import GoldenSet
from forwardpass_server.runtime.fake_generator import graph

Shape = Sequence[int | str]

OPSET = [helper.make_opsetid("", 17)]
IR_VERSION = 8

IDENTITIES: Mapping[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""Datatype on the wire to element type in the graph, of the models `identity_fp32` and so on."""


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "conformance",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, element: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def identity(element: int, shape: Shape = ("b", "n")) -> onnx.ModelProto:
    """x[b, n] → y[b, n], equal to x to the bit."""
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [_value("x", element, shape)],
        [_value("y", element, shape)],
    )


def mlp() -> onnx.ModelProto:
    """x FP32 [b, 10] → y FP32 [b, 1]: 10 → 10 ReLU → 1 sigmoid."""
    random = np.random.default_rng(7)
    return _model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
            helper.make_node("Sigmoid", ["z"], ["y"]),
        ],
        [_value("x", TensorProto.FLOAT, ("b", 10))],
        [_value("y", TensorProto.FLOAT, ("b", 1))],
        {
            "w1": random.normal(size=(10, 10)).astype(np.float32),
            "b1": random.normal(size=10).astype(np.float32),
            "w2": random.normal(size=(10, 1)).astype(np.float32),
            "b2": random.normal(size=1).astype(np.float32),
        },
    )


def gather() -> onnx.ModelProto:
    """i INT64 [b] → y FP32 [b]: y = 10 i for i in 0..7. An index outside −8..7 is poison: it fails the whole run."""
    return _model(
        [helper.make_node("Gather", ["table", "i"], ["y"], axis=0)],
        [_value("i", TensorProto.INT64, ("b",))],
        [_value("y", TensorProto.FLOAT, ("b",))],
        {"table": np.arange(0, 80, 10, dtype=np.float32)},
    )


_TRIPS = _value("trips", TensorProto.INT64, ("b", 1))
_LOOP_CONSTANTS = {"no_trips": np.zeros((1, 1), np.int64), "start": np.zeros(1, np.int64)}


def _loop() -> list[onnx.NodeProto]:
    """trips INT64 [b, 1] → zero INT64 [1], which is 0, after a Loop of max(trips) turns over the whole batch.

    One turn costs about two microseconds on one core, so the caller chooses how long its whole batch works.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["count", "one"], ["counted"]),
        ],
        "turn",
        [
            _value("turn", TensorProto.INT64, ()),
            _value("go", TensorProto.BOOL, ()),
            _value("count", TensorProto.INT64, (1,)),
        ],
        [_value("go_on", TensorProto.BOOL, ()), _value("counted", TensorProto.INT64, (1,))],
        [numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    return [
        # Beside the rows a zero: it keeps the maximum of no rows defined, and negative trips harmless.
        helper.make_node("Concat", ["trips", "no_trips"], ["candidates"], axis=0),
        helper.make_node("ReduceMax", ["candidates"], ["turns"], keepdims=0),
        helper.make_node("Loop", ["turns", "", "start"], ["turned"], body=body),
        helper.make_node("Sub", ["turned", "turned"], ["zero"]),
    ]


def slow() -> onnx.ModelProto:
    """trips INT64 [b, 1] → y INT64 [b, 1]: y = trips, after max(trips) turns of a loop."""
    return _model(
        [*_loop(), helper.make_node("Add", ["trips", "zero"], ["y"])],
        [_TRIPS],
        [_value("y", TensorProto.INT64, ("b", 1))],
        _LOOP_CONSTANTS,
    )


def slow_gather() -> onnx.ModelProto:
    """trips INT64 [b, 1], i INT64 [b] → y FP32 [b]: as `gather`, after max(trips) turns."""
    return _model(
        [
            *_loop(),
            helper.make_node("Add", ["i", "zero"], ["index"]),
            helper.make_node("Gather", ["table", "index"], ["y"], axis=0),
        ],
        [_TRIPS, _value("i", TensorProto.INT64, ("b",))],
        [_value("y", TensorProto.FLOAT, ("b",))],
        _LOOP_CONSTANTS | {"table": np.arange(0, 80, 10, dtype=np.float32)},
    )


def slow_pair() -> onnx.ModelProto:
    """trips INT64 [b, 1] → same INT64 [b, 1], negated INT64 [b, 1], after max(trips) turns."""
    return _model(
        [
            *_loop(),
            helper.make_node("Add", ["trips", "zero"], ["same"]),
            helper.make_node("Neg", ["same"], ["negated"]),
        ],
        [_TRIPS],
        [_value("same", TensorProto.INT64, ("b", 1)), _value("negated", TensorProto.INT64, ("b", 1))],
        _LOOP_CONSTANTS,
    )


def slow_variable() -> onnx.ModelProto:
    """trips INT64 [b, 1], x FP32 [b, h, w] → sum FP32 [b], seen INT64 [b, 2], the (h, w) that the run had."""
    return _model(
        [
            *_loop(),
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
            helper.make_node("Shape", ["x"], ["hw"], start=1, end=3),
            helper.make_node("Add", ["hw", "zero"], ["own"]),
            helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
            helper.make_node("Concat", ["rows", "two"], ["wide"], axis=0),
            helper.make_node("Expand", ["own", "wide"], ["seen"]),
        ],
        [_TRIPS, _value("x", TensorProto.FLOAT, ("b", "h", "w"))],
        [_value("sum", TensorProto.FLOAT, ("b",)), _value("seen", TensorProto.INT64, ("b", 2))],
        _LOOP_CONSTANTS | {"axes": np.array([1, 2], np.int64), "two": np.array([2], np.int64)},
    )


def crowd() -> onnx.ModelProto:
    """x FP32 [b, 4] → y FP32 [b, 4]: y = x − mean over the batch. Its rows depend on their mates: never batch it."""
    return _model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [_value("x", TensorProto.FLOAT, ("b", 4))],
        [_value("y", TensorProto.FLOAT, ("b", 4))],
    )


def scalar() -> onnx.ModelProto:
    """x FP32 [] → y FP32 []: y = x + x. No dimension, so never batched."""
    return _model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [_value("x", TensorProto.FLOAT, ())],
        [_value("y", TensorProto.FLOAT, ())],
    )


def fixed() -> onnx.ModelProto:
    """x FP32 [2, 3] → y FP32 [2, 3]: y = −x. Nothing is dynamic, so never batched."""
    return _model(
        [helper.make_node("Neg", ["x"], ["y"])],
        [_value("x", TensorProto.FLOAT, (2, 3))],
        [_value("y", TensorProto.FLOAT, (2, 3))],
    )


def pair() -> onnx.ModelProto:
    """left FP32 [b, 2], right INT32 [b, 3] → sum FP32 [b, 1], negated INT32 [b, 3]."""
    return _model(
        [
            helper.make_node("ReduceSum", ["left", "axis"], ["sum"], keepdims=1),
            helper.make_node("Neg", ["right"], ["negated"]),
        ],
        [_value("left", TensorProto.FLOAT, ("b", 2)), _value("right", TensorProto.INT32, ("b", 3))],
        [_value("sum", TensorProto.FLOAT, ("b", 1)), _value("negated", TensorProto.INT32, ("b", 3))],
        {"axis": np.array([1], np.int64)},
    )


def stamp(number: float) -> onnx.ModelProto:
    """x FP32 [b, 64] → y FP32 [b, 64]: y = x + number. An answer tells which version gave it, in each element."""
    return _model(
        [helper.make_node("Add", ["x", "number"], ["y"])],
        [_value("x", TensorProto.FLOAT, ("b", 64))],
        [_value("y", TensorProto.FLOAT, ("b", 64))],
        {"number": np.array([number], np.float32)},
    )


def everything() -> dict[str, onnx.ModelProto]:
    """Every model above, under the name it is served by."""
    return {f"identity_{datatype.lower()}": identity(element) for datatype, element in IDENTITIES.items()} | {
        "mlp": mlp(),
        "gather": gather(),
        "slow": slow(),
        "scalar": scalar(),
        "fixed": fixed(),
        "pair": pair(),
        "crowd": crowd(),
        "slow_gather": slow_gather(),
        "slow_pair": slow_pair(),
        "slow_variable": slow_variable(),
        "bard": graph(),
    }


def counter() -> onnx.ModelProto:
    """x FP32 [b, 1], total FP32 [b, 1] → y = next = total + x; see `COUNTER_CONFIG`."""
    return _model(
        [helper.make_node("Add", ["x", "total"], ["next"]), helper.make_node("Identity", ["next"], ["y"])],
        [_value(name, TensorProto.FLOAT, ("b", 1)) for name in ("x", "total")],
        [_value(name, TensorProto.FLOAT, ("b", 1)) for name in ("y", "next")],
    )


COUNTER_CONFIG = """
sequence_batching {
  oldest { max_candidate_sequences: 64 }
  max_sequence_idle_microseconds: 10000000
  state { input_name: "total" output_name: "next" }
}
"""


def publish(
    root: Path, name: str, model: onnx.ModelProto | bytes, example: tuple[np.ndarray, np.ndarray] | None = None
) -> int:
    """Publish a model with a manifest; bytes are published as they are, sound or not. Returns the version.

    Args:
        example: x and y of a golden example, true or not.
    """
    content = model if isinstance(model, bytes) else model.SerializeToString()

    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(content)
        if example is None:
            return {}
        golden = folder / "test_data_set_0"
        golden.mkdir()
        for kind, tensor_name, array in (("input", "x", example[0]), ("output", "y", example[1])):
            (golden / f"{kind}_0.pb").write_bytes(numpy_helper.from_array(array, tensor_name).SerializeToString())
        return {"golden": [GoldenSet(folder=golden.name, atol=1e-5, rtol=1e-5)]}

    return repository.publish(root, name, build).version


def copy(root: Path, name: str, model: onnx.ModelProto, version: int = 1) -> None:
    """Put a model where any Triton repository would have it: no manifest."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
