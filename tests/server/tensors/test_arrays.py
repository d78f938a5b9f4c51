"""Data of an input: sizes that do not match, overflow, typed contents that do not fit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.arrays import to_array
from forwardpass_server.tensors.dtypes import BF16, BOOL, BYTES, FP16, FP32, INT8, INT64, UINT8, UINT16, UINT64, Dtype
from forwardpass_server.tensors.infer_request import InputTensor


def raw(dtype: Dtype, shape: tuple[int, ...], data: bytes) -> InputTensor:
    return InputTensor("x", dtype.wire, shape, {}, memoryview(data), None)


def typed(dtype: Dtype, shape: tuple[int, ...], **contents: Any) -> InputTensor:
    return InputTensor("x", dtype.wire, shape, {}, None, pb.InferTensorContents(**contents))


@pytest.mark.parametrize("got", [0, 28, 31, 33, 40])
def test_a_wrong_number_of_bytes_names_both(got: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"'x': expected 32 bytes for FP32 \[2, 4\], got {got}"):
        to_array(raw(FP32, (2, 4), bytes(got)), FP32)


@pytest.mark.parametrize(
    "shape",
    [
        (2**4, 2**60 + 2),  # × 4 bytes wraps to 128 in 64 bits
        (2**62, 4),
        (2**32, 2**32),
        (2**63 - 1,) * 16,
    ],
)
@pytest.mark.parametrize("dtype", [FP32, BYTES, UINT8])
def test_a_shape_whose_size_would_wrap_is_refused(shape: tuple[int, ...], dtype: Dtype) -> None:
    with pytest.raises(InvalidRequest, match=r"expected \d+ \w+.*, got (128|32)$"):
        to_array(raw(dtype, shape, bytes(128)), dtype)
    with pytest.raises(InvalidRequest, match="got 0"):
        to_array(InputTensor("x", dtype.wire, shape, {}, None, None), dtype)


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (-2, -3), (0, -1)])
def test_a_negative_dimension_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="negative dimension"):
        to_array(raw(FP32, shape, bytes(24)), FP32)


@pytest.mark.parametrize("shape", [(0, 2**40), (2**62, 0, 2**62), (0, 2**31)])
def test_an_empty_shape_with_huge_other_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="too large in its other dimensions"):
        to_array(raw(FP32, shape, b""), FP32)


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=repr)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_an_empty_tensor_is_empty_however_it_comes(dtype: Dtype, shape: tuple[int, ...]) -> None:
    for tensor in (raw(dtype, shape, b""), InputTensor("x", dtype.wire, shape, {}, None, None)):
        array = to_array(tensor, dtype)
        assert (array.shape, array.dtype) == (shape, dtype.numpy)


def test_raw_data_are_not_copied() -> None:
    data = np.arange(150_000, dtype="<f4").tobytes()
    array = to_array(raw(FP32, (1, 150_000), data), FP32)
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert not array.flags.writeable


def test_bool_bytes_other_than_0_and_1_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="bytes 0 or 1, got 2"):
        to_array(raw(BOOL, (3,), b"\0\1\2"), BOOL)
    assert to_array(raw(BOOL, (2,), b"\0\1"), BOOL).tolist() == [False, True]


@pytest.mark.parametrize(
    ("dtype", "field", "value", "says"),
    [
        (INT8, "int_contents", 128, "128 is out of range for INT8"),
        (INT8, "int_contents", -129, "-129 is out of range for INT8"),
        (dtypes.INT16, "int_contents", 2**15, "32768 is out of range for INT16"),
        (UINT8, "uint_contents", 256, "256 is out of range for UINT8"),
        (UINT16, "uint_contents", 2**32 - 1, "4294967295 is out of range for UINT16"),
    ],
)
def test_narrow_integers_are_range_checked(dtype: Dtype, field: str, value: int, says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'x': {says}"):
        to_array(typed(dtype, (2,), **{field: [0, value]}), dtype)


@given(st.sampled_from([d for d in dtypes.ALL if d.numpy.kind in "iu" and d is not BF16]), st.data())
def test_integers_that_fit_come_through(dtype: Dtype, data: st.DataObject) -> None:
    info = np.iinfo(dtype.numpy)
    values = data.draw(st.lists(st.integers(int(info.min), int(info.max)), max_size=5))
    assert dtype.contents is not None
    array = to_array(typed(dtype, (len(values),), **{dtype.contents: values}), dtype)
    assert array.tolist() == values
    assert array.dtype == dtype.numpy


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6))
def test_floats_come_through_bit_exact(values: list[float]) -> None:
    array = to_array(typed(FP32, (len(values),), fp32_contents=values), FP32)
    assert array.tobytes() == np.array(values, "<f4").tobytes()
    array = to_array(typed(dtypes.FP64, (len(values),), fp64_contents=values), dtypes.FP64)
    assert array.tobytes() == np.array(values, "<f8").tobytes()


def test_bools_and_text_come_through() -> None:
    assert to_array(typed(BOOL, (2, 1), bool_contents=[True, False]), BOOL).tolist() == [[True], [False]]
    texts = to_array(typed(BYTES, (2,), bytes_contents=["é".encode(), b"a\0"]), BYTES)
    assert texts.tolist() == ["é", "a\0"]


@pytest.mark.parametrize("count", [0, 7, 9])
def test_a_wrong_number_of_typed_elements_names_both(count: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"expected 8 elements for \[2, 4\], got {count}"):
        to_array(typed(FP32, (2, 4), fp32_contents=[0.5] * count), FP32)


def test_typed_contents_of_another_type_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="FP32 comes in fp32_contents, got fp64_contents"):
        to_array(typed(FP32, (1,), fp64_contents=[1.0]), FP32)
    with pytest.raises(InvalidRequest, match="INT64 comes in int64_contents, got int_contents"):
        to_array(typed(INT64, (1,), int_contents=[1], int64_contents=[1]), INT64)


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_half_precision_comes_raw_only(dtype: Dtype) -> None:
    with pytest.raises(InvalidRequest, match="raw_input_contents only"):
        to_array(typed(dtype, (1,), fp32_contents=[1.0]), dtype)


@pytest.mark.parametrize("element", [b"\xff", b"ok\xc3"])
def test_typed_text_that_is_not_utf8_is_refused(element: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        to_array(typed(BYTES, (1,), bytes_contents=[element]), BYTES)


def test_uint64_beyond_int64_survives() -> None:
    assert to_array(typed(UINT64, (1,), uint64_contents=[2**64 - 1]), UINT64).tolist() == [2**64 - 1]


@given(
    st.sampled_from(dtypes.ALL),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=5),
    st.binary(max_size=64) | st.none(),
    st.builds(
        pb.InferTensorContents,
        int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        bytes_contents=st.lists(st.binary(max_size=2), max_size=2),
        fp32_contents=st.lists(st.floats(width=32), max_size=2),
    ),
)
def test_any_tensor_is_an_array_of_its_shape_or_refused(
    dtype: Dtype, shape: list[int], data: bytes | None, contents: pb.InferTensorContents
) -> None:
    tensor = InputTensor("x", dtype.wire, tuple(shape), {}, None if data is None else memoryview(data), contents)
    try:
        array = to_array(tensor, dtype)
    except InvalidRequest:
        return
    assert (array.shape, array.dtype) == (tuple(shape), dtype.numpy)
