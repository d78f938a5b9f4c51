"""The table of datatypes against the libraries it stands between."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from forwardpass_proto import model_config_pb2
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.dtypes import BF16, BYTES, Dtype

ORDINARY = [dtype for dtype in dtypes.ALL if dtype not in (BF16, BYTES)]


@pytest.mark.parametrize("dtype", ORDINARY, ids=repr)
def test_numpy_and_onnx_agree(dtype: Dtype) -> None:
    assert helper.tensor_dtype_to_np_dtype(dtype.onnx) == dtype.numpy
    assert dtype.numpy.itemsize == dtype.itemsize
    assert dtype.numpy.newbyteorder("<") == dtype.numpy


def test_bf16_is_carried_as_its_bit_patterns() -> None:
    assert (BF16.numpy, BF16.itemsize, BF16.onnx) == (np.dtype("<u2"), 2, TensorProto.BFLOAT16)


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=repr)
def test_model_config_calls_it_alike(dtype: Dtype) -> None:
    name = "STRING" if dtype is BYTES else dtype.wire
    assert model_config_pb2.DataType.Value(f"TYPE_{name}") == dtype.config


def test_every_type_of_the_protocol_is_in_the_table() -> None:
    config = {value for value in model_config_pb2.DataType.values() if value}  # 0 is TYPE_INVALID
    assert {dtype.config for dtype in dtypes.ALL} == config


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=repr)
def test_onnx_runtime_calls_it_so(dtype: Dtype) -> None:
    runtime = pytest.importorskip("onnxruntime")
    value = [helper.make_tensor_value_info(name, dtype.onnx, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == dtype.ort


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=repr)
def test_every_lookup_gives_the_one_object(dtype: Dtype) -> None:
    assert dtypes.by_wire(dtype.wire) is dtype
    assert dtypes.by_onnx(dtype.onnx) is dtype
    assert dtypes.by_ort(dtype.ort) is dtype
    assert dtypes.by_config(dtype.config) is dtype


def test_strangers_are_none() -> None:
    assert dtypes.by_wire("fp32") is None
    assert dtypes.by_onnx(onnx.TensorProto.COMPLEX64) is None
    assert dtypes.by_ort("seq(tensor(float))") is None
    assert dtypes.by_config(0) is None
