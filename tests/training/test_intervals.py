"""Intervals hold the truth as often as they say, and never leave the range of their metric."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_training import metrics
from forwardpass_training.intervals import Array, bootstrap, intervals, wilson

approx = pytest.approx


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe 1998, table I, method 3
    for hits, rows, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, rows) == approx((low, high), abs=5e-5)


@given(rows=st.integers(1, 100_000), share=st.floats(0, 1))
def test_wilson_holds_the_share_and_stays_a_share(rows: int, share: float) -> None:
    hits = round(rows * share)
    low, high = wilson(hits, rows)
    assert 0 <= low <= hits / rows <= high <= 1
    assert low < high


def test_wilson_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    for hits, rows in ((0, 1), (1, 1), (983, 1000), (9_857, 10_000)):
        theirs = binomtest(hits, rows).proportion_ci(0.95, "wilson")
        assert wilson(hits, rows) == approx((theirs.low, theirs.high))


def test_a_bootstrapped_mean_is_as_uncertain_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    low, high = bootstrap(10_000, lambda rows: {"mean": float(values[rows].mean())})["mean"]
    assert (high - low) / 2 == approx(1.96 * values.std() / 100, rel=0.15)
    assert low < values.mean() < high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Known law: F1 and AUC of a million rows are the truth; about 95 of 100 samples of 200 rows must hold it."""
    generator = np.random.default_rng(1)

    def sample(rows: int) -> tuple[Array, Array]:
        targets = generator.integers(2, size=rows)
        return 1 / (1 + np.exp(-generator.normal(2 * targets - 1, 1.5))), targets

    truth = metrics.binary(*sample(1_000_000))
    held = dict.fromkeys(("accuracy", "f1", "roc_auc", "log_loss"), 0)
    for _ in range(25):
        found = intervals("binary", *sample(200))
        for name in held:
            low, high = found[name]
            held[name] += low <= truth[name] <= high
    assert min(held.values()) >= 20


def test_equal_rows_give_equal_intervals() -> None:
    answers = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    targets = np.arange(50) % 3
    assert intervals("multiclass", answers, targets) == intervals("multiclass", answers, targets)
    assert "ece" not in intervals("multiclass", answers, targets)


def test_a_text_is_drawn_by_pieces_since_neighbours_share_their_fate() -> None:
    """Each nat repeated 500 times tells no more than once."""
    nats = np.repeat(np.random.default_rng(0).exponential(size=40), 500)
    low, high = intervals("language", nats, nats < 1)["nats_per_character"]
    assert (high - low) / 2 == approx(1.96 * nats.std() / np.sqrt(40), rel=0.3)
    assert intervals("language", nats[:10], nats[:10] < 1).keys() >= {"perplexity", "accuracy"}


@pytest.mark.parametrize("rows", [1, 2])
def test_hardly_any_rows_have_intervals_too(rows: int) -> None:
    numbers = np.arange(rows, dtype=float)[:, None]
    assert intervals("regression", numbers, numbers)["r2"] == (1, 1)
    assert intervals("binary", numbers[:, 0], np.zeros(rows, np.int64))["accuracy"][1] <= 1
    assert intervals("multiclass", np.eye(3)[:rows], np.zeros(rows, np.int64)).keys() >= {"accuracy", "f1_macro"}
