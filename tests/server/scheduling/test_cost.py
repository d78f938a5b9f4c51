"""What runs cost: measured, corrected in service, and what it says about the size of batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.scheduling.cost import LEARNING_RATE, OUTLIER_RATIO, Cost, CostCurve, ServedCost

CURVE = CostCurve((Cost(1, 0.010, 0.011), Cost(4, 0.016, 0.02), Cost(8, 0.020, 0.03)))


def curve(*rows_a_second: tuple[int, float]) -> CostCurve:
    return CostCurve(tuple(Cost(rows, rows / rate, rows / rate) for rows, rate in rows_a_second))


@pytest.mark.parametrize(
    ("measured", "useful"),
    [
        (curve((1, 27.4), (2, 27.0), (8, 29.8), (32, 29.0), (64, 29.7)), 1),  # ResNet-18 on one core
        (curve((1, 18_400), (8, 40_900), (32, 47_500), (64, 50_700)), 32),  # a small CNN
        (curve((1, 97_500), (8, 870_000), (32, 5.2e6), (64, 8.5e6)), 64),  # a perceptron
        (curve((1, 100), (2, 50), (4, 300)), 4),  # one bad size before the best
    ],
)
def test_a_batch_is_as_large_as_it_brings_rows_a_second(measured: CostCurve, useful: int) -> None:
    assert measured.useful_rows(64) == useful


def test_a_limit_below_the_best_size_holds_and_nothing_known_means_the_limit() -> None:
    assert curve((1, 10), (8, 80), (64, 640)).useful_rows(8) == 8
    assert CostCurve().useful_rows(64) == 64


def test_points_out_of_order_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        CostCurve((Cost(4, 1, 1), Cost(1, 1, 1)))


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(0, 0.010), (1, 0.010), (2, 0.012), (3, 0.014), (4, 0.016), (6, 0.018), (8, 0.020), (16, 0.040)],
)
def test_seconds_are_measured_interpolated_or_in_proportion(rows: int, seconds: float) -> None:
    assert ServedCost(CURVE).seconds(rows) == pytest.approx(seconds)


def test_where_nothing_was_measured_the_first_run_is_the_figure() -> None:
    cost = ServedCost(CostCurve())
    assert (cost.known, cost.seconds(8)) == (False, 0.0)
    cost.observe(4, 0.1)
    assert cost.known
    assert [cost.seconds(rows) for rows in (1, 4, 8)] == pytest.approx([0.1, 0.1, 0.2])


def test_a_run_corrects_its_own_size_and_no_other() -> None:
    cost = ServedCost(CURVE)
    cost.observe(4, 0.016 * 1.5)
    assert cost.seconds(4) == pytest.approx(0.016 * (1 + LEARNING_RATE * 0.5))
    assert [cost.seconds(rows) for rows in (1, 8)] == [0.010, 0.020]


def test_a_run_between_two_sizes_corrects_both() -> None:
    cost = ServedCost(CURVE)
    cost.observe(6, 0.018 * 2)
    assert [cost.seconds(rows) for rows in (1, 4, 6, 8)] == pytest.approx([0.010, 0.0192, 0.0216, 0.024])


def test_one_stall_of_a_minute_teaches_little() -> None:
    cost = ServedCost(CURVE)
    cost.observe(1, 60.0)
    assert cost.seconds(1) == pytest.approx(0.010 * (1 + LEARNING_RATE * (OUTLIER_RATIO - 1)))


@given(st.integers(1, 8), st.floats(0.2, 5.0))
def test_a_machine_of_another_speed_is_learnt_in_thirty_runs(rows: int, slower: float) -> None:
    cost = ServedCost(CURVE)
    truth = CURVE.points[-1].p50_s * slower
    for _ in range(30):
        cost.observe(rows, truth)
    assert cost.seconds(rows) == pytest.approx(truth, rel=0.15)


def test_a_clock_that_stands_still_breaks_nothing() -> None:
    cost = ServedCost(CostCurve())
    for rows in (4, 1, 4, 2):
        cost.observe(rows, 0.0)
    assert 0 <= cost.seconds(4) < 1e-6
