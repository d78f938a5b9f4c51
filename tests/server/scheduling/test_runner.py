"""One batch from taken to answered: the guilty fail, their mates do not, and everybody is answered once."""

from collections.abc import Sequence
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.errors import CallCancelled, DeadlineExpired, InvalidRequest, RunFailed
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.runtime.fake import FakeSession
from forwardpass_server.scheduling.fake import FakeClock, FakeResponder, make_request
from forwardpass_server.scheduling.request import Array, Inputs, Request
from forwardpass_server.scheduling.runner import Run, Runner
from forwardpass_server.scheduling.termination import Termination

POISON = -1.0


def batch_of(values: Sequence[float], clock: FakeClock) -> tuple[list[Request], list[FakeResponder]]:
    pairs = [make_request([np.full((1, 2), value, np.float32)]) for value in values]
    for request, _ in pairs:
        request.timeline.received_ns = request.timeline.queued_ns = clock()
    return [request for request, _ in pairs], [responder for _, responder in pairs]


def runner_of(run: Run, clock: FakeClock) -> tuple[Runner, VersionStatistics]:
    statistics = VersionStatistics(clock)
    return Runner(run, statistics, clock), statistics


def test_a_batch_is_one_run_and_everybody_gets_their_row() -> None:
    clock, session = FakeClock(), FakeSession()
    runner, statistics = runner_of(session.run, clock)
    requests, callers = batch_of([1, 2, 3], clock)
    runner.run(requests)
    assert [float(caller.outputs[0][0, 0]) for caller in callers if caller.outputs] == [2, 4, 6]
    assert len(session.runs) == 1
    account = statistics.snapshot()
    assert (account.outcomes["ok"], account.rows, account.executions) == (3, 3, 1)


def test_stamps_are_set_on_the_way() -> None:
    clock = FakeClock()

    def run(inputs: Inputs, outputs: Sequence[int], _: Termination | None = None) -> list[Array]:
        clock.advance(0.25)
        assert inputs[0] is not None
        return [inputs[0]]

    runner, statistics = runner_of(run, clock)
    requests, _ = batch_of([1], clock)
    clock.advance(0.5)
    runner.run(requests)
    stages = requests[0].timeline.stages_ns()
    assert (stages["queue"], stages["run"]) == (500_000_000, 250_000_000)
    account = statistics.snapshot()
    assert (account.queue.ns, account.compute_infer.ns) == (500_000_000, 250_000_000)
    assert account.success.ns == 750_000_000


@pytest.mark.parametrize("guilty", range(8))
def test_one_poisoned_request_fails_alone_within_the_bound_of_runs(guilty: int) -> None:
    clock = FakeClock()
    session = FakeSession(poison=POISON, error=InvalidRequest("index out of range"))
    runner, statistics = runner_of(session.run, clock)
    requests, callers = batch_of([POISON if i == guilty else float(i) for i in range(8)], clock)
    runner.run(requests)
    for index, caller in enumerate(callers):
        assert caller.answers == 1
        if index == guilty:
            assert isinstance(caller.error, InvalidRequest)
        else:
            assert caller.outputs
            assert caller.outputs[0][0, 0] == 2 * index
    assert len(session.runs) <= 2 * log2(8) + 1
    assert sum(run.rows for run in session.runs) <= 3 * 8
    account = statistics.snapshot()
    assert (account.outcomes["ok"], account.outcomes["invalid"], account.outcomes["failed"]) == (7, 1, 0)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_any_pattern_of_poison_fails_exactly_the_poisoned(poisoned: list[bool]) -> None:
    clock, session = FakeClock(), FakeSession(poison=POISON)
    runner, statistics = runner_of(session.run, clock)
    requests, callers = batch_of([POISON if bad else 1.0 for bad in poisoned], clock)
    runner.run(requests)
    assert [caller.answers for caller in callers] == [1] * len(callers)
    assert [isinstance(caller.error, RunFailed) for caller in callers] == poisoned
    assert len(session.runs) <= max(2 * len(poisoned) - 1, 1)
    account = statistics.snapshot()
    assert account.outcomes["failed"] == sum(poisoned)
    assert account.executions + account.failed_executions == len(session.runs)


def test_a_fault_that_passes_blames_nobody() -> None:
    clock, session = FakeClock(), FakeSession()
    session.fail_next = [RunFailed("out of memory, this once")]
    runner, _ = runner_of(session.run, clock)
    requests, callers = batch_of([1, 2, 3, 4, 5], clock)
    runner.run(requests)
    assert all(caller.outputs for caller in callers)


def test_who_leaves_or_expires_while_halves_are_run_is_not_run_again() -> None:
    clock, session = FakeClock(), FakeSession(poison=POISON)
    requests, callers = batch_of([POISON, 1, 2, 3], clock)
    requests[3].deadline = clock.now_s + 0.5

    def run(inputs: Inputs, outputs: Sequence[int], _: Termination | None = None) -> list[Array]:
        callers[2].cancelled = True
        clock.advance(1)
        return session.run(inputs, outputs)

    runner, statistics = runner_of(run, clock)
    runner.run(requests)
    assert isinstance(callers[0].error, RunFailed)
    assert callers[1].outputs
    assert isinstance(callers[2].error, CallCancelled)
    assert isinstance(callers[3].error, DeadlineExpired)
    again = [value for run in session.runs[1:] for value in np.asarray(run.inputs[0])[:, 0].tolist()]
    assert not {2.0, 3.0} & set(again)
    outcomes = statistics.snapshot().outcomes
    assert (outcomes["failed"], outcomes["ok"], outcomes["canceled"], outcomes["expired"]) == (1, 1, 1, 1)


def test_who_left_during_the_run_gets_no_outputs_and_mates_do() -> None:
    """Conformance 21: the result is dropped, nothing else happens."""
    clock = FakeClock()
    requests, callers = batch_of([1, 2], clock)

    def run(inputs: Inputs, outputs: Sequence[int], _: Termination | None = None) -> list[Array]:
        callers[0].cancelled = True
        assert inputs[0] is not None
        return [inputs[0]]

    runner, statistics = runner_of(run, clock)
    runner.run(requests)
    assert isinstance(callers[0].error, CallCancelled)
    assert callers[1].outputs
    assert callers[1].outputs[0][0, 0] == 2
    outcomes = statistics.snapshot().outcomes
    assert (outcomes["ok"], outcomes["canceled"]) == (1, 1)


def test_the_dropped_are_told_why_and_counted() -> None:
    clock, session = FakeClock(), FakeSession()
    runner, statistics = runner_of(session.run, clock)
    requests, (late, gone) = batch_of([1, 2], clock)
    gone.cancelled = True
    requests[0].deadline = clock.now_s + 0.2
    clock.advance(0.3)
    runner.drop(requests)
    assert isinstance(late.error, DeadlineExpired)
    assert "300 ms in the queue; the model was not run" in str(late.error)
    assert isinstance(gone.error, CallCancelled)
    assert not session.runs
    outcomes = statistics.snapshot().outcomes
    assert (outcomes["expired"], outcomes["canceled"]) == (1, 1)


def test_an_exception_that_no_session_should_raise_fails_the_request_and_not_the_thread() -> None:
    def run(inputs: Inputs, outputs: Sequence[int], _: Termination | None = None) -> list[Array]:
        raise ZeroDivisionError("a bug")

    clock = FakeClock()
    runner, _ = runner_of(run, clock)
    requests, callers = batch_of([1, 2], clock)
    runner.run(requests)
    assert all(isinstance(caller.error, RunFailed) and "a bug" in str(caller.error) for caller in callers)


def test_an_answer_that_cannot_be_sent_fails_its_request_alone() -> None:
    class Stubborn(FakeResponder):
        def succeed(self, outputs: Sequence[Array], request: Request) -> None:
            raise MemoryError("no room to encode")

    clock, session = FakeClock(), FakeSession()
    runner, statistics = runner_of(session.run, clock)
    requests, callers = batch_of([1, 2], clock)
    requests[0].responder = stubborn = Stubborn()
    runner.run(requests)
    assert isinstance(stubborn.error, MemoryError)
    assert callers[1].outputs
    account = statistics.snapshot()
    assert (account.outcomes["ok"], account.outcomes["failed"], account.success.count) == (1, 1, 1)


def test_an_answer_that_does_not_fit_the_callers_memory_is_its_own_fault_and_no_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Small(FakeResponder):
        def succeed(self, outputs: Sequence[Array], request: Request) -> None:
            raise InvalidRequest("output 'y' has 16 bytes; its part has 8")

    clock, session = FakeClock(), FakeSession()
    runner, statistics = runner_of(session.run, clock)
    requests, callers = batch_of([1, 2], clock)
    requests[0].responder = small = Small()
    runner.run(requests)
    assert isinstance(small.error, InvalidRequest)
    assert callers[1].outputs
    account = statistics.snapshot()
    assert (account.outcomes["ok"], account.outcomes["invalid"], account.outcomes["failed"]) == (1, 1, 0)
    assert caplog.records == []


def test_a_responder_that_cannot_even_fail_harms_nobody_else() -> None:
    class Broken(FakeResponder):
        def fail(self, error: Exception) -> None:
            raise RuntimeError("broken")

    clock, session = FakeClock(), FakeSession(poison=POISON)
    runner, _ = runner_of(session.run, clock)
    requests, callers = batch_of([POISON, 2], clock)
    requests[0].responder = Broken()
    runner.run(requests)
    assert callers[1].outputs


def test_a_model_that_loses_rows_is_run_one_by_one() -> None:
    """Such a model was probed wrongly; its callers still get right answers."""

    def mean(inputs: Sequence[Array | None]) -> list[Array]:
        assert inputs[0] is not None
        return [inputs[0].mean(axis=0, keepdims=True)]

    clock, session = FakeClock(), FakeSession(mean)
    runner, _ = runner_of(session.run, clock)
    requests, callers = batch_of([1, 2, 3], clock)
    runner.run(requests)
    assert [float(caller.outputs[0][0, 0]) for caller in callers if caller.outputs] == [1, 2, 3]
