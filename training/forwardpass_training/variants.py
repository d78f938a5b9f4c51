"""Other forms of an exported network: smaller, or faster, at some price in exactness. How each is made.

Building imports quantizers and converters that may crash, so `build` is called in a child.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from forwardpass_training.child import stage

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
Build = Callable[[Path, Path, Sequence[Arrays]], None]
"""(exported file, file to write, inputs of a few runs on training data for calibration)"""

QUANTIZED_LEAST = 256
"""Weights with fewer elements stay as they are: they are no burden, and often biases or scales."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form.

    Args:
        says: what it is, in one line.
        build: makes it.
        foreign: operators beyond ONNX that it says it may hold, by prefix.
    """

    says: str
    build: Build
    foreign: tuple[str, ...] = ()


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Make one variant. Called in a child.

    Args:
        job: `variant`, a name in VARIANTS; `source`; `target`; `calibration`, an .npz of `<run>/<input>`; `metadata`,
            further entries for the file.
    """
    stage("building it")
    with np.load(job["calibration"]) as file:
        calibration: dict[str, Arrays] = {}
        for name in file.files:
            run, _, given = name.partition("/")
            calibration.setdefault(run, {})[given] = file[name]
    source, target = Path(job["source"]), Path(job["target"])
    VARIANTS[job["variant"]].build(source, target, list(calibration.values()))
    model = onnx.load(target)
    metadata = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    del model.metadata_props[:]
    helper.set_model_props(model, {**metadata, "forwardpass.variant": job["variant"]})
    onnx.save(model, target)
    return {}


def _copy(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    target.write_bytes(source.read_bytes())


def _folded(level: str) -> Build:
    def optimise(source: Path, target: Path, _: Sequence[Arrays]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return optimise


def _half(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _dynamic(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # convolutions stay float32: ConvInteger took 2 to 5 times as long (mnist_cnn, one EPYC core)
    operators = ["MatMul", "Gemm", "LSTM"]
    quantize_dynamic(
        _without_shapes(source), target, op_types_to_quantize=operators, per_channel=True, weight_type=QuantType.QInt8
    )


def _static(*, per_channel: bool) -> Build:
    def quantize(source: Path, target: Path, calibration: Sequence[Arrays]) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._left = iter(calibration)

            def get_next(self) -> Arrays | None:
                return next(self._left, None)

        quantize_static(
            _without_shapes(source),
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=STATIC_OPERATORS,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    return quantize


STATIC_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape"]
"""Not Softmax: probabilities in steps of 1/255 would be what callers get."""


def _weights_only(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    """Weights as int8 with a scale a channel, turned back into float32 when the file is loaded.

    By Cast and Mul, which ONNX Runtime folds at load. It leaves a DequantizeLinear to every run (mnist_cnn: 222 µs
    instead of 111 of one EPYC core).
    """
    model = onnx.load(source)
    graph = model.graph
    axes = dict(_channel_axes(graph.node))
    restored: list[onnx.NodeProto] = []
    kept: list[TensorProto] = []
    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        axis = axes.get(weight.name)
        if axis is None or array.dtype != np.float32 or array.ndim < 2 or array.size < QUANTIZED_LEAST:
            kept.append(weight)
            continue
        others = tuple(other for other in range(array.ndim) if other != axis % array.ndim)
        scale = np.maximum(np.abs(array).max(axis=others, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
        name = weight.name
        kept.append(numpy_helper.from_array(np.rint(array / scale).astype(np.int8), f"{name}.int8"))
        kept.append(numpy_helper.from_array(scale, f"{name}.scale"))
        restored.append(helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=TensorProto.FLOAT))
        restored.append(helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name]))
    nodes = [*restored, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    onnx.save(model, target)


def _channel_axes(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, int]]:
    """Each weight that may be quantized, and the axis along which its channels lie."""
    for node in nodes:
        if node.op_type == "Conv":
            yield node.input[1], 0
        elif node.op_type == "MatMul":
            yield node.input[1], -1
        elif node.op_type == "Gemm":
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            yield node.input[1], 0 if transposed else 1
        elif node.op_type == "LSTM":
            yield node.input[1], 1  # [directions, 4 · hidden, inputs]
            yield node.input[2], 1


def _without_shapes(source: Path) -> onnx.ModelProto:
    """The model less its intermediate shapes, on which quantizers stumble once an operator is replaced."""
    model = onnx.load(source)
    del model.graph.value_info[:]
    return model


BASELINE = "fp32"

VARIANTS: dict[str, Variant] = {
    BASELINE: Variant(says="as exported", build=_copy),
    "folded": Variant(says="constants folded, in ONNX's own operators", build=_folded("ORT_ENABLE_BASIC")),
    "fused": Variant(
        says="operators fused as ONNX Runtime does at load",
        build=_folded("ORT_ENABLE_EXTENDED"),
        foreign=("com.microsoft.",),
    ),
    "fp16": Variant(says="weights and activations in half precision; inputs and outputs unchanged", build=_half),
    "int8_weights": Variant(says="weights in int8, arithmetic in float32", build=_weights_only),
    "int8_dynamic": Variant(
        says="dense and LSTM layers in int8, scaled by what each run brings",
        build=_dynamic,
        foreign=("com.microsoft.",),
    ),
    "int8_static": Variant(says="int8 with scales fixed on training data", build=_static(per_channel=False)),
    "int8_static_per_channel": Variant(says="the same, a scale a channel", build=_static(per_channel=True)),
}
