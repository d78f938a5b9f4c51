"""A model repository as somebody with a Triton server has it, written by hand: nothing in it is ours.

halved    versions 1 and 2, both served, config.pbtxt with every input and output: x FP32 [-1, 4] → y = x / 2, x / 4
pets      config.pbtxt with labels and two instances: y FP32 [-1, 4] → probability = softmax(y)
words     no config.pbtxt: text BYTES [n] → same
graded    an ensemble, halved → pets: image FP32 [-1, 4] → grade
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

HALVED = """
name: "halved"
platform: "onnxruntime_onnx"
max_batch_size: 16
version_policy: { all { } }
input [
  {
    name: "x"
    data_type: TYPE_FP32
    dims: [ 4 ]
  }
]
output [
  {
    name: "y"
    data_type: TYPE_FP32
    dims: [ 4 ]
  }
]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
}
"""

PETS = """
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "probability" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""

GRADED = """
name: "graded"
platform: "ensemble"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "grade" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "halved"
      model_version: -1
      input_map { key: "x" value: "image" }
      output_map { key: "y" value: "smaller" }
    },
    {
      model_name: "pets"
      model_version: -1
      input_map { key: "y" value: "smaller" }
      output_map { key: "probability" value: "grade" }
    }
  ]
}
"""

LABELS = "cat\ndog\neel\nfox\n"


def write(root: Path) -> Path:
    """Write it below `root`, and return that."""
    for version, factor in ((1, 0.5), (2, 0.25)):
        _put(root / f"halved/{version}/model.onnx", _halved(factor))
    _put(root / "halved/config.pbtxt", HALVED.encode())
    _put(root / "pets/1/model.onnx", _one_node("Softmax", "y", "probability", TensorProto.FLOAT, ["N", 4]))
    _put(root / "pets/config.pbtxt", PETS.encode())
    _put(root / "pets/labels.txt", LABELS.encode())
    _put(root / "words/1/model.onnx", _one_node("Identity", "text", "same", TensorProto.STRING, ["n"]))
    _put(root / "graded/config.pbtxt", GRADED.encode())
    (root / "graded/1").mkdir()  # as Triton wants it: an ensemble has a version, and nothing in it
    return root


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _halved(factor: float) -> bytes:
    nodes = [
        helper.make_node("Constant", [], ["factor"], value_float=factor),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    return _model(nodes, "x", "y", TensorProto.FLOAT, ["N", 4])


def _one_node(operator: str, given: str, answered: str, dtype: int, shape: list[int | str]) -> bytes:
    return _model([helper.make_node(operator, [given], [answered])], given, answered, dtype, shape)


def _model(nodes: list[onnx.NodeProto], given: str, answered: str, dtype: int, shape: list[int | str]) -> bytes:
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in (given, answered)]
    graph = helper.make_graph(nodes, "model", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
