"""Conversion of Python values to raw tensors and back: what is converted, what is refused, what is bit-exact."""

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forwardpass import bfloat16, tensors
from forwardpass.dtypes import DTYPES, by_wire
from forwardpass.errors import InvalidRequest

NUMBERS = [name for name in DTYPES if name not in ("BYTES", "BF16")]


def there_and_back(value: Any, datatype: str) -> Any:
    shape, raw = tensors.encode(value, by_wire(datatype), "x")
    return tensors.decode(raw, by_wire(datatype), shape, "x")


@given(st.sampled_from(NUMBERS).flatmap(lambda name: st.tuples(st.just(name), _arrays(DTYPES[name].numpy))))
def test_an_array_of_the_models_own_dtype_passes_bit_for_bit(case: tuple[str, Any]) -> None:
    name, array = case
    answered = there_and_back(array, name)
    assert answered.shape == array.shape
    assert answered.dtype == array.dtype
    assert answered.tobytes() == array.tobytes()


def _arrays(dtype: Any) -> Any:
    return hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@given(hnp.arrays(np.int64, 5), st.sampled_from([name for name in NUMBERS if "INT" in name]))
def test_integers_arrive_unchanged_or_are_refused(array: Any, name: str) -> None:
    try:
        answered = there_and_back(array, name)
    except InvalidRequest:
        limits = np.iinfo(DTYPES[name].numpy)
        assert any(not int(limits.min) <= int(value) <= int(limits.max) for value in array)
    else:
        assert [int(value) for value in answered] == [int(value) for value in array]


@given(st.lists(st.binary(max_size=20) | st.text(max_size=20)))
def test_bytes_of_any_content_pass(values: list[Any]) -> None:
    expected = [value.encode() if isinstance(value, str) else value for value in values]
    assert there_and_back(values, "BYTES").tolist() == expected


def test_layout_order_and_endianness_do_not_matter() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for same in (array.T.copy().T, np.asfortranarray(array), array[:, ::1], array.astype(">f4")):
        np.testing.assert_array_equal(there_and_back(same, "FP32"), array)
    np.testing.assert_array_equal(there_and_back(array[::2, ::-1], "FP32"), array[::2, ::-1])
    np.testing.assert_array_equal(there_and_back(np.arange(3, dtype=">i8"), "INT64"), [0, 1, 2])


def test_raw_bytes_are_little_endian_rows() -> None:
    assert tensors.encode([[1, 2], [3, 4]], by_wire("INT16"), "x") == ((2, 2), struct.pack("<4h", 1, 2, 3, 4))
    assert tensors.encode(np.array(["ab", b"\0"], object), by_wire("BYTES"), "x") == ((2,), b"\2\0\0\0ab\1\0\0\0\0")


def test_decoding_copies_nothing_and_is_read_only() -> None:
    raw = struct.pack("<2f", 1, 2)
    array = tensors.decode(raw, by_wire("FP32"), (2,), "x")
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 3


@pytest.mark.parametrize(
    ("value", "datatype", "expected"),
    [
        ([True, False], "INT8", [1, 0]),
        ([True], "FP32", [1.0]),
        ([0, 1], "BOOL", [False, True]),
        ([1, 2], "FP16", [1.0, 2.0]),
        ([2**24 + 1], "FP32", [2.0**24]),
        ([0.1], "FP32", [np.float32(0.1)]),
        ([math.inf, -math.inf], "FP16", [math.inf, -math.inf]),
        ([], "INT64", []),
        ([[]], "UINT8", [[]]),
        (np.float64(2.5), "FP32", 2.5),
        (7, "UINT64", 7),
        ((1, 2), "INT32", [1, 2]),
        (range(3), "INT32", [0, 1, 2]),
        ("text", "BYTES", b"text"),
        (np.array(["é"]), "BYTES", ["é".encode()]),
        (np.array([b"abc"]), "BYTES", [b"abc"]),
    ],
)
def test_what_just_works(value: Any, datatype: str, expected: Any) -> None:
    assert there_and_back(value, datatype).tolist() == expected


@pytest.mark.parametrize(
    ("value", "datatype", "words"),
    [
        ([256], "UINT8", "takes UINT8, from 0 to 255; it has the value 256"),
        ([-1], "UINT64", "from 0 to 18446744073709551615; it has the value -1"),
        ([2], "BOOL", "takes BOOL, from 0 to 1; it has the value 2"),
        ([0.5], "UINT8", r"got float64: round and cast it yourself, for instance array.round\(\).astype\('uint8'\)"),
        ([1.0], "INT64", "round and cast"),
        ([0.0], "BOOL", "round and cast"),
        ([1e39], "FP32", r"up to 3.40282e\+38; it has the value 1e\+39, which would become infinite"),
        ([70000.0], "FP16", "up to 65504; it has the value 70000"),
        ([3.4e38], "BF16", "takes BF16, up to 3.38953e"),
        (["a"], "FP32", r"got text \('a'\); give numbers"),
        (["a"], "BF16", "got text"),
        ([2**70], "INT64", "give numbers within 64 bits"),
        ([None], "FP32", "first element is 'None'"),
        ([1j], "FP32", "got complex128; give numbers"),
        ([1], "BYTES", r"takes BYTES, got 1 \(int\); give str or bytes"),
        ([["a"], ["b", "c"]], "BYTES", "not rectangular|give str or bytes"),
        ([[1], [1, 2]], "FP32", "not rectangular"),
        (np.array(["2024-01-01"], "datetime64[D]"), "INT64", "got datetime64"),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(value: Any, datatype: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        tensors.encode(value, by_wire(datatype), "x")
    assert "input 'x'" in str(caught.value)


def test_unknown_datatypes_are_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown datatype 'FP8'; the protocol has BOOL, .*BYTES"):
        by_wire("FP8")


@given(st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127))
def test_bfloat16_rounds_to_the_nearest_with_ties_to_even(value: float) -> None:
    pattern = int(bfloat16.from_float32(np.array([value], np.float32))[0])
    rounded = float(bfloat16.to_float32(np.array([pattern], np.uint16))[0])
    around = bfloat16.to_float32(np.array([max(pattern & 0x7FFF, 1) - 1, (pattern & 0x7FFF) + 1], np.uint16))
    for neighbour in np.copysign(around.astype(np.float64), value):
        if math.isfinite(rounded) and math.isfinite(neighbour):
            mine, its = abs(value - rounded), abs(value - float(neighbour))
            assert mine <= its
            assert mine != its or pattern & 1 == 0


def test_bfloat16_keeps_every_pattern_and_every_nan() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    singles = bfloat16.to_float32(patterns)
    back = bfloat16.from_float32(singles)
    numbers = ~np.isnan(singles)
    np.testing.assert_array_equal(back[numbers], patterns[numbers])
    assert np.isnan(bfloat16.to_float32(back[~numbers])).all()
    assert np.isnan(
        bfloat16.to_float32(bfloat16.from_float32(np.array([0x7F800001], np.uint32).view(np.float32)))
    ).all()


def test_bfloat16_of_ml_dtypes_passes_unrounded() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([[1.0, -3.5], [0.0078125, 2.0]]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(there_and_back(array, "BF16"), array.astype(np.float32))
    np.testing.assert_array_equal(there_and_back(array.T, "BF16"), array.T.astype(np.float32))
