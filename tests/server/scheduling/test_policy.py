"""Who runs next: decided by plain values and a given time."""

from collections.abc import Sequence
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.errors import DeadlineExpired, TooLarge
from forwardpass_server.scheduling.cost import Cost, CostCurve, ServedCost
from forwardpass_server.scheduling.fake import make_request
from forwardpass_server.scheduling.policy import (
    MAX_PASSED,
    PATIENCE_S,
    WAIT_MARGIN,
    Action,
    Limits,
    Load,
    QueueFull,
    admit,
    finish_s,
    next_action,
    rank,
    retry_after_s,
    seconds_per_row,
)
from forwardpass_server.scheduling.request import Request

NOW = 1000.0
UNKNOWN = ServedCost(CostCurve())
TENTHS = ServedCost(CostCurve((Cost(1, 0.1, 0.1), Cost(2, 0.11, 0.11), Cost(4, 0.14, 0.14), Cost(8, 0.2, 0.2))))
"""0.1 s for one row, 0.2 s for eight."""


def request(
    rows: int = 1, *, key: str | None = None, deadline: float = inf, cancelled: bool = False, queued: float = NOW
) -> Request:
    made, responder = make_request([np.zeros((rows, 2), np.float32)], deadline=deadline)
    made.merge_key = key
    made.timeline.queued_ns = round(queued * 1e9)
    responder.cancelled = cancelled
    return made


def take(waiting: Sequence[Request], limits: Limits = Limits(), cost: ServedCost = UNKNOWN) -> Action:  # noqa: B008
    return next_action(waiting, NOW, limits, cost)


def test_an_empty_queue_waits_for_a_newcomer() -> None:
    action = take([], Limits())
    assert (action.batch, action.dropped, action.seen, action.wait_s) == ([], [], 0, inf)


def test_a_single_request_runs_at_once() -> None:
    only = request()
    action = take([only], Limits())
    assert (action.batch, action.wait_s) == ([only], 0.0)


def test_what_waits_runs_together_up_to_the_limit_of_rows() -> None:
    waiting = [request(3), request(3), request(2), request(1)]
    action = take(waiting, Limits(max_rows=8))
    assert action.batch == waiting[:3]
    assert action.seen == 3


def test_a_request_that_does_not_fit_is_not_overtaken_by_one_that_would() -> None:
    waiting = [request(3), request(6), request(1)]
    assert take(waiting, Limits(max_rows=8)).batch == waiting[:1]


def test_a_request_larger_than_the_limit_runs_alone() -> None:
    waiting = [request(9), request(1)]
    assert take(waiting, Limits(max_rows=8)).batch == waiting[:1]


def test_a_model_that_is_not_batched_gets_one_request_a_run() -> None:
    waiting = [request(), request()]
    assert take(waiting, Limits(max_rows=0)).batch == waiting[:1]


def test_empty_requests_run_alone_first_or_not() -> None:
    empty, full = request(0), request(2)
    assert take([empty, full], Limits()).batch == [empty]
    action = take([full, empty, full], Limits())
    assert action.batch == [full, full]
    assert action.passed == [empty]


def test_shapes_that_differ_are_never_merged_and_the_passed_stay_in_order() -> None:
    a1, b1, a2, c1, b2 = (request(key=key) for key in "abacb")
    action = take([a1, b1, a2, c1, b2], Limits())
    assert action.batch == [a1, a2]
    assert action.passed == [b1, c1, b2]


def test_looking_for_mates_ends_somewhere() -> None:
    strangers = [request(key="b") for _ in range(MAX_PASSED + 10)]
    action = take([request(key="a"), *strangers, request(key="a")], Limits())
    assert len(action.batch) == 1
    assert len(action.passed) == MAX_PASSED


def test_the_expired_and_the_departed_are_dropped_and_the_rest_runs() -> None:
    late, gone, alive = request(deadline=NOW), request(cancelled=True), request(deadline=NOW + 0.001)
    action = take([late, gone, alive], Limits())
    assert action.dropped == [late, gone]
    assert action.batch == [alive]


def test_only_the_dead_wait() -> None:
    action = take([request(cancelled=True)], Limits())
    assert not action.batch
    assert len(action.dropped) == 1


class TestDelay:
    LIMITS = Limits(max_rows=4, max_delay_s=0.010)

    def test_a_small_batch_waits_for_the_rest_of_the_delay(self) -> None:
        action = take([request(queued=NOW - 0.004), request()], self.LIMITS)
        assert not action.seen
        assert action.wait_s == pytest.approx(0.006)

    def test_a_full_batch_does_not_wait(self) -> None:
        assert len(take([request(2), request(2)], self.LIMITS).batch) == 2

    def test_a_batch_that_the_next_request_would_overfill_does_not_wait(self) -> None:
        assert len(take([request(3), request(2)], self.LIMITS).batch) == 1

    def test_the_delay_ends(self) -> None:
        assert len(take([request(queued=NOW - 0.0101)], self.LIMITS).batch) == 1

    def test_no_delay_is_worth_a_deadline(self) -> None:
        assert len(take([request(deadline=NOW + 0.005)], self.LIMITS).batch) == 1


class TestDeadlines:
    """With `TENTHS`: what a batch costs decides who may ride in it."""

    def test_a_batch_is_no_larger_than_its_earliest_deadline_holds(self) -> None:
        waiting = [request(deadline=NOW + 0.125), *(request(deadline=NOW + 5) for _ in range(7))]
        assert take(waiting, Limits(max_rows=8), TENTHS).batch == waiting[:3]

    def test_deadlines_far_off_let_it_grow(self) -> None:
        waiting = [request(deadline=NOW + 0.21) for _ in range(9)]
        assert len(take(waiting, Limits(max_rows=8), TENTHS).batch) == 8

    def test_one_in_a_greater_hurry_further_back_counts_too(self) -> None:
        """It stands there by its priority."""
        waiting = [request(deadline=NOW + 9), request(deadline=NOW + 0.115), request(deadline=NOW + 9)]
        assert take(waiting, Limits(max_rows=8), TENTHS).batch == waiting[:2]

    def test_the_doomed_are_dropped_where_their_run_would_doom_the_next(self) -> None:
        doomed, next_one = request(deadline=NOW + 0.05), request(deadline=NOW + 0.12)
        action = take([doomed, next_one], Limits(max_rows=1), TENTHS)
        assert (action.dropped, action.batch) == ([doomed], [next_one])

    def test_the_doomed_are_tried_where_nobody_waits_behind_them(self) -> None:
        doomed = request(deadline=NOW + 0.05)
        assert take([doomed], Limits(max_rows=1), TENTHS).batch == [doomed]

    def test_the_certainly_late_are_never_tried(self) -> None:
        late = request(deadline=NOW + 0.05)
        assert take([late], Limits(max_rows=1, shortest_run_s=0.05), TENTHS).dropped == [late]

    def test_a_delay_leaves_time_for_the_run(self) -> None:
        limits = Limits(max_rows=8, max_delay_s=0.01)
        assert take([request(deadline=NOW + 0.105)], limits, TENTHS).batch
        assert take([request(deadline=NOW + 0.115)], limits, TENTHS).wait_s == pytest.approx(0.01)


class TestRank:
    def test_priority_then_deadline(self) -> None:
        limits = Limits(priorities=2, default_priority=2)
        order = [(1, NOW + 9), (1, NOW + 10), (2, NOW + 1), (0, NOW + 2), (3, NOW + 3), (2, inf)]
        made = [make_request([np.zeros((1, 2))], priority=p, deadline=d)[0] for p, d in order]
        assert sorted(made, key=lambda r: rank(r, NOW, limits)) == made

    def test_without_levels_every_priority_is_alike(self) -> None:
        hurried, lazy = (make_request([np.zeros((1, 2))], priority=p)[0] for p in (1, 9))
        assert rank(hurried, NOW, Limits()) == rank(lazy, NOW, Limits()) == (0, False, NOW + PATIENCE_S)


class TestAdmission:
    LIMITS = Limits(max_requests=2, max_bytes=100, max_rows=8)

    def admit(
        self,
        load: Load,
        *,
        rows: int = 1,
        nbytes: int = 8,
        left_s: float = inf,
        cost: ServedCost = TENTHS,
        **more: float,
    ) -> None:
        limits = Limits(**{"max_requests": 100, "max_bytes": 100, "max_rows": 8, **more})  # type: ignore[arg-type]
        admit(rows, nbytes, NOW + left_s, NOW, load, limits, cost)

    def test_room_lets_in(self) -> None:
        self.admit(Load(99, 92))

    @pytest.mark.parametrize(
        ("waiting", "nbytes", "says"), [(100, 0, "full .100 requests"), (1, 93, "full .93 of 100 bytes")]
    )
    def test_no_room_says_what_fills_it(self, waiting: int, nbytes: int, says: str) -> None:
        with pytest.raises(QueueFull, match=says):
            self.admit(Load(waiting, nbytes))

    def test_what_would_never_fit_is_too_large(self) -> None:
        with pytest.raises(TooLarge, match=r"104 bytes .* \(100 bytes\)"):
            self.admit(Load(0, 0), nbytes=104)

    def test_a_passed_deadline_is_said_with_how_late_it_is(self) -> None:
        with pytest.raises(DeadlineExpired, match="passed 250 ms before"):
            self.admit(Load(0, 0), left_s=-0.25)

    def test_a_deadline_nearer_than_any_run_is_said_with_both(self) -> None:
        with pytest.raises(DeadlineExpired, match="in 30 ms, and one run of the model takes 50 ms"):
            self.admit(Load(0, 0), left_s=0.03, shortest_run_s=0.05)

    def test_an_idle_model_tries_what_may_be_late(self) -> None:
        """Or else a cost that was overestimated once would never be corrected."""
        self.admit(Load(0, 0), left_s=0.06, shortest_run_s=0.05)

    def test_behind_full_batches_and_a_run_in_progress(self) -> None:
        load = Load(16, 8, rows_ahead=16, busy_s=0.1)  # 0.1 s left of a run, two full batches, then its own
        needed_s = (0.1 + 2 * 0.2) * WAIT_MARGIN + 0.1
        assert finish_s(1, 16, load, self.LIMITS, TENTHS) == pytest.approx(needed_s)
        self.admit(load, left_s=needed_s + 0.001)
        with pytest.raises(QueueFull, match=r"16 requests.* in 725 ms.* in 724 ms"):
            self.admit(load, left_s=needed_s - 0.001)

    def test_two_instances_clear_it_in_half_the_time(self) -> None:
        load = Load(32, 8, rows_ahead=32, instances=2)
        assert finish_s(1, 32, load, self.LIMITS, TENTHS) == pytest.approx(2 * 0.2 * WAIT_MARGIN + 0.1)

    def test_nothing_is_refused_for_a_cost_that_nobody_knows(self) -> None:
        self.admit(Load(99, 8, rows_ahead=99, busy_s=1), left_s=0.001, cost=UNKNOWN)

    def test_no_deadline_waits_for_any_length(self) -> None:
        self.admit(Load(99, 8, rows_ahead=9999, busy_s=60))

    def test_whoever_was_promised_its_time_keeps_it(self) -> None:
        # One row of 0.1 s a run. The one behind needs 0.125 + 0.1 after the newcomer, and has 0.2 s.
        promised = request(deadline=NOW + 0.2)
        with pytest.raises(QueueFull, match="promised"):
            self.admit(Load(1, 8, behind=[promised]), left_s=0.15, max_rows=1)
        self.admit(Load(1, 8, behind=[request(deadline=NOW + 0.3)]), left_s=0.15, max_rows=1)
        self.admit(Load(1, 8, behind=[request()]), left_s=0.15, max_rows=1)


@pytest.mark.parametrize(("rows", "instances", "seconds"), [(16, 1, 0.02), (16, 2, 0.01), (0, 1, 0.001)])
def test_the_refused_may_come_back_when_half_the_queue_has_run(rows: int, instances: int, seconds: float) -> None:
    cost = ServedCost(CostCurve((Cost(8, 0.02, 0.02),)))
    assert retry_after_s(rows, Limits(max_rows=8), cost, instances) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_rows": -1},
        {"max_requests": 0},
        {"max_bytes": 0},
        {"max_delay_s": -0.1},
        {"max_latency_s": 0},
        {"default_priority": 1},
    ],
)
def test_senseless_limits_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]


REQUESTS = st.lists(
    st.builds(
        request,
        st.integers(0, 10),
        key=st.sampled_from(["a", "b", None]),
        deadline=st.sampled_from([NOW - 1, NOW, NOW + 0.001, NOW + 0.12, NOW + 0.25, inf]),
        cancelled=st.booleans(),
        queued=st.floats(NOW - 0.02, NOW),
    ),
    max_size=30,
)
LIMITS = st.builds(
    Limits,
    max_rows=st.integers(0, 12),
    max_delay_s=st.sampled_from([0.0, 0.01]),
    shortest_run_s=st.sampled_from([0.0, 0.002]),
)
COSTS = st.sampled_from([UNKNOWN, TENTHS])


@given(REQUESTS, LIMITS, COSTS)
def test_whatever_waits_an_action_is_sound(waiting: list[Request], limits: Limits, cost: ServedCost) -> None:
    action = take(waiting, limits, cost)
    head = waiting[: action.seen]
    # nobody is lost, and nobody is in two places
    assert sorted(map(id, action.batch + action.dropped + action.passed)) == sorted(map(id, head))
    # nobody dead runs; dropped are the dead, and those who would be late and make others late
    dead = [r for r in head if r.deadline - NOW <= limits.shortest_run_s or r.responder.cancelled]
    doomed = [r for r in head if r.deadline - NOW < cost.seconds(r.rows)]
    assert not set(action.batch) & set(dead)
    assert set(dead) - set(action.passed) <= set(action.dropped) <= set(dead) | set(doomed)
    # order is kept
    assert action.batch == [r for r in head if r in action.batch]
    assert action.passed == [r for r in head if r in action.passed]
    # one shape, within the limit unless alone, nobody beside an empty request
    assert action.rows == sum(r.rows for r in action.batch)
    assert len({r.merge_key for r in action.batch}) <= 1
    assert len(action.batch) <= 1 or (action.rows <= limits.max_rows and all(r.rows > 0 for r in action.batch))
    # nobody was let in who makes another late
    if len(action.batch) > 1:
        assert cost.seconds(action.rows) <= min(r.deadline for r in action.batch) - NOW
    # nothing is held back without a reason: somebody alive runs, unless a delay is on
    gone = set(dead) | set(action.dropped)
    alive = [
        r for r in waiting if r not in gone and r.deadline - NOW > limits.shortest_run_s and not r.responder.cancelled
    ]
    if alive and not limits.max_delay_s:
        assert action.batch[0] is alive[0]
    if not action.batch and not action.dropped:
        assert action.wait_s > 0


@pytest.mark.parametrize(
    ("max_rows", "slo_s", "ms_a_row"),
    [
        (64, inf, 14 / 64),  # 4 ms of preparation, and 10 ms of rows
        (64, 0.100, 14 / 64),
        (64, 0.020, 9 / 32),  # twice 14 ms would be late; twice 9 is not
        (64, 0.001, 4.15625),  # not even one row keeps it; the model is what it is
        (0, inf, 4.15625),  # never two in a run
    ],
)
def test_a_row_costs_what_it_costs_in_the_largest_batch_that_keeps_the_promise(
    max_rows: int, slo_s: float, ms_a_row: float
) -> None:
    points = tuple(Cost(rows, 0.004 + rows * 0.01 / 64, 1.0) for rows in (1, 8, 32, 64))
    limits = Limits(max_rows=max_rows, max_latency_s=slo_s)
    assert seconds_per_row(limits, ServedCost(CostCurve(points))) == pytest.approx(ms_a_row * 1e-3)


def test_a_row_costs_nothing_that_is_known_before_anything_was_measured() -> None:
    assert seconds_per_row(Limits(), ServedCost(CostCurve())) == 0
