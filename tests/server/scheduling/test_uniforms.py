"""Random numbers by seed."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from forwardpass_server.scheduling.uniforms import Uniforms


def drawn(seed: int, sizes: list[int]) -> np.ndarray:
    uniforms, parts = Uniforms(seed), []
    for size in sizes:
        parts.append(np.full(size, np.nan, np.float32))
        uniforms.fill(parts[-1])
    return np.concatenate(parts)


@given(seed=st.integers(-(2**63), 2**63 - 1), sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_how_they_are_drawn_changes_nothing(seed: int, sizes: list[int]) -> None:
    apart, whole = drawn(seed, sizes), drawn(seed, [sum(sizes)])
    assert np.array_equal(apart, whole)
    assert ((whole >= 0) & (whole < 1)).all()


def test_they_are_the_same_for_ever() -> None:
    """Texts that were written with a seed can be had again by the next release. Here times 2^24, which is exact."""
    assert (drawn(7, [5]) * 2.0**24).tolist() == [14630964, 4955408, 7048069, 6801353, 1389869]


@pytest.mark.parametrize(("a", "b"), [(1, 2), (0, -1), (2**63 - 1, -(2**63))])
def test_seeds_differ(a: int, b: int) -> None:
    assert not np.array_equal(drawn(a, [8]), drawn(b, [8]))


def test_they_are_spread_evenly() -> None:
    counts, _ = np.histogram(drawn(3, [100_000]), bins=10, range=(0, 1))
    assert abs(counts - 10_000).max() < 500  # five deviations
