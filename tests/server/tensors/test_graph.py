"""Signatures read from ONNX files: real layouts, sloppy exporters, and files that are none."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass_server.errors import LoadFailed
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec


def value(name: str, shape: list[int | str | None] | None, elements: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elements, shape)


def write(
    path: Path,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto] | None = None,
) -> Path:
    node = helper.make_node("Identity", [inputs[0].name] if inputs else [], [outputs[0].name] if outputs else [])
    graph = helper.make_graph([node], "g", inputs, outputs, weights or [])
    path.write_bytes(helper.make_model(graph, ir_version=8).SerializeToString())
    return path


def test_names_datatypes_and_dimensions_are_the_graphs(tmp_path: Path) -> None:
    path = write(
        tmp_path / "model.onnx",
        [value("tokens", ["batch", "time"], TensorProto.INT64), value("h0", ["batch", 2, 128])],
        [value("logits", ["batch", "time", 65]), value("h1", ["batch", 2, 128], TensorProto.BFLOAT16)],
    )
    signature = Signature.from_onnx(path)
    assert signature.inputs == (
        TensorSpec("tokens", dtypes.INT64, ("batch", "time")),
        TensorSpec("h0", dtypes.FP32, ("batch", 2, 128)),
    )
    assert signature.outputs == (
        TensorSpec("logits", dtypes.FP32, ("batch", "time", 65)),
        TensorSpec("h1", dtypes.BF16, ("batch", 2, 128)),
    )
    assert signature.max_batch_size == 64
    assert signature.inputs[0].wire_shape == (-1, -1)
    assert Signature.from_onnx(path, max_batch_size=8).max_batch_size == 8


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=repr)
def test_every_datatype_of_the_protocol_can_be_an_input(dtype: dtypes.Dtype, tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [value("x", [2], dtype.onnx)], [value("y", [2], dtype.onnx)])
    assert Signature.from_onnx(path).inputs[0].dtype is dtype


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    inputs = [value("x", ["batch", 2]), value("w", [2])]
    path = write(tmp_path / "model.onnx", inputs, [value("y", ["batch", 2])], [weight])
    signature = Signature.from_onnx(path)
    assert [spec.name for spec in signature.inputs] == ["x"]
    assert signature.max_batch_size == 64


def test_weights_outside_the_file_are_not_read(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], bytes(8), raw=True)
    onnx.external_data_helper.set_external_data(weight, location="no-such-file")
    weight.ClearField("raw_data")
    path = write(tmp_path / "model.onnx", [value("x", ["n"])], [value("y", ["n"])], [weight])
    assert [spec.name for spec in Signature.from_onnx(path).inputs] == ["x"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "batched"),
    [
        ([["batch", 3]], [["batch", 1]], True),
        ([[None, 3]], [[None, 1]], True),
        ([["batch", 3], [None, 2]], [["Addy_dim_0", 1]], True),  # torch's older exporter names outputs so
        ([["batch", "time"]], [["batch", "time"]], True),
        ([[3]], [[3]], False),
        ([["batch", 3]], [[1, 3]], False),
        ([["batch", 3], [1, 3]], [["batch", 3]], False),
        ([["batch", 3], ["other", 3]], [["batch", 3]], False),
        ([["batch", "time"]], [["time", "batch"]], False),
        ([["batch", 3]], [[]], False),
        ([[]], [["batch"]], False),
        ([None], [["batch"]], False),
        ([["batch"]], [None], False),
    ],
)
def test_a_model_is_batched_when_all_tensors_share_a_dynamic_first_dimension(
    inputs: list[list[int | str | None] | None],
    outputs: list[list[int | str | None] | None],
    batched: bool,
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path / "model.onnx",
        [value(f"x{index}", shape) for index, shape in enumerate(inputs)],
        [value(f"y{index}", shape) for index, shape in enumerate(outputs)],
    )
    assert bool(Signature.from_onnx(path).max_batch_size) is batched


def test_a_negative_dimension_in_the_file_means_dynamic(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [value("x", [-1, 3])], [value("y", [-1, 3])])
    signature = Signature.from_onnx(path)
    assert signature.inputs[0].shape == (None, 3)
    assert signature.max_batch_size == 64


def test_a_tensor_without_a_shape_is_unranked(tmp_path: Path) -> None:
    spec = Signature.from_onnx(write(tmp_path / "model.onnx", [value("x", None)], [value("y", [])])).inputs[0]
    assert not spec.ranked
    assert spec.shape_text() == "any"


def test_what_the_protocol_cannot_carry_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", [value("z", [1], TensorProto.COMPLEX64)], [value("y", [1])])
    with pytest.raises(LoadFailed, match="input 'z' has COMPLEX64 elements"):
        Signature.from_onnx(path)
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    with pytest.raises(LoadFailed, match="output 's' is a sequence"):
        Signature.from_onnx(write(tmp_path / "b.onnx", [value("x", [1])], [sequence]))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not a model", b"\x08\x08\x3a\xff\xff\xff\xff\x07"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadFailed, match=r"model\.onnx"):
        Signature.from_onnx(path)


def test_a_truncated_model_is_refused_or_read_but_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [value("x", ["batch", 3])], [value("y", ["batch", 3])])
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            Signature.from_onnx(path)
        except LoadFailed:
            continue


def test_an_input_with_a_default_is_an_input_where_the_caller_says_so(tmp_path: Path) -> None:
    inputs = [value("x", ["rows", 3]), value("bias", [3])]
    path = write(
        tmp_path / "model.onnx",
        inputs,
        [value("y", ["rows", 3])],
        [numpy_helper.from_array(np.ones(3, np.float32), "bias")],
    )
    assert [(spec.name, spec.optional) for spec in Signature.from_onnx(path).inputs] == [("x", False)]
    named = Signature.from_onnx(path, optional={"bias", "x", "nothing"})
    assert [(spec.name, spec.optional) for spec in named.inputs] == [("x", False), ("bias", True)]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="cannot be read: No such file"):
        Signature.from_onnx(tmp_path / "model.onnx")
