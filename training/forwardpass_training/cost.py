"""What a prediction costs in arithmetic, counted from what ONNX Runtime really executed.

The profile of a run names each operator after all fusions, with the shapes and types of its tensors; the products of
matrices and convolutions follow from those. Everything else (activations, pooling, copies) is not counted, as usual.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tensor = tuple[str, tuple[int, ...]]
"""Type as ONNX Runtime writes it ("float", "int8"), and shape."""

# Where each operator keeps its weights, among its inputs. ONNX Runtime 1.31's names, fusions included.
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
TRANSPOSED = {"ConvTranspose": 1}
PRODUCTS = {
    "Gemm": 1,
    "FusedGemm": 1,
    "MatMul": 1,
    "FusedMatMul": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QGemm": 3,
    "QLinearMatMul": 3,
}
RECURRENT = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "DynamicQuantizeLSTM": (1, 2)}
INTEGERS = frozenset({"int8", "uint8"})


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Multiply-adds of one run; FLOPs are twice as many.

    Args:
        multiply_adds: all.
        int8: those whose weights are integers of eight bits.
    """

    multiply_adds: int
    int8: int


def arithmetic(profile: Sequence[Mapping[str, Any]]) -> Arithmetic:
    """Count a profile of one run, made with `session.disable_prepacking`, without which shapes of weights are missing.

    Raises:
        ValueError: an operator that multiplies has no shapes.
    """
    total = int8 = 0
    for event in profile:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            facts = event["args"]
            count, kind = multiply_adds(
                facts["op_name"], _tensors(facts["input_type_shape"]), _tensors(facts["output_type_shape"])
            )
            total += count
            int8 += count if kind in INTEGERS else 0
    return Arithmetic(multiply_adds=total, int8=int8)


def multiply_adds(operator: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[int, str]:
    """Multiply-adds of one operator, and the type of its weights; 0 for an operator that is not counted."""
    for table in (CONVOLUTIONS, TRANSPOSED, PRODUCTS):
        if operator in table and len(inputs) <= table[operator]:
            raise ValueError(f"{operator} in the profile has {len(inputs)} inputs; was prepacking on?")
    if operator in CONVOLUTIONS:
        kind, weight = inputs[CONVOLUTIONS[operator]]  # [channels out, channels in / groups, …]
        return _size(outputs[0]) * math.prod(weight[1:]), kind
    if operator in TRANSPOSED:
        kind, weight = inputs[TRANSPOSED[operator]]  # [channels in, channels out / groups, …]
        return _size(inputs[0]) * math.prod(weight[1:]), kind
    if operator in PRODUCTS:
        kind, weight = inputs[PRODUCTS[operator]]  # […, inner, columns], or transposed
        columns = outputs[0][1][-1] if len(weight) > 1 else 1
        return _size(outputs[0]) * math.prod(weight[-2:]) // max(columns, 1), kind
    if operator in RECURRENT:
        time, batch = inputs[0][1][:2]
        kind = inputs[RECURRENT[operator][0]][0]
        return time * batch * sum(_size(inputs[place]) for place in RECURRENT[operator]), kind
    return 0, ""


def _size(tensor: Tensor) -> int:
    return math.prod(tensor[1])


def _tensors(described: Sequence[Mapping[str, Sequence[int]]]) -> list[Tensor]:
    return [(kind, tuple(shape)) for entry in described for kind, shape in entry.items()]
