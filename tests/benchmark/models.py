"""The models of the bench, built here with random weights: what a run costs does not depend on what was learnt.

Each takes FP32 `x` and gives FP32 `y`, rows first, so that one generator can ask them all.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10
OPSET = [helper.make_opsetid("", 18)]


class Graph:
    """A graph that grows node by node; every method returns the name of what it computes."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """One node."""
        names = list(outputs) or [f"t{len(self._nodes)}"]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0]

    def weights(self, *shape: int) -> str:
        """Normal noise, scaled by the square root of what it sums over, so that activations neither vanish nor grow."""
        fan_in = int(np.prod(shape[1:])) or 1
        return self.constant((self._rng.standard_normal(shape) / fan_in**0.5).astype(np.float32))

    def constant(self, array: np.ndarray) -> str:
        """A given tensor."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """`x W' + b`."""
        return self.add("Gemm", x, self.weights(outputs, inputs), self.weights(outputs), transB=1)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        """A convolution that keeps the size but for its stride, with its bias (and its normalisation) folded in."""
        pad = kernel // 2
        weights = self.weights(outputs, inputs, kernel, kernel)
        return self.add("Conv", x, weights, self.weights(outputs), strides=[stride] * 2, pads=[pad] * 4)

    def model(self, name: str, shape: Sequence[int], y: str, outputs: int) -> onnx.ModelProto:
        """The whole, from `x` [batch, *shape] to `y` [batch, outputs]."""
        self.add("Identity", y, outputs=["y"])
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
            self._constants,
        )
        made = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=OPSET)
        onnx.checker.check_model(made, full_check=True)
        return made


def mlp() -> onnx.ModelProto:
    """10 numbers, 10 hidden, one probability."""
    graph = Graph()
    hidden = graph.add("Relu", graph.dense("x", 10, 10))
    return graph.model("mlp", [10], graph.add("Sigmoid", graph.dense(hidden, 10, 1)), 1)


def mnist_cnn() -> onnx.ModelProto:
    """28x28, 32 3x3 filters, pooled to 14x14, 128 hidden, 10 probabilities."""
    graph = Graph()
    pooled = graph.add("MaxPool", graph.add("Relu", graph.conv("x", 1, 32, 3)), kernel_shape=[2, 2], strides=[2, 2])
    hidden = graph.add("Relu", graph.dense(graph.add("Flatten", pooled), 32 * 14 * 14, 128))
    return graph.model("mnist_cnn", [1, 28, 28], graph.add("Softmax", graph.dense(hidden, 128, 10)), 10)


def resnet18() -> onnx.ModelProto:
    """224x224 in three colours, ResNet-18 with its batch normalisations folded, 1000 numbers."""
    graph = Graph()
    x = graph.add("Relu", graph.conv("x", 3, 64, 7, stride=2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        inner = graph.add("Relu", graph.conv(x, channels, width, 3, stride))
        inner = graph.conv(inner, width, width, 3)
        skip = x if stride == 1 and width == channels else graph.conv(x, channels, width, 1, stride)
        x = graph.add("Relu", graph.add("Add", inner, skip))
        channels = width
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    return graph.model("resnet18", [3, 224, 224], graph.dense(pooled, 512, 1000), 1000)


def image_probe() -> onnx.ModelProto:
    """A 600 KB image of which ten numbers are looked at: all transport and no model."""
    graph = Graph()
    starts, ends, axes = (graph.constant(np.array([value], np.int64)) for value in (0, 10, 1))
    flat = graph.add("Flatten", "x")
    return graph.model("image_probe", [3, 224, 224], graph.add("Slice", flat, starts, ends, axes), 10)


def lstm_step() -> onnx.ModelProto:
    """One step of a character LSTM, two layers of 128, 65 characters: embedded input in, logits out."""
    graph = Graph()
    axes = graph.constant(np.array([0], np.int64))
    x = graph.add("Unsqueeze", "x", axes)  # [time = 1, batch, 128]
    for layer in range(2):
        w, r, b = graph.weights(1, 4 * 128, 128), graph.weights(1, 4 * 128, 128), graph.weights(1, 8 * 128)
        x = graph.add("LSTM", x, w, r, b, outputs=[f"h{layer}"], hidden_size=128)
        x = graph.add("Squeeze", x, graph.constant(np.array([1], np.int64)))
    return graph.model("lstm_step", [128], graph.dense(graph.add("Squeeze", x, axes), 128, 65), 65)


SHAPES: Mapping[str, tuple[int, ...]] = {
    "mlp": (10,),
    "mnist_cnn": (1, 28, 28),
    "resnet18": (3, 224, 224),
    "image_probe": (3, 224, 224),
    "lstm_step": (128,),
}
"""What `x` of each looks like, behind the rows."""

_BUILDERS: Sequence[Callable[[], onnx.ModelProto]] = (mlp, mnist_cnn, resnet18, image_probe, lstm_step)


def publish(root: Path, names: Sequence[str]) -> None:
    """Write a repository of these models, version 1 each."""
    for build in _BUILDERS:
        if build.__name__ in names:
            folder = root / build.__name__ / "1"
            folder.mkdir(parents=True)
            onnx.save(build(), folder / "model.onnx")
