"""Queue policies: how long a request may wait, how many may, and what becomes of those who waited too long."""

from math import inf
from typing import Any

import numpy as np
import pytest

from forwardpass_server.errors import DeadlineExpired, Overloaded
from forwardpass_server.scheduling.fake import FakeClock, FakeResponder, make_request
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.queue import SWEEP_INTERVAL_NS, RequestQueue
from forwardpass_server.scheduling.queue_policy import QueuePolicies, QueuePolicy
from forwardpass_server.scheduling.request import Request
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

ROW = np.zeros((1, 2), np.float32)


def queue(clock: FakeClock, policies: QueuePolicies, **limits: Any) -> RequestQueue:
    return RequestQueue("m", Limits(policies=policies, **({"max_rows": 1} | limits)), clock_ns=clock)


def put(into: RequestQueue, **given: Any) -> tuple[Request, FakeResponder]:
    request, responder = make_request([ROW], **given)
    into.submit(request)
    return request, responder


def took(waiting: RequestQueue) -> tuple[list[Request], list[Request]]:
    action = waiting.take_nowait()
    return (action.batch, action.dropped) if action else ([], [])


def test_who_waited_too_long_is_dropped_and_never_run() -> None:
    clock = FakeClock()
    waiting = queue(clock, QueuePolicies(QueuePolicy(timeout_s=0.01)))
    late, _ = put(waiting)
    clock.advance(0.005)
    fresh, _ = put(waiting)
    clock.advance(0.006)
    assert took(waiting) == ([fresh], [late])


def test_who_waited_too_long_runs_last_of_its_priority_where_that_is_the_policy() -> None:
    clock = FakeClock()
    delays = QueuePolicies(QueuePolicy(timeout_s=0.01, delays=True))
    waiting = queue(clock, delays, priorities=2, default_priority=1)
    late, _ = put(waiting, priority=1)
    low, _ = put(waiting, priority=2)
    clock.advance(0.02)
    fresh, _ = put(waiting, priority=1)
    assert [took(waiting)[0] for _ in range(3)] == [[fresh], [late], [low]]
    assert waiting.take_nowait() is None


@pytest.mark.parametrize(
    ("policy", "asked_s", "dies_after_s"),
    [
        (QueuePolicy(timeout_s=1.0), 0.1, 1.0),
        (QueuePolicy(timeout_s=1.0, callers_may_shorten=True), 0.1, 0.1),
        (QueuePolicy(timeout_s=1.0, callers_may_shorten=True), 5.0, 1.0),
        (QueuePolicy(), 0.1, 0.1),
        (QueuePolicy(callers_may_shorten=True), 0.1, 0.1),
    ],
    ids=["not heeded", "shortened", "never lengthened", "no policy: a deadline", "no timeout to shorten: a deadline"],
)
def test_a_callers_timeout_may_shorten_where_it_may_and_never_lengthen(
    policy: QueuePolicy, asked_s: float, dies_after_s: float
) -> None:
    clock = FakeClock()
    waiting = queue(clock, QueuePolicies(policy))
    request, _ = put(waiting, timeout_s=asked_s)
    clock.advance(dies_after_s - 0.001)
    assert request not in waiting.take_nowait().dropped  # type: ignore[union-attr]
    again, _ = put(waiting, timeout_s=asked_s)
    clock.advance(dies_after_s + 0.001)
    assert took(waiting) == ([], [again])


def test_each_priority_has_a_room_of_its_own() -> None:
    policies = QueuePolicies(QueuePolicy(max_requests=1), {2: QueuePolicy(max_requests=2)})
    waiting = queue(FakeClock(), policies, priorities=2, default_priority=1)
    put(waiting, priority=1)
    put(waiting, priority=2)
    put(waiting, priority=2)
    for priority, size in ((1, 1), (2, 2), (0, 1)):
        with pytest.raises(Overloaded, match=rf"full for priority {priority or 1} \({size} requests\)"):
            put(waiting, priority=priority)
    waiting.take_nowait()
    put(waiting, priority=1)


def test_the_late_make_room_for_newcomers() -> None:
    clock = FakeClock()
    waiting = queue(clock, QueuePolicies(QueuePolicy(timeout_s=0.01, max_requests=1)))
    late, _ = put(waiting)
    clock.now_ns += SWEEP_INTERVAL_NS + 10_000_000
    fresh, _ = put(waiting)
    assert took(waiting) == ([fresh], [late])


def test_the_delayed_keep_their_place_in_a_full_room() -> None:
    clock = FakeClock()
    waiting = queue(clock, QueuePolicies(QueuePolicy(timeout_s=0.01, delays=True, max_requests=1)))
    put(waiting)
    clock.now_ns += SWEEP_INTERVAL_NS + 10_000_000
    with pytest.raises(Overloaded):
        put(waiting)
    assert waiting.depth == 1


def test_a_callers_deadline_holds_beside_any_policy() -> None:
    clock = FakeClock()
    waiting = queue(clock, QueuePolicies(QueuePolicy(timeout_s=1.0, delays=True)))
    late, _ = put(waiting, deadline=clock.now_s + 0.1)
    clock.advance(0.2)
    assert took(waiting) == ([], [late])


def test_the_dropped_are_told_that_it_was_the_policy() -> None:
    clock = FakeClock()
    signature = Signature((TensorSpec("x", dtypes.FP32, ("b", 2)),), (TensorSpec("y", dtypes.FP32, ("b", 2)),), 1)
    limits = Limits(max_rows=1, policies=QueuePolicies(QueuePolicy(timeout_s=0.01)))

    def run(inputs: Any, outputs: Any, termination: Any = None, /) -> list[np.ndarray]:
        clock.advance(0.05)
        return [inputs[0]]

    scheduler = Scheduler("m", [run], signature, limits=limits, clock_ns=clock)
    try:
        answers = []
        for _ in range(20):
            request, responder = make_request([ROW])
            scheduler.submit(request)
            answers.append(responder)
        errors = [responder.wait().error for responder in answers]
    finally:
        assert scheduler.close()
    dropped = [error for error in errors if error is not None]
    assert dropped
    assert {type(error) for error in dropped} == {DeadlineExpired}
    assert all("more than the model's queue policy allows" in str(error) for error in dropped)
    assert scheduler.statistics.snapshot().fail.count == len(dropped)


@pytest.mark.parametrize("wrong", [{"max_requests": 0}, {"timeout_s": 0.0}, {"timeout_s": -1.0}])
def test_a_policy_that_lets_nobody_in_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QueuePolicy(**wrong)


def test_the_policy_that_says_nothing_is_plain() -> None:
    assert QueuePolicies().plain
    assert QueuePolicies(QueuePolicy(timeout_s=inf)).plain
    assert not QueuePolicies(of_priority={1: QueuePolicy()}).plain
