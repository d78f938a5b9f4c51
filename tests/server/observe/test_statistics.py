"""The account of a version: counted once, whoever asks."""

import threading

import pytest

from forwardpass_server.errors import (
    CallCancelled,
    DeadlineExpired,
    InvalidRequest,
    NotReady,
    Overloaded,
    RunFailed,
    Stopping,
    TooLarge,
)
from forwardpass_server.observe.statistics import Outcome, VersionStatistics, outcome_of
from forwardpass_server.observe.timeline import Timeline


class Rider:
    """A request as far as statistics see it."""

    def __init__(self, received_ns: int, queued_ns: int, run_end_ns: int = 0, encoded_ns: int = 0) -> None:
        self.timeline = Timeline(received_ns)
        self.timeline.queued_ns = queued_ns
        self.timeline.run_end_ns = run_end_ns
        self.timeline.encoded_ns = encoded_ns


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidRequest("x"), "invalid"),
        (TooLarge("x"), "invalid"),
        (Overloaded("x", retry_after_s=1), "shed"),
        (Stopping("x"), "shed"),
        (NotReady("x"), "shed"),
        (DeadlineExpired("x"), "expired"),
        (CallCancelled("x"), "canceled"),
        (RunFailed("x"), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_every_error_has_an_outcome(error: Exception, outcome: Outcome) -> None:
    assert outcome_of(error) == outcome
    statistics = VersionStatistics()
    statistics.refused(error)
    outcomes = statistics.snapshot().outcomes
    assert outcomes[outcome] == sum(outcomes.values()) == 1


def test_a_run_is_counted_by_request_by_row_and_by_size() -> None:
    statistics = VersionStatistics(lambda: 9_000, lambda: 1_700_000_000_123_456_789)
    riders = [Rider(100, 200, 700, 800), Rider(150, 250, 700, 0)]
    statistics.ran(riders, 5, taken_ns=400, start_ns=450, end_ns=700)
    statistics.answered(riders, 5)
    account = statistics.snapshot()
    assert (account.rows, account.executions, account.outcomes["ok"]) == (5, 1, 2)
    assert (account.queue.count, account.queue.ns) == (2, 200 + 150)
    assert (account.compute_input.ns, account.compute_infer.ns) == (2 * 50, 2 * 250)
    assert (account.success.count, account.success.ns) == (2, 700 + 8_850)
    assert (account.compute_output.count, account.compute_output.ns) == (2, 100 + 8_300)
    assert account.last_inference_ms == 1_700_000_000_123
    size = account.batches[5]
    assert (size.executions, size.input_ns, size.infer_ns, size.output_ns) == (1, 50, 250, 8_300)
    assert account.compute_seconds.cumulative()[-1] == ("+Inf", 2)
    assert account.batch_size.cumulative()[-1] == ("+Inf", 1)


def test_whoever_looks_while_answers_leave_finds_every_stage_passed_as_often() -> None:
    # perf_analyzer compares these counts, and ends itself when they differ.
    statistics = VersionStatistics()
    riders = [Rider(1, 2, 3), Rider(1, 2, 3)]
    statistics.ran(riders, 2, taken_ns=2, start_ns=3, end_ns=4)
    account = statistics.snapshot()
    stages = (account.success, account.queue, account.compute_input, account.compute_infer, account.compute_output)
    assert [stage.count for stage in stages] == [2] * 5
    statistics.answered(riders, 2)
    assert statistics.snapshot().success.count == statistics.snapshot().compute_output.count == 2
    assert statistics.snapshot().success.ns > 0


def test_a_run_whose_callers_all_left_is_a_run_and_no_answer() -> None:
    statistics = VersionStatistics()
    statistics.ran([], 3, 1, 2, 3)
    statistics.answered([], 3)
    account = statistics.snapshot()
    assert (account.executions, account.rows, account.outcomes["ok"]) == (1, 3, 0)
    assert account.request_seconds.cumulative()[-1] == ("+Inf", 0)


def test_the_refused_are_timed_where_their_arrival_is_known() -> None:
    statistics = VersionStatistics(lambda: 5_000)
    statistics.refused(InvalidRequest("x"), received_ns=4_000)
    statistics.refused(InvalidRequest("x"))
    fail = statistics.snapshot().fail
    assert (fail.count, fail.ns) == (2, 1_000)


def test_a_snapshot_is_a_copy() -> None:
    statistics = VersionStatistics()
    before = statistics.snapshot()
    statistics.refused(RunFailed("x"))
    statistics.run_failed()
    assert before.outcomes["failed"] == before.failed_executions == 0


def test_no_count_is_lost_between_threads() -> None:
    statistics = VersionStatistics()
    riders = [Rider(1, 2, 3, 4)] * 3

    def work() -> None:
        for _ in range(500):
            statistics.ran(riders, 3, 3, 4, 5)
            statistics.answered(riders, 3)
            statistics.refused(RunFailed("x"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    account = statistics.snapshot()
    assert (account.outcomes["ok"], account.outcomes["failed"], account.executions) == (6000, 2000, 2000)
    assert account.success.count == account.queue.count == 6000
