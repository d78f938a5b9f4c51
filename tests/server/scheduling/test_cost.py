"""The cost curve between, below and above what was measured."""

import pytest

from forwardpass_server.scheduling.cost import UNMEASURED_RUN_S, Cost, CostCurve

CURVE = CostCurve((Cost(1, 0.010, 0.011), Cost(4, 0.016, 0.02), Cost(8, 0.020, 0.03)))


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(0, 0.010), (1, 0.010), (2, 0.012), (3, 0.014), (4, 0.016), (6, 0.018), (8, 0.020), (16, 0.040)],
)
def test_seconds_are_measured_interpolated_or_in_proportion(rows: int, seconds: float) -> None:
    assert CURVE.seconds(rows) == pytest.approx(seconds)


def test_without_measurements_a_run_has_a_nominal_cost() -> None:
    assert CostCurve().seconds(64) == UNMEASURED_RUN_S


@pytest.mark.parametrize(("rows", "seconds"), [(0, 0.0), (8, 0.020), (20, 0.056), (3, 0.014)])
def test_clearing_a_queue_takes_full_batches_and_a_rest(rows: int, seconds: float) -> None:
    assert CURVE.clear_s(rows, max_rows=8) == pytest.approx(seconds)


def test_a_model_that_is_not_batched_clears_one_by_one() -> None:
    assert CURVE.clear_s(5, max_rows=0) == pytest.approx(0.050)


def test_points_out_of_order_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        CostCurve((Cost(4, 1, 1), Cost(1, 1, 1)))
