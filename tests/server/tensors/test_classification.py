"""The largest values as text: order, ties, NaN, labels, every dtype, and shapes that are not a matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.classification import top_k
from forwardpass_server.tensors.dtypes import Dtype


def test_each_row_has_its_largest_first_with_their_labels() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.125]], np.float32)
    found = top_k(scores, dtypes.FP32, 2, batched=True, labels=("cat", "dog"))
    assert found.tolist() == [["0.700000:1:dog", "0.200000:2"], ["0.500000:0:cat", "0.250000:1:dog"]]
    assert found.dtype == object


def test_more_classes_than_there_are_gives_all_of_them() -> None:
    assert top_k(np.array([[3, 1]], np.int8), dtypes.INT8, 9, batched=True).tolist() == [["3:0", "1:1"]]


def test_a_model_that_is_not_batched_is_one_row_whatever_its_shape() -> None:
    found = top_k(np.arange(6, dtype=np.int64).reshape(2, 3), dtypes.INT64, 2, batched=False)
    assert found.tolist() == ["5:5", "4:4"]
    assert top_k(np.array(2.5, np.float64), dtypes.FP64, 3, batched=False).tolist() == ["2.500000:0"]


def test_dimensions_behind_the_rows_count_as_one() -> None:
    found = top_k(np.arange(12, dtype=np.uint8).reshape(2, 3, 2), dtypes.UINT8, 1, batched=True)
    assert found.tolist() == [["5:5"], ["11:5"]]


def test_equal_values_keep_their_order_and_nan_comes_last() -> None:
    row = np.array([[np.nan, 1, np.inf, 1, -np.inf, np.inf]], np.float32)
    order = [int(text.split(":")[1]) for text in top_k(row, dtypes.FP32, 6, batched=True)[0]]
    assert order == [2, 5, 1, 3, 0, 4]


@pytest.mark.parametrize(
    ("dtype", "row", "texts"),
    [
        (dtypes.BOOL, [False, True], ["1:1", "0:0"]),
        (dtypes.UINT64, [2**64 - 1, 0], ["18446744073709551615:0", "0:1"]),
        (dtypes.INT64, [-(2**63), 2**63 - 1], ["9223372036854775807:1", "-9223372036854775808:0"]),
        (dtypes.UINT8, [0, 255], ["255:1", "0:0"]),
        (dtypes.FP16, [0.5, -0.5], ["0.500000:0", "-0.500000:1"]),
        (dtypes.BF16, [0x3F80, 0xC000], ["1.000000:0", "-2.000000:1"]),
    ],
    ids=lambda value: value.wire if isinstance(value, Dtype) else "",
)
def test_every_number_sorts_and_prints_as_what_it_is(dtype: Dtype, row: list[object], texts: list[str]) -> None:
    assert top_k(np.array([row], dtype.numpy), dtype, 2, batched=True).tolist() == [texts]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_no_rows_or_no_classes_give_none(shape: tuple[int, int]) -> None:
    assert top_k(np.zeros(shape, np.float32), dtypes.FP32, 2, batched=True).shape == (shape[0], min(2, shape[1]))


@given(
    values=st_numpy.arrays(np.int16, st_numpy.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=8)),
    k=st.integers(1, 12),
)
def test_it_is_what_sorting_says(values: np.ndarray, k: int) -> None:
    found = top_k(values, dtypes.INT16, k, batched=True)
    for row, texts in zip(values.reshape(len(values), int(np.prod(values.shape[1:]))), found, strict=True):
        expected = sorted(range(len(row)), key=lambda index: -int(row[index]))[:k]
        assert texts.tolist() == [f"{row[index]}:{index}" for index in expected]
