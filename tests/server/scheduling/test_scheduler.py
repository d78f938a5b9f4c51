"""A version's scheduler as the rest of the server sees it, on threads and inline."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwardpass_server.errors import (
    CallCancelled,
    DeadlineExpired,
    InvalidRequest,
    NotReady,
    Overloaded,
    RunFailed,
    Stopping,
)
from forwardpass_server.runtime.fake import FakeSession
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.fake import FakeClock, FakeResponder, make_request
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.request import Array, Inputs
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.scheduling.watchdog import Watchdog
from forwardpass_server.tensors.dtypes import FP32
from forwardpass_server.tensors.signature import Signature, TensorSpec

FIXED = Signature(
    inputs=(TensorSpec("x", FP32, ("batch", 2)),),
    outputs=(TensorSpec("y", FP32, ("batch", 2)), TensorSpec("z", FP32, ("batch", 2))),
    max_batch_size=8,
)
VARIABLE = Signature(
    inputs=(TensorSpec("x", FP32, ("batch", "time")),),
    outputs=(TensorSpec("y", FP32, ("batch", "time")),),
    max_batch_size=8,
)


def both(inputs: Inputs) -> list[Array]:
    """Two outputs: twice the input, and three times the input."""
    assert inputs[0] is not None
    return [inputs[0] * 2, inputs[0] * 3]


class Made:
    """A scheduler over a fake session, closed at the end of its test."""

    def __init__(
        self,
        *,
        signature: Signature = FIXED,
        inline: InlineLoop | None = None,
        clock: FakeClock | None = None,
        instances: int = 1,
        watchdog: Watchdog | None = None,
        finite: bool = False,
        **limits: float,
    ) -> None:
        self.session = FakeSession(both, poison=-1)
        self.clock = clock or FakeClock()
        self.scheduler = Scheduler(
            "m",
            [self.session.run] * instances,
            signature,
            limits=Limits(**{"max_rows": 8, **limits}),  # type: ignore[arg-type]
            inline=inline,
            watchdog=watchdog,
            finite=finite,
            clock_ns=self.clock,
        )

    def submit(
        self, value: float, width: int = 2, rows: int = 1, outputs: tuple[int, ...] = (0,), timeout_s: float = 1e6
    ) -> FakeResponder:
        array = np.full((rows, width), value, np.float32)
        request, caller = make_request([array], outputs=outputs, deadline=self.clock.now_s + timeout_s)
        self.scheduler.submit(request)
        return caller

    def block(self) -> FakeResponder:
        """Occupy the instance until `session.release()`."""
        self.session.hold()
        caller = self.submit(0)
        assert self.session.wait_runs(1)
        return caller


@pytest.fixture
def made() -> Iterator[Made]:
    made = Made()
    yield made
    made.session.release()
    assert made.scheduler.close()


def test_a_request_is_answered_on_the_instance_thread(made: Made) -> None:
    caller = made.submit(5).wait()
    assert caller.outputs
    np.testing.assert_array_equal(caller.outputs[0], np.full((1, 2), 10, np.float32))
    assert caller.thread == "m-0"


def test_a_hundred_behind_a_blocked_instance_are_thirteen_runs(made: Made) -> None:
    """Conformance 29."""
    made.block()
    callers = [made.submit(float(value)) for value in range(1, 101)]
    assert made.scheduler.depth == 100
    assert made.scheduler.queue_bytes == 800
    assert made.scheduler.inflight == 101
    made.session.release()
    for value, caller in enumerate(callers, 1):
        assert caller.wait().outputs
        assert caller.outputs is not None
        assert caller.outputs[0][0, 0] == 2 * value
    assert [run.rows for run in made.session.runs[1:]] == [8] * 12 + [4]
    assert made.scheduler.drain(10)
    account = made.scheduler.statistics.snapshot()
    assert (account.executions, account.outcomes["ok"]) == (14, 101)
    assert (made.scheduler.depth, made.scheduler.queue_bytes, made.scheduler.inflight) == (0, 0, 0)


def test_two_in_a_batch_ask_different_outputs_and_get_only_those(made: Made) -> None:
    """Conformance 30."""
    made.block()
    first, second, third = (made.submit(1, outputs=outputs) for outputs in ((0,), (1,), (1, 0)))
    made.session.release()
    answers = [[float(output[0, 0]) for output in caller.wait().outputs or ()] for caller in (first, second, third)]
    assert answers == [[2], [3], [3, 2]]
    assert [run.outputs for run in made.session.runs[1:]] == [(0, 1)]


def test_variable_shapes_that_arrive_together_are_never_merged() -> None:
    """Conformance 28."""
    made = Made(signature=VARIABLE)
    made.block()
    callers = [made.submit(float(i), width=2 + i % 3) for i in range(1, 10)]
    made.session.release()
    for i, caller in enumerate(callers, 1):
        assert caller.wait().outputs
        assert caller.outputs is not None
        np.testing.assert_array_equal(caller.outputs[0], np.full((1, 2 + i % 3), 2 * i, np.float32))
    assert [run.rows for run in made.session.runs[1:]] == [3, 3, 3]
    assert made.scheduler.close()


def test_who_leaves_the_queue_is_not_run_and_mates_do_not_notice(made: Made) -> None:
    """Conformance 20."""
    made.block()
    one, gone, two = made.submit(1), made.submit(77), made.submit(2)
    gone.cancelled = True
    made.session.release()
    assert one.wait().outputs
    assert two.wait().outputs
    assert isinstance(gone.wait().error, CallCancelled)
    assert all(77 not in np.asarray(run.inputs[0]) for run in made.session.runs)
    assert made.scheduler.statistics.snapshot().outcomes["canceled"] == 1


def test_who_expires_in_the_queue_is_never_run(made: Made) -> None:
    """Conformance 24."""
    made.block()
    late, patient = made.submit(77, timeout_s=0.001), made.submit(1)
    made.clock.advance(1)
    made.session.release()
    assert isinstance(late.wait().error, DeadlineExpired)
    assert patient.wait().outputs
    assert all(77 not in np.asarray(run.inputs[0]) for run in made.session.runs)
    assert made.scheduler.statistics.snapshot().outcomes["expired"] == 1


def test_the_one_too_many_is_refused_and_the_rest_are_served() -> None:
    """Conformance 25."""
    made = Made(max_requests=5)
    made.block()
    callers = [made.submit(1) for _ in range(5)]
    with pytest.raises(Overloaded, match="5 requests"):
        made.submit(1)
    made.session.release()
    assert all(caller.wait().outputs for caller in callers)
    assert made.scheduler.statistics.snapshot().outcomes["shed"] == 1
    assert made.scheduler.close()


def test_an_empty_request_gets_an_empty_answer(made: Made) -> None:
    """Conformance 10."""
    made.block()
    before, empty, after = made.submit(1), made.submit(0, rows=0), made.submit(2)
    made.session.release()
    outputs = empty.wait().outputs
    assert outputs
    assert outputs[0].shape == (0, 2)
    assert before.wait().outputs
    assert after.wait().outputs
    assert sorted(run.rows for run in made.session.runs[1:]) == [0, 2]


def test_poison_fails_alone_on_a_thread_that_goes_on(made: Made) -> None:
    made.block()
    good, bad = made.submit(1), made.submit(-1)
    made.session.release()
    assert good.wait().outputs
    assert isinstance(bad.wait().error, RunFailed)
    assert made.submit(3).wait().outputs


def test_two_instances_run_at_once() -> None:
    made = Made(instances=2, max_rows=1)
    made.session.hold()
    callers = [made.submit(1), made.submit(2)]
    assert made.session.wait_runs(2)
    made.session.release()
    assert all(caller.wait().outputs for caller in callers)
    assert {run.thread for run in made.session.runs} == {"m-0", "m-1"}
    assert made.scheduler.close()


def test_draining_waits_for_what_runs_and_refuses_nobody(made: Made) -> None:
    blocked = made.block()
    assert not made.scheduler.drain(0)
    late = made.submit(1)
    made.session.release()
    assert made.scheduler.drain(10)
    assert blocked.answers == late.answers == 1


def test_closing_fails_those_who_wait_and_lets_the_run_end() -> None:
    of_others = set(threading.enumerate())
    made = Made()
    running = made.block()
    waiting = made.submit(1)
    closed: list[bool] = []
    closing = threading.Thread(target=lambda: closed.append(made.scheduler.close(10)))
    closing.start()
    assert isinstance(waiting.wait().error, Stopping)
    with pytest.raises(NotReady):
        made.submit(2)
    made.session.release()
    closing.join(10)
    assert closed == [True]
    assert running.outputs
    assert not [thread for thread in set(threading.enumerate()) - of_others if thread.name == "m-0"]


def test_closing_ends_a_run_that_would_not_end() -> None:
    made = Made()
    stuck = made.block()
    assert made.scheduler.close(0.01)
    assert isinstance(stuck.wait().error, Stopping)


def test_a_run_that_does_not_even_end_when_told_to_is_reported() -> None:
    deaf, begun = threading.Event(), threading.Event()

    def run(inputs: Inputs, _outputs: object, _termination: object = None) -> list[np.ndarray]:
        begun.set()
        deaf.wait(30)
        return both(inputs)[:1]

    scheduler = Scheduler("m", [run], FIXED, limits=Limits())
    request, caller = make_request([np.ones((1, 2), np.float32)])
    scheduler.submit(request)
    assert begun.wait(10)
    assert scheduler.close(0.01) is False
    deaf.set()
    assert caller.wait().outputs
    assert scheduler.close()


def test_an_idle_instance_holds_nothing_of_its_last_batch() -> None:
    gone = threading.Event()

    def run(inputs: Inputs, _outputs: object, _termination: object = None) -> list[np.ndarray]:
        return both(inputs)[:1]

    scheduler = Scheduler("m", [run], FIXED, limits=Limits())
    request, caller = make_request([np.ones((1, 2), np.float32)])
    watch = weakref.ref(request.inputs[0], lambda _: gone.set())
    scheduler.submit(request)
    assert caller.wait().outputs
    caller.request = None
    del request, caller
    assert gone.wait(10), "its tensors are held until the next batch comes"
    assert watch() is None
    assert scheduler.close()


class TestDeparture:
    def test_out_of_the_queue_at_once(self, made: Made) -> None:
        made.block()
        staying, leaving = made.submit(1), made.submit(2)
        leaving.leave()
        assert isinstance(leaving.error, CallCancelled)
        assert (made.scheduler.depth, made.scheduler.inflight) == (1, 2)
        made.session.release()
        assert staying.wait().outputs
        assert [run.rows for run in made.session.runs] == [1, 1]

    def test_a_run_goes_on_while_one_rider_is_left_and_ends_with_the_last(self, made: Made) -> None:
        blocker = made.block()
        riders = [made.submit(1), made.submit(2)]
        blocker.leave()
        assert isinstance(blocker.wait().error, CallCancelled)
        assert made.session.wait_runs(2)
        riders[0].leave()
        assert not riders[0].answers, "the run goes on for the other, so nothing is known of it yet"
        riders[1].leave()
        assert [type(rider.wait().error) for rider in riders] == [CallCancelled] * 2
        assert made.scheduler.drain(10)
        assert made.scheduler.statistics.snapshot().outcomes["canceled"] == 3

    def test_one_that_leaves_because_its_time_is_up_has_expired(self, made: Made) -> None:
        made.block()
        leaving = made.submit(2, timeout_s=0.005)
        leaving.leave()
        assert isinstance(leaving.error, DeadlineExpired)
        assert made.scheduler.statistics.snapshot().outcomes["expired"] == 1


def test_the_watchdog_ends_a_run_over_the_limit_and_no_other() -> None:
    clock = FakeClock()
    watchdog = Watchdog(2.0, clock)
    made = Made(clock=clock, watchdog=watchdog)
    stuck = made.block()
    clock.advance(1.9)
    watchdog.look()
    assert not stuck.answers
    clock.advance(0.2)
    watchdog.look()
    watchdog.look()
    assert isinstance(stuck.wait().error, DeadlineExpired)
    assert "ended after 2 s (--max-run-s)" in str(stuck.error)
    made.session.release()
    assert made.submit(1).wait().outputs
    watchdog.look()
    assert made.scheduler.close()
    assert not watchdog.watched


def test_the_watchdogs_thread_looks_by_itself_and_ends() -> None:
    clock = FakeClock()
    watchdog = Watchdog(0.01, clock)
    made = Made(clock=clock, watchdog=watchdog)
    stuck = made.block()
    clock.advance(0.02)
    watchdog.start()
    assert isinstance(stuck.wait().error, DeadlineExpired)
    watchdog.stop()
    made.session.release()
    assert made.scheduler.close()


@pytest.mark.parametrize("finite", [True, False])
def test_only_the_request_whose_answer_is_not_finite_fails_where_that_is_asked_for(finite: bool) -> None:
    made = Made(finite=finite)
    made.block()
    good, bad, infinite = made.submit(1), made.submit(np.nan), made.submit(np.inf)
    made.session.release()
    assert good.wait().outputs
    for caller in (bad.wait(), infinite.wait()):
        assert isinstance(caller.error, InvalidRequest) if finite else caller.outputs
    assert made.scheduler.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "submit", "submit", "leave", "time"]),
            st.integers(0, 50),
            st.sampled_from([0.002, 0.05, 5.0]),
        ),
        max_size=60,
    ),
    st.integers(1, 3),
)
def test_whatever_happens_every_request_is_answered_once(steps: list[tuple[str, int, float]], instances: int) -> None:
    """With real threads, a clock that jumps, callers who leave, and values that poison their run."""
    made = Made(instances=instances, max_requests=20, max_rows=4)
    callers: list[FakeResponder] = []
    for kind, which, seconds in steps:
        if kind == "time":
            made.clock.advance(seconds)
        elif kind == "leave" and callers:
            callers[which % len(callers)].leave()
        elif kind == "submit":
            with contextlib.suppress(Overloaded, DeadlineExpired):
                callers.append(made.submit(-1 if which == 7 else float(which), timeout_s=seconds))
    assert made.scheduler.drain(20)
    assert [caller.answers for caller in callers] == [1] * len(callers)
    assert made.scheduler.close()


class TestInline:
    def test_nothing_runs_until_the_loop_is_idle_and_then_on_its_thread(self) -> None:
        loop = InlineLoop()
        made = Made(inline=loop)
        callers = [made.submit(float(value)) for value in range(3)]
        assert not made.session.runs
        assert loop.run_ready()
        assert [run.rows for run in made.session.runs] == [3]
        assert {caller.thread for caller in callers} == {threading.current_thread().name}
        assert not loop.run_ready()
        assert made.scheduler.close()

    def test_a_flooded_model_gets_one_batch_a_turn(self) -> None:
        loop = InlineLoop()
        flooded, calm = Made(inline=loop), Made(inline=loop)
        for _ in range(20):
            flooded.submit(1)
        answer = calm.submit(1)
        assert loop.run_ready()
        assert answer.outputs
        assert len(flooded.session.runs) == 1
        turns = 1
        while loop.run_ready():
            turns += 1
        assert turns == 3
        assert [run.rows for run in flooded.session.runs] == [8, 8, 4]
        assert flooded.scheduler.close()
        assert calm.scheduler.close()

    def test_closing_fails_those_who_wait_and_a_late_turn_finds_nothing(self) -> None:
        loop = InlineLoop()
        made = Made(inline=loop)
        waiting = made.submit(1)
        assert made.scheduler.close()
        assert isinstance(waiting.error, Stopping)
        loop.run_ready()
        assert waiting.answers == 1
        assert not made.session.runs

    def test_only_the_dead_wait(self) -> None:
        loop = InlineLoop()
        made = Made(inline=loop)
        gone = made.submit(1)
        gone.cancelled = True
        assert loop.run_ready()
        assert isinstance(gone.error, CallCancelled)
        assert not made.session.runs
        assert made.scheduler.close()

    def test_neither_a_delay_nor_several_instances_fit_the_loop_thread(self) -> None:
        with pytest.raises(AssertionError, match="batch-mates"):
            Made(inline=InlineLoop(), max_delay_s=0.001)
        with pytest.raises(ValueError, match="2 instances"):
            Made(inline=InlineLoop(), instances=2)


def test_a_storm_of_callers_who_leave_is_answered_once_each() -> None:
    """Conformance 22: cancellation races with every stage; each request ends exactly once."""
    made = Made(max_requests=100_000)
    callers: list[FakeResponder] = []
    leavers: SimpleQueue[FakeResponder | None] = SimpleQueue()

    def leave() -> None:
        while (caller := leavers.get()) is not None:
            caller.cancelled = True

    leaving = threading.Thread(target=leave)
    leaving.start()
    for value in range(2000):
        callers.append(made.submit(float(value)))
        if value % 3 == 0:
            leavers.put(callers[-1])
    leavers.put(None)
    leaving.join(30)
    assert made.scheduler.drain(30)
    assert [caller.answers for caller in callers] == [1] * 2000
    for value, caller in enumerate(callers):
        if caller.outputs:
            assert caller.outputs[0][0, 0] == 2 * value
        else:
            assert isinstance(caller.error, CallCancelled)
    outcomes = made.scheduler.statistics.snapshot().outcomes
    assert outcomes["ok"] + outcomes["canceled"] == 2000
    assert made.scheduler.close()
