"""The first runs: what a batch costs, whether rows may share one, and who may run on the loop thread."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.errors import ForwardpassError, RunFailed
from forwardpass_server.runtime.fake import FakeSession
from forwardpass_server.runtime.providers import resolve
from forwardpass_server.runtime.samples import DYNAMIC_SIZE, make_inputs
from forwardpass_server.runtime.session import Session
from forwardpass_server.runtime.warmup import (
    INLINE_BATCH_S,
    INLINE_LARGEST_S,
    INLINE_P99_S,
    RUNS,
    agree,
    buckets,
    inline_rows,
    probe_batching,
    repeat,
    warm,
)
from forwardpass_server.scheduling.cost import Cost, CostCurve
from forwardpass_server.scheduling.fake import FakeClock
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.tensors.dtypes import ALL, FP32, INT64
from forwardpass_server.tensors.signature import Signature, TensorSpec

Model = Callable[[str], Path]
BATCHED = Signature((TensorSpec("x", FP32, ("batch", 2)),), (TensorSpec("y", FP32, ("batch", 2)),), 64)
SINGLE = Signature((TensorSpec("x", FP32, (3, 2)),), (TensorSpec("y", FP32, (3, 2)),), 0)


def load(path: Path) -> tuple[Session, Signature]:
    signature = Signature.from_onnx(path)
    return Session(path, signature, resolve("cpu")), signature


def probe(path: Path) -> str | None:
    session, signature = load(path)
    return probe_batching(session.run, signature)


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [(0, (1,)), (1, (1,)), (2, (1, 2)), (64, (1, 2, 4, 8, 16, 32, 64)), (50, (1, 2, 4, 8, 16, 32, 50))],
)
def test_buckets_double_up_to_the_largest(max_rows: int, sizes: tuple[int, ...]) -> None:
    assert buckets(max_rows) == sizes


@given(st.integers(0, 2000))
def test_buckets_ascend_from_one_to_the_largest(max_rows: int) -> None:
    sizes = buckets(max_rows)
    assert sizes[0] == 1
    assert sizes[-1] == max(max_rows, 1)
    assert list(sizes) == sorted(set(sizes))


class Timed(FakeSession):
    """Takes a programmed time per run on a clock that jumps."""

    def __init__(self, clock: FakeClock, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.clock = clock
        self.seconds = seconds

    def run(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[int], _: Termination | None = None
    ) -> list[np.ndarray]:
        first = inputs[0]
        assert first is not None
        self.clock.advance(self.seconds(len(first)))
        return super().run(inputs, outputs)


def test_the_curve_is_what_runs_took() -> None:
    clock = FakeClock()
    session = Timed(clock, lambda rows: 1e-5 * rows)
    curve = warm(session.run, BATCHED, (1, 4), clock_ns=clock)
    assert [point.rows for point in curve.points] == [1, 4]
    assert [point.p50_s for point in curve.points] == pytest.approx([1e-5, 4e-5])
    assert [point.p99_s for point in curve.points] == pytest.approx([1e-5, 4e-5])


def test_a_slow_first_run_is_warm_up_and_one_bad_round_is_forgiven() -> None:
    clock = FakeClock()
    runs = iter(range(1000))
    session = Timed(clock, lambda _: 0.04 if (run := next(runs)) == 0 or run == RUNS // 2 else 1e-5)
    (point,) = warm(session.run, BATCHED, (1,), clock_ns=clock).points
    assert point.p99_s == pytest.approx(1e-5)


def test_a_model_that_is_always_slow_is_run_once_a_size() -> None:
    clock = FakeClock()
    session = Timed(clock, lambda _: 3.0)
    (one, two) = warm(session.run, BATCHED, (1, 2), clock_ns=clock).points
    assert (one.p50_s, two.p99_s) == (3.0, 3.0)
    assert len(session.runs) == 2


def test_an_example_is_repeated_to_every_size() -> None:
    session = FakeSession()
    warm(session.run, BATCHED, (1, 4), example=[np.array([[1, 2], [3, 4], [5, 6]], np.float32)])
    largest = session.runs[-1].inputs[0]
    assert largest is not None
    assert largest.tolist() == [[1, 2], [3, 4], [5, 6], [1, 2]]


def test_a_model_that_refuses_made_up_values_has_an_unknown_cost() -> None:
    session = FakeSession()
    session.fail_next = [RunFailed("wants real tokens")]
    assert warm(session.run, BATCHED, (1, 2)) == CostCurve()


def test_a_model_that_refuses_its_own_example_is_not_warm() -> None:
    session = FakeSession()
    session.fail_next = [RunFailed("broken")]
    with pytest.raises(RunFailed, match="broken"):
        warm(session.run, BATCHED, (1,), example=[np.ones((1, 2), np.float32)])


def test_a_model_that_runs_one_row_and_not_two_is_not_warm(model: Model) -> None:
    session, signature = load(model("reshape"))
    with pytest.raises(ForwardpassError, match="Reshape"):
        warm(session.run, signature, (1, 2))


def test_a_real_model_is_timed(model: Model) -> None:
    session, signature = load(model("mlp"))
    curve = warm(session.run, signature, buckets(64))
    assert [point.rows for point in curve.points] == [1, 2, 4, 8, 16, 32, 64]
    assert all(0 < point.p50_s <= point.p99_s < 1 for point in curve.points)


def curve(smallest_p99_s: float, *p50_s: float) -> CostCurve:
    sizes = (1, 8, 32, 64)
    return CostCurve(tuple(Cost(rows, s, max(s, smallest_p99_s)) for rows, s in zip(sizes, p50_s, strict=True)))


@pytest.mark.parametrize(
    ("measured", "max_rows", "rows"),
    [
        (curve(0, 1e-5, 1e-5, 1e-5, 1e-5), 64, 64),
        (curve(0, 1e-5, 1e-5, 1e-5, 1e-5), 8, 8),
        (curve(0, 1e-5, 1e-5, 1e-5, 1e-5), 0, 1),
        (curve(0, 5e-5, 1e-4, INLINE_BATCH_S, 9e-4), 64, 8),
        (curve(0, 5e-5, 2e-4, 1e-3, INLINE_LARGEST_S), 64, None),
        (curve(INLINE_P99_S, 1e-5, 1e-5, 1e-5, 1e-5), 64, None),
        (CostCurve(), 64, None),
    ],
)
def test_what_costs_less_than_a_hand_over_runs_inline_in_batches_that_hold_nobody_up(
    measured: CostCurve, max_rows: int, rows: int | None
) -> None:
    assert inline_rows(measured, max_rows, control_flow=False) == rows
    assert inline_rows(measured, max_rows, control_flow=True) is None


@pytest.mark.parametrize(
    "name", ["identity", "mlp", "two_by_two", "gather", "variable", "strings", "identity_bf16", "if"]
)
def test_rows_that_do_not_know_each_other_may_share_a_run(model: Model, name: str) -> None:
    assert probe(model(name)) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mean", "output 'y' of a row depends on the other rows"),
        ("one_row", "output 'y' does not have one row per row"),
        ("reshape", "trial of rows alone and together failed"),
        ("scalar", "do not share a dynamic first dimension"),
    ],
)
def test_rows_that_do_are_found_out_and_the_reason_is_said(model: Model, name: str, reason: str) -> None:
    assert reason in (probe(model(name)) or "")


def test_a_shape_that_depends_on_the_other_rows_is_found_out() -> None:
    session = FakeSession(lambda inputs: [np.zeros((len(inputs[0]), len(inputs[0])), np.float32)])  # type: ignore[arg-type]
    assert probe_batching(session.run, BATCHED) == "the shape of output 'y' depends on the other rows"


@pytest.mark.parametrize(("rows", "merged"), [(1, 2), (3, 3)])
def test_an_example_is_probed_with_its_own_rows(rows: int, merged: int) -> None:
    session = FakeSession()
    example = [np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)]
    assert probe_batching(session.run, BATCHED, example=example) is None
    assert [run.rows for run in session.runs] == [merged] + [1] * merged


def test_answers_may_differ_by_rounding_and_no_more() -> None:
    one = np.array([1.0, np.nan, 0.0], np.float32)
    assert agree(one, one * np.float32(1.0005), False)
    assert not agree(one, one * np.float32(1.002), False)
    assert agree(one, one * np.float32(1.002), True)
    assert not agree(np.array([1]), np.array([2]), False)
    assert agree(np.array(["a"], object), np.array(["a"], object), False)
    almost_one, one_and_a_half = np.array([0x3F80], np.uint16), np.array([0x3FC0], np.uint16)
    assert agree(almost_one, almost_one + np.uint16(1), True, bits=True)
    assert not agree(almost_one, one_and_a_half, True, bits=True)


def test_an_example_of_a_model_that_is_not_batched_stays_as_it_is() -> None:
    example = [np.ones((3, 2), np.float32)]
    assert repeat(example, SINGLE, 8)[0] is example[0]


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_made_up_inputs_fit_every_datatype(dtype: object) -> None:
    spec = TensorSpec("x", dtype, ("batch", None, "time", 3))  # type: ignore[arg-type]
    (array,) = make_inputs(Signature((spec,), (), 8), 5, np.random.default_rng(0))
    assert array is not None
    assert array.shape == (5, DYNAMIC_SIZE, DYNAMIC_SIZE, 3)
    assert array.dtype == spec.dtype.numpy


def test_made_up_rows_differ_and_optional_inputs_are_left_out() -> None:
    specs = (TensorSpec("x", FP32, ("batch", 4)), TensorSpec("mask", INT64, ("batch",), optional=True))
    x, mask = make_inputs(Signature(specs, (), 8), 5, np.random.default_rng(0))
    assert mask is None
    assert x is not None
    assert len(np.unique(x, axis=0)) == 5
