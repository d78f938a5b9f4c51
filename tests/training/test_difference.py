"""How far apart two arrays are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forwardpass_training.difference import Array, difference

values = st.floats(-1e6, 1e6, width=32)
pairs = hnp.array_shapes(max_dims=3, max_side=4, min_side=0).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=values)] * 2)
)


@given(pairs=pairs, atol=st.just(0.0) | st.floats(1e-9, 10), rtol=st.just(0.0) | st.floats(1e-9, 1))
def test_it_passes_exactly_what_numpy_calls_close(pairs: tuple[Array, Array], atol: float, rtol: float) -> None:
    got, expected = (array.astype(np.float64) for array in pairs)
    found = difference(got, expected, atol=atol, rtol=rtol)
    assert (found.failure is None) == np.allclose(got, expected, atol=atol, rtol=rtol)
    if atol > 0:
        assert found.tolerance_used is not None
        assert found.tolerance_used <= 1 or found.failure
    assert found.max_abs_error == (np.abs(got - expected).max() if got.size else 0.0)


@pytest.mark.parametrize(
    ("got", "expected", "failure"),
    [
        ([np.nan], [1.0], r"got nan, expected 1 at \[0\]"),
        ([np.nan], [np.nan], "got nan, expected nan"),
        ([1.0], [np.nan], "got 1, expected nan"),
        ([np.inf], [-np.inf], "got inf, expected -inf"),
        ([1e38], [np.inf], "expected inf"),
        ([[0.0, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.25]], r"got 0.5, expected 0.25 at \[1\]\[1\]: the error 0.25"),
        ([1.0, 2.0], [1.0], r"got float32 \[2\], expected float32 \[1\]"),
        ([], [[]], r"got float32 \[0\], expected float32 \[1, 0\]"),
    ],
)
def test_a_failure_says_the_values(got: list[float], expected: list[float], failure: str) -> None:
    found = difference(np.array(got, np.float32), np.array(expected, np.float32), atol=0.1, rtol=0.1)
    assert found.failure is not None
    with pytest.raises(AssertionError, match=failure):
        raise AssertionError(found.failure)


def test_equal_infinities_are_equal() -> None:
    minus_infinity = np.array([-np.inf, 1.0], np.float32)  # a masked logit
    assert difference(minus_infinity, minus_infinity, atol=0.0, rtol=0.0).failure is None


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint8])
def test_integers_and_booleans_have_no_tolerance(dtype: type[np.generic]) -> None:
    one, zero = np.ones(2, dtype), np.zeros(2, dtype)
    assert difference(one, one, atol=5.0, rtol=5.0).failure is None
    assert difference(one, zero, atol=5.0, rtol=5.0).failure is not None


def test_another_dtype_is_a_failure() -> None:
    assert difference(np.zeros(1, np.float64), np.zeros(1, np.float32), atol=1.0, rtol=1.0).failure == (
        "got float64 [1], expected float32 [1]"
    )


def test_the_worst_value_is_the_one_furthest_beyond_its_own_tolerance() -> None:
    found = difference(np.array([1001.0, 0.5]), np.array([1000.0, 0.0]), atol=0.0, rtol=0.01)
    assert found.max_abs_error == 1.0
    assert found.failure is not None
    assert found.failure.startswith("got 0.5, expected 0 at [1]")


def test_relative_error_does_not_speak_near_zero() -> None:
    found = difference(np.array([1e-9, 1.5]), np.array([1e-12, 1.0]), atol=1e-5, rtol=1.0)
    assert found.max_rel_error == 0.5
