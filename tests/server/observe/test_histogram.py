"""Buckets, sums, and the shortcut for a batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.observe.histogram import LATENCY_BOUNDS_S, NS, Histogram


def test_bounds_are_inclusive_and_shown_in_their_own_unit() -> None:
    histogram = Histogram((0.001, 0.25, 10.0), NS)
    for nanoseconds in (1_000_000, 1_000_001, 250_000_000, 10_000_000_001):
        histogram.observe(nanoseconds)
    assert histogram.cumulative() == [("0.001", 1), ("0.25", 3), ("10.0", 3), ("+Inf", 4)]
    assert histogram.sum == pytest.approx(10.252000002)


def test_one_value_may_count_for_many() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(2, times=5)
    assert histogram.cumulative() == [("1.0", 0), ("2.0", 5), ("+Inf", 5)]
    assert histogram.sum == 10


@given(st.lists(st.integers(0, 20 * NS), min_size=1, max_size=40))
def test_a_batch_counts_as_its_values_do(values: list[int]) -> None:
    together, alone = Histogram(LATENCY_BOUNDS_S, NS), Histogram(LATENCY_BOUNDS_S, NS)
    together.observe_all(values)
    for value in values:
        alone.observe(value)
    assert together.cumulative() == alone.cumulative()
    assert together.sum == alone.sum
