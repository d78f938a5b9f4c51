"""The waiting room: bounds, order, the dead, and who wakes whom."""

import threading
from math import inf

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from forwardpass_server.errors import DeadlineExpired, NotReady, Overloaded, TooLarge
from forwardpass_server.scheduling.cost import Cost, CostCurve
from forwardpass_server.scheduling.fake import FakeClock, FakeResponder, make_request
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.queue import SWEEP_INTERVAL_NS, RequestQueue
from forwardpass_server.scheduling.request import Request

ROW = np.zeros((1, 2), np.float32)


def queue(clock: FakeClock, **limits: float) -> RequestQueue:
    cost = CostCurve((Cost(1, 0.02, 0.02),))
    return RequestQueue("mnist", Limits(**limits), cost=cost, clock_ns=clock)  # type: ignore[arg-type]


def put(into: RequestQueue, **given: float) -> tuple[Request, FakeResponder]:
    request, responder = make_request([ROW], **given)  # type: ignore[arg-type]
    into.submit(request)
    return request, responder


def test_a_full_queue_names_the_model_its_size_and_when_to_retry() -> None:
    waiting = queue(FakeClock(), max_requests=4, max_rows=1)
    for _ in range(4):
        put(waiting)
    with pytest.raises(Overloaded, match=r"queue of 'mnist' is full \(4 requests\); retry after 40 ms") as refused:
        put(waiting)
    assert refused.value.retry_after_s == pytest.approx(0.04)
    assert waiting.depth == 4


def test_bytes_bound_the_queue_too() -> None:
    waiting = queue(FakeClock(), max_bytes=20)
    put(waiting)
    put(waiting)
    with pytest.raises(Overloaded, match="16 of 20 bytes"):
        put(waiting)
    with pytest.raises(TooLarge):
        waiting.submit(make_request([np.zeros((3, 2), np.float32)])[0])
    assert waiting.nbytes == 16


def test_taking_makes_room_at_once() -> None:
    waiting = queue(FakeClock(), max_requests=1)
    put(waiting)
    assert waiting.take_nowait()
    assert (waiting.depth, waiting.nbytes, waiting.running) == (0, 0, 1)
    put(waiting)


def test_a_newcomer_takes_the_place_of_one_who_left() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_requests=2)
    _, gone = put(waiting)
    staying, _ = put(waiting)
    gone.cancelled = True
    newcomer, _ = put(waiting)
    action = waiting.take_nowait()
    assert action
    assert action.batch == [staying, newcomer]
    assert [r.responder for r in action.dropped] == [gone]


def test_a_full_queue_is_not_searched_for_every_newcomer() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_requests=1)
    _, first = put(waiting)
    with pytest.raises(Overloaded):
        put(waiting)
    first.cancelled = True
    with pytest.raises(Overloaded):
        put(waiting)
    clock.now_ns += SWEEP_INTERVAL_NS
    put(waiting)


def test_the_late_are_refused_at_the_door() -> None:
    clock = FakeClock()
    with pytest.raises(DeadlineExpired):
        put(queue(clock), deadline=clock.now_s - 0.001)


def test_a_closed_queue_refuses_and_empties() -> None:
    waiting = queue(FakeClock())
    request, _ = put(waiting)
    waiting.close()
    with pytest.raises(NotReady, match="mnist"):
        put(waiting)
    action = waiting.take()
    assert action
    assert action.batch == [request]
    assert waiting.take() is None


def test_clearing_hands_out_everybody_and_leaves_nothing() -> None:
    waiting = queue(FakeClock(), max_requests=2)
    _, gone = put(waiting)
    put(waiting)
    gone.cancelled = True
    put(waiting)
    assert len(waiting.clear()) == 3
    assert (waiting.depth, waiting.nbytes, waiting.running) == (0, 0, 0)
    assert waiting.wait_idle(0)


def test_a_sleeping_taker_is_woken_by_a_request_and_by_closing() -> None:
    waiting = RequestQueue("m", Limits())
    taken: list[object] = []
    taker = threading.Thread(target=lambda: taken.extend([waiting.take(), waiting.take()]))
    taker.start()
    put(waiting)
    waiting.close()
    taker.join(10)
    assert not taker.is_alive()
    assert taken[0] is not None
    assert taken[1] is None


def test_a_taker_that_waits_for_mates_takes_them_when_they_come() -> None:
    waiting = RequestQueue("m", Limits(max_rows=2, max_delay_s=3600))
    batches: list[int] = []

    def take() -> None:
        action = waiting.take()
        assert action
        batches.append(len(action.batch))

    taker = threading.Thread(target=take)
    put(waiting)
    taker.start()
    put(waiting)
    taker.join(10)
    assert batches == [2]


def test_idle_means_nobody_waits_and_nobody_runs() -> None:
    waiting = queue(FakeClock())
    assert waiting.wait_idle(0)
    put(waiting)
    assert not waiting.wait_idle(0)
    action = waiting.take_nowait()
    assert action
    assert not waiting.wait_idle(0)
    waiting.finished(action, ran_whole=True)
    assert waiting.wait_idle(0)


def test_the_earliest_deadline_runs_first_and_equals_in_order_of_arrival() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_rows=1)
    late, patient, soon, late_too = (
        put(waiting, **given)[0]
        for given in ({"deadline": clock.now_s + 5}, {}, {"deadline": clock.now_s + 3}, {"deadline": clock.now_s + 5})
    )
    assert order_of(waiting) == [soon, late, late_too, patient]


def test_priority_goes_before_any_deadline() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_rows=1, priorities=2, default_priority=2)
    hurried, important, unknown = (
        put(waiting, **given)[0]
        for given in ({"deadline": clock.now_s + 1}, {"priority": 1}, {"deadline": clock.now_s + 2, "priority": 7})
    )
    assert order_of(waiting) == [important, hurried, unknown]


def test_a_model_with_a_promised_latency_gives_its_callers_that_deadline() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_latency_s=0.5)
    assert put(waiting)[0].deadline == pytest.approx(clock.now_s + 0.5)
    assert put(waiting, deadline=clock.now_s + 0.1)[0].deadline == pytest.approx(clock.now_s + 0.1)


def test_a_request_that_could_not_be_answered_in_time_is_refused_with_both_times() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_rows=1)  # 20 ms a row
    for _ in range(4):
        put(waiting, deadline=clock.now_s + 0.118)
    # 4 x 20 ms, by a quarter longer, and its own: 120 ms.
    with pytest.raises(
        Overloaded, match=r"'mnist' \(4 requests\) leaves no time: .* in 120 ms, .* in 119 ms; retry"
    ) as no:
        put(waiting, deadline=clock.now_s + 0.119)
    assert no.value.retry_after_s == pytest.approx(0.04)


def test_a_departed_request_leaves_at_once_and_only_once() -> None:
    waiting = queue(FakeClock())
    staying, leaving = put(waiting)[0], put(waiting)[0]
    action = waiting.take_departed(leaving)
    assert action
    assert (action.dropped, waiting.depth, waiting.nbytes, waiting.running) == ([leaving], 1, 8, 1)
    assert waiting.take_departed(leaving) is None
    assert not waiting.wait_idle(0)
    waiting.finished(action, ran_whole=False)
    assert order_of(waiting) == [staying]
    assert waiting.wait_idle(0)


def test_what_runs_teach_changes_what_is_admitted() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_rows=1)
    for _ in range(40):  # ten times as long as warm-up said
        put(waiting)
        action = waiting.take_nowait()
        assert action
        clock.advance(0.2)
        waiting.finished(action, ran_whole=True)
    put(waiting, deadline=clock.now_s + 0.3)
    with pytest.raises(Overloaded, match="leaves no time"):
        put(waiting, deadline=clock.now_s + 0.3)


def test_a_run_in_progress_counts_by_what_is_left_of_it() -> None:
    clock = FakeClock()
    waiting = queue(clock, max_rows=1)
    put(waiting)
    assert waiting.take_nowait()
    with pytest.raises(Overloaded, match="leaves no time"):
        put(waiting, deadline=clock.now_s + 0.03)
    clock.advance(0.015)
    put(waiting, deadline=clock.now_s + 0.03)


def order_of(waiting: RequestQueue) -> list[Request]:
    """Everybody who waits, in the order of their runs of one row."""
    ran = []
    while (action := waiting.take_nowait()) is not None:
        ran += action.batch
        waiting.finished(action, ran_whole=False)
    return ran


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: nobody is lost, handed out twice or run after its deadline; bounds hold, and
    among equal priority and deadline so does the order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        limits = Limits(max_rows=4, max_requests=6, max_bytes=80, priorities=2, default_priority=1)
        cost = CostCurve((Cost(1, 0.002, 0.002), Cost(4, 0.004, 0.004)))
        self.queue = RequestQueue("m", limits, cost=cost, clock_ns=self.clock)
        self.run_s = 0.001
        self.admitted: list[Request] = []
        self.out: list[Request] = []
        self.ran: list[Request] = []

    @rule(
        rows=st.integers(0, 5),
        key=st.sampled_from("ab"),
        timeout=st.sampled_from([0.0, 0.005, 0.02, 1.0, inf]),
        priority=st.integers(0, 3),
    )
    def submit(self, rows: int, key: str, timeout: float, priority: int) -> None:
        request, _ = make_request(
            [np.zeros((rows, 2), np.float32)], deadline=self.clock.now_s + timeout, priority=priority
        )
        request.merge_key = key
        try:
            self.queue.submit(request)
        except (Overloaded, DeadlineExpired):
            return
        self.admitted.append(request)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.05]))
    def runs_take(self, seconds: float) -> None:
        self.run_s = seconds

    @rule(which=st.integers(0, 100))
    def leave_and_be_heard(self, which: int) -> None:
        inside = [request for request in self.admitted if request not in self.out]
        if inside:
            leaving = inside[which % len(inside)]
            leaving.responder.cancelled = True  # type: ignore[misc]
            action = self.queue.take_departed(leaving)
            if action:
                self.out += action.dropped
                self.queue.finished(action, ran_whole=False)

    @rule(which=st.integers(0, 100))
    def leave(self, which: int) -> None:
        inside = [request for request in self.admitted if request not in self.out]
        if inside:
            inside[which % len(inside)].responder.cancelled = True  # type: ignore[misc]

    @rule(seconds=st.sampled_from([0.001, 0.01, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def take(self) -> None:
        action = self.queue.take_nowait()
        if action is None:
            assert not self.queue.depth
            return
        for request in action.batch:
            assert request.deadline > self.clock.now_s
            assert not request.responder.cancelled
        self.ran += action.batch
        self.out += action.batch + action.dropped
        self.clock.advance(self.run_s)
        self.queue.finished(action, ran_whole=bool(action.batch))

    @invariant()
    def the_books_balance(self) -> None:
        assert len(set(map(id, self.out))) == len(self.out)
        assert set(map(id, self.out)) <= set(map(id, self.admitted))
        inside = [request for request in self.admitted if request not in self.out]
        assert self.queue.depth <= min(len(inside), 6)
        assert 0 <= self.queue.nbytes <= 80
        places: dict[object, list[int]] = {}
        for request in self.ran:
            if request.rows:
                places.setdefault((request.merge_key, request.rank), []).append(self.admitted.index(request))
        assert all(order == sorted(order) for order in places.values())

    def teardown(self) -> None:
        while self.queue.depth:
            self.take()
        self.out += self.queue.clear()
        assert len(self.out) == len(self.admitted)
        assert (self.queue.depth, self.queue.nbytes, self.queue.running) == (0, 0, 0)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
