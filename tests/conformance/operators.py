"""Models of one operator each, whose inputs decide whether it can be computed at all: what values can do to a server.

Among them is what ends ONNX Runtime's own process: integers that trap when divided, empty tensors in recurrent layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from conformance.models import IR_VERSION, Shape
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 21)]

FP32, INT64, BYTES = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


class Operator(NamedTuple):
    """An operator as a model.

    Args:
        op: its name.
        inputs: of the model, each with its element type and shape; in the operator's order.
        outputs: with their element types.
        weights: inputs of the operator after those of the model.
        attributes: of the operator.
    """

    op: str
    inputs: Mapping[str, tuple[int, Shape]]
    outputs: Mapping[str, int] = {"y": FP32}
    weights: Mapping[str, np.ndarray] = {}
    attributes: Mapping[str, Any] = {}

    def model(self) -> onnx.ModelProto:
        """The model: inputs as they are called here, outputs of whatever shape comes out."""
        graph = helper.make_graph(
            [helper.make_node(self.op, [*self.inputs, *self.weights], list(self.outputs), **self.attributes)],
            self.op,
            [helper.make_tensor_value_info(name, *of) for name, of in self.inputs.items()],
            [helper.make_tensor_value_info(name, element, None) for name, element in self.outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=OPSET, ir_version=IR_VERSION)


def _with_data(op: str, *inputs: str, outputs: Mapping[str, int] | None = None, **attributes: Any) -> Operator:
    """`data` FP32 [n], then integers, each of a length of its own."""
    shapes: dict[str, tuple[int, Sequence[int | str]]] = {"data": (FP32, ["n"])}
    shapes |= {name: (INT64, [f"{name}_n"]) for name in inputs}
    return Operator(op, shapes, outputs or {"y": FP32}, attributes=attributes)


def _of_integers(op: str) -> Operator:
    return Operator(op, {"a": (INT64, ["n"]), "b": (INT64, ["m"])}, {"y": INT64})


def _recurrent(op: str, gates: int) -> Operator:
    weights = {"w": np.ones((1, 3 * gates, 2), np.float32), "r": np.ones((1, 3 * gates, 3), np.float32)}
    return Operator(op, {"x": (FP32, ["time", "lines", 2])}, weights=weights, attributes={"hidden_size": 3})


OPERATORS: Mapping[str, Operator] = {
    "op_reshape": _with_data("Reshape", "shape"),
    "op_slice": _with_data("Slice", "starts", "ends", "axes", "steps"),
    "op_gather_elements": _with_data("GatherElements", "indices"),
    "op_split": _with_data("Split", "split", outputs={"y": FP32, "z": FP32}),
    "op_topk": _with_data("TopK", "k", outputs={"y": FP32, "z": INT64}),
    "op_squeeze": _with_data("Squeeze", "axes"),
    "op_pad": _with_data("Pad", "pads"),
    "op_expand": _with_data("Expand", "shape"),
    "op_tile": _with_data("Tile", "repeats"),
    "op_constant_of_shape": Operator("ConstantOfShape", {"shape": (INT64, ["n"])}),
    "op_range": Operator("Range", {name: (INT64, []) for name in ("start", "limit", "delta")}, {"y": INT64}),
    "op_div": _of_integers("Div"),
    "op_mod": _of_integers("Mod"),
    "op_cast": Operator("Cast", {"text": (BYTES, ["n"])}, {"y": INT64}, attributes={"to": INT64}),
    "op_lstm": _recurrent("LSTM", 4),
    "op_gru": _recurrent("GRU", 3),
}
"""By the name under which it is served."""
