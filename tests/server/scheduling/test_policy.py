"""Who runs next: decided by plain values and a given time."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.errors import DeadlineExpired, TooLarge
from forwardpass_server.scheduling.cost import Cost, CostCurve
from forwardpass_server.scheduling.fake import make_request
from forwardpass_server.scheduling.policy import MAX_PASSED, Limits, QueueFull, admit, next_action, retry_after_s
from forwardpass_server.scheduling.request import Request

NOW = 1000.0


def request(
    rows: int = 1, *, key: str | None = None, deadline: float = inf, cancelled: bool = False, queued: float = NOW
) -> Request:
    made, responder = make_request([np.zeros((rows, 2), np.float32)], deadline=deadline)
    made.merge_key = key
    made.timeline.queued_ns = round(queued * 1e9)
    responder.cancelled = cancelled
    return made


def test_an_empty_queue_waits_for_a_newcomer() -> None:
    action = next_action([], NOW, Limits())
    assert (action.batch, action.dropped, action.seen, action.wait_s) == ([], [], 0, inf)


def test_a_single_request_runs_at_once() -> None:
    only = request()
    action = next_action([only], NOW, Limits())
    assert (action.batch, action.wait_s) == ([only], 0.0)


def test_what_waits_runs_together_up_to_the_limit_of_rows() -> None:
    waiting = [request(3), request(3), request(2), request(1)]
    action = next_action(waiting, NOW, Limits(max_rows=8))
    assert action.batch == waiting[:3]
    assert action.seen == 3


def test_a_request_that_does_not_fit_is_not_overtaken_by_one_that_would() -> None:
    waiting = [request(3), request(6), request(1)]
    assert next_action(waiting, NOW, Limits(max_rows=8)).batch == waiting[:1]


def test_a_request_larger_than_the_limit_runs_alone() -> None:
    waiting = [request(9), request(1)]
    assert next_action(waiting, NOW, Limits(max_rows=8)).batch == waiting[:1]


def test_a_model_that_is_not_batched_gets_one_request_a_run() -> None:
    waiting = [request(), request()]
    assert next_action(waiting, NOW, Limits(max_rows=0)).batch == waiting[:1]


def test_empty_requests_run_alone_first_or_not() -> None:
    empty, full = request(0), request(2)
    assert next_action([empty, full], NOW, Limits()).batch == [empty]
    action = next_action([full, empty, full], NOW, Limits())
    assert action.batch == [full, full]
    assert action.passed == [empty]


def test_shapes_that_differ_are_never_merged_and_the_passed_stay_in_order() -> None:
    a1, b1, a2, c1, b2 = (request(key=key) for key in "abacb")
    action = next_action([a1, b1, a2, c1, b2], NOW, Limits())
    assert action.batch == [a1, a2]
    assert action.passed == [b1, c1, b2]


def test_looking_for_mates_ends_somewhere() -> None:
    strangers = [request(key="b") for _ in range(MAX_PASSED + 10)]
    action = next_action([request(key="a"), *strangers, request(key="a")], NOW, Limits())
    assert len(action.batch) == 1
    assert len(action.passed) == MAX_PASSED


def test_the_expired_and_the_departed_are_dropped_and_the_rest_runs() -> None:
    late, gone, alive = request(deadline=NOW), request(cancelled=True), request(deadline=NOW + 0.001)
    action = next_action([late, gone, alive], NOW, Limits())
    assert action.dropped == [late, gone]
    assert action.batch == [alive]


def test_only_the_dead_wait() -> None:
    action = next_action([request(cancelled=True)], NOW, Limits())
    assert not action.batch
    assert len(action.dropped) == 1


class TestDelay:
    LIMITS = Limits(max_rows=4, max_delay_s=0.010)

    def test_a_small_batch_waits_for_the_rest_of_the_delay(self) -> None:
        action = next_action([request(queued=NOW - 0.004), request()], NOW, self.LIMITS)
        assert not action.seen
        assert action.wait_s == pytest.approx(0.006)

    def test_a_full_batch_does_not_wait(self) -> None:
        assert len(next_action([request(2), request(2)], NOW, self.LIMITS).batch) == 2

    def test_a_batch_that_the_next_request_would_overfill_does_not_wait(self) -> None:
        assert len(next_action([request(3), request(2)], NOW, self.LIMITS).batch) == 1

    def test_the_delay_ends(self) -> None:
        assert len(next_action([request(queued=NOW - 0.0101)], NOW, self.LIMITS).batch) == 1

    def test_no_delay_is_worth_a_deadline(self) -> None:
        assert len(next_action([request(deadline=NOW + 0.005)], NOW, self.LIMITS).batch) == 1


class TestAdmission:
    LIMITS = Limits(max_requests=2, max_bytes=100)

    def test_room_lets_in(self) -> None:
        admit(request(), NOW, 1, 92, self.LIMITS)

    @pytest.mark.parametrize(("waiting", "nbytes", "says"), [(2, 0, "2 requests"), (1, 93, "93 of 100 bytes")])
    def test_no_room_says_what_fills_it(self, waiting: int, nbytes: int, says: str) -> None:
        with pytest.raises(QueueFull, match=says):
            admit(request(), NOW, waiting, nbytes, self.LIMITS)

    def test_what_would_never_fit_is_too_large(self) -> None:
        with pytest.raises(TooLarge, match=r"104 bytes .* \(100 bytes\)"):
            admit(request(13), NOW, 0, 0, self.LIMITS)

    def test_a_passed_deadline_is_said_with_how_late_it_is(self) -> None:
        with pytest.raises(DeadlineExpired, match="passed 250 ms before"):
            admit(request(deadline=NOW - 0.25), NOW, 0, 0, self.LIMITS)


@pytest.mark.parametrize(("rows", "instances", "seconds"), [(16, 1, 0.02), (16, 2, 0.01), (0, 1, 0.001)])
def test_the_refused_may_come_back_when_half_the_queue_has_run(rows: int, instances: int, seconds: float) -> None:
    cost = CostCurve((Cost(8, 0.02, 0.02),))
    assert retry_after_s(rows, Limits(max_rows=8), cost, instances) == pytest.approx(seconds)


@pytest.mark.parametrize("wrong", [{"max_rows": -1}, {"max_requests": 0}, {"max_bytes": 0}, {"max_delay_s": -0.1}])
def test_senseless_limits_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]


REQUESTS = st.lists(
    st.builds(
        request,
        st.integers(0, 10),
        key=st.sampled_from(["a", "b", None]),
        deadline=st.sampled_from([NOW - 1, NOW, NOW + 0.001, inf]),
        cancelled=st.booleans(),
        queued=st.floats(NOW - 0.02, NOW),
    ),
    max_size=30,
)
LIMITS = st.builds(Limits, max_rows=st.integers(0, 12), max_delay_s=st.sampled_from([0.0, 0.01]))


@given(REQUESTS, LIMITS)
def test_whatever_waits_an_action_is_sound(waiting: list[Request], limits: Limits) -> None:
    action = next_action(waiting, NOW, limits)
    head = waiting[: action.seen]
    # nobody is lost, and nobody is in two places
    assert sorted(map(id, action.batch + action.dropped + action.passed)) == sorted(map(id, head))
    # nobody dead runs, and only the dead are dropped
    dead = [r for r in head if r.deadline <= NOW or r.responder.cancelled]
    assert action.dropped == dead
    # order is kept
    assert action.batch == [r for r in head if r in action.batch]
    assert action.passed == [r for r in head if r in action.passed]
    # one shape, within the limit unless alone, nobody beside an empty request
    assert len({r.merge_key for r in action.batch}) <= 1
    assert len(action.batch) <= 1 or (
        sum(r.rows for r in action.batch) <= limits.max_rows and all(r.rows > 0 for r in action.batch)
    )
    # nothing is held back without a reason: somebody alive runs, unless a delay is on
    alive = [r for r in waiting if r not in dead and r.deadline > NOW and not r.responder.cancelled]
    if alive and not limits.max_delay_s:
        assert action.batch[0] is alive[0]
    if not action.batch and not action.dropped:
        assert action.wait_s > 0
