"""What one model version has done since it was loaded: the one account, read by the metrics page and ModelStatistics.

Counting happens once a batch where it can, in plain Python numbers under one lock of the version; Prometheus objects
are made only when somebody reads the page (`observe.metrics`). For 8 requests in a batch `ran` and `answered` together
take 7.0 µs; three histograms and three counters of `prometheus_client`, bound beforehand, take 25 µs
(`tests/benchmark/scheduling.py`, Python 3.11, one EPYC core).
"""

import threading
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from forwardpass_server.errors import (
    Busy,
    CallCancelled,
    CallerError,
    DeadlineExpired,
)
from forwardpass_server.observe.histogram import BATCH_SIZE_BOUNDS, LATENCY_BOUNDS_S, NS, Histogram
from forwardpass_server.observe.timeline import Timeline

Outcome = Literal["ok", "invalid", "shed", "expired", "canceled", "failed"]
"""How a request ended: answered; the caller's mistake; refused for lack of room; too late; the caller left; ours."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def outcome_of(error: BaseException) -> Outcome:
    """The outcome that an error stands for."""
    if isinstance(error, DeadlineExpired):
        return "expired"
    if isinstance(error, CallCancelled):
        return "canceled"
    if isinstance(error, Busy):
        return "shed"
    return "invalid" if isinstance(error, CallerError) else "failed"


class Timed(Protocol):
    """Anything that carries stamps; a `scheduling.request.Request`."""

    @property
    def timeline(self) -> Timeline: ...


@dataclass(slots=True)
class Stage:
    """How often a stage was passed, and how long it took altogether, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


@dataclass(slots=True)
class BatchSize:
    """The runs of one batch size: how many there were and where their time went."""

    executions: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    """Until the last of its answers was encoded."""


@dataclass(slots=True)
class Account:
    """All figures of one version. Durations are of answered requests, except where said; runs counted in `executions`
    succeeded, those in `failed_executions` did not (a batch that is bisected adds to both)."""

    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    success: Stage = field(default_factory=Stage)
    """Received to encoded."""
    fail: Stage = field(default_factory=Stage)
    """Received to refused, of every request that was not answered with tensors."""
    queue: Stage = field(default_factory=Stage)
    compute_input: Stage = field(default_factory=Stage)
    compute_infer: Stage = field(default_factory=Stage)
    compute_output: Stage = field(default_factory=Stage)
    cache_hit: Stage = field(default_factory=Stage)
    """Looking for an answer in the response cache, of requests that found one; nothing of them is in the stages of
    computing, and no time in `queue`."""
    cache_miss: Stage = field(default_factory=Stage)
    rows: int = 0
    """Of runs, and of answers from the response cache."""
    executions: int = 0
    failed_executions: int = 0
    last_inference_ms: int = 0
    """Wall-clock time of the last successful run, in milliseconds since 1970; 0 when there was none."""
    batches: dict[int, BatchSize] = field(default_factory=dict)
    """By rows of a run."""
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S, NS))
    compute_seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S, NS))
    request_seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S, NS))
    batch_size: Histogram = field(default_factory=lambda: Histogram(BATCH_SIZE_BOUNDS))


class VersionStatistics:
    """The account of one version. Every method may be called on any thread.

    A request and its stages are counted before its answer leaves, so that a caller who has its answer finds itself
    counted; its whole duration, which includes encoding the answer, is added just after.

    Args:
        clock_ns: the monotonic clock that the stamps were read from.
        wall_ns: nanoseconds since 1970.
    """

    def __init__(
        self, clock_ns: Callable[[], int] = time.monotonic_ns, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._clock_ns = clock_ns
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._account = Account()

    def ran(self, batch: Sequence[Timed], rows: int, taken_ns: int, start_ns: int, end_ns: int) -> None:
        """A run succeeded: count it, and every request in it as answered. Called before the answers leave.

        Args:
            batch: the requests that rode in it.
            rows: rows of the run.
            taken_ns, start_ns, end_ns: the batch was taken; the model started; the model answered.
        """
        size = len(batch)
        input_ns = start_ns - taken_ns
        infer_ns = end_ns - start_ns
        waits_ns = [taken_ns - request.timeline.queued_ns for request in batch]
        last_inference_ms = self._wall_ns() // 1_000_000
        with self._lock:
            account = self._account
            if size:  # else every caller left while it ran
                account.outcomes["ok"] += size
                account.queue_seconds.observe_all(waits_ns)
                account.compute_seconds.observe(infer_ns, size)
                account.queue.add(size, sum(waits_ns))
                account.compute_input.add(size, input_ns * size)
                account.compute_infer.add(size, infer_ns * size)
                # Counted here with the rest, so that whoever reads the account now finds every stage passed as often;
                # perf_analyzer ends itself otherwise. `answered` adds the time.
                account.compute_output.count += size
                account.success.count += size
            account.batch_size.observe(rows)
            account.rows += rows
            account.executions += 1
            account.last_inference_ms = last_inference_ms
            of_size = account.batches.get(rows)
            if of_size is None:
                of_size = account.batches[rows] = BatchSize()
            of_size.executions += 1
            of_size.input_ns += input_ns
            of_size.infer_ns += infer_ns

    def run_failed(self) -> None:
        """A run raised. Its requests are counted by `refused` or, after another run, by `ran`."""
        with self._lock:
            self._account.failed_executions += 1

    def answered(self, batch: Sequence[Timed], rows: int) -> None:
        """The answers of a run of so many rows have left; those without an `encoded` stamp count as encoded now."""
        if not batch:
            return
        now_ns = self._clock_ns()
        timelines = [request.timeline for request in batch]
        took_ns = [(timeline.encoded_ns or now_ns) - timeline.received_ns for timeline in timelines]
        output_ns = [(timeline.encoded_ns or now_ns) - timeline.run_end_ns for timeline in timelines]
        with self._lock:
            account = self._account
            account.request_seconds.observe_all(took_ns)
            account.success.ns += sum(took_ns)
            account.compute_output.ns += sum(output_ns)
            account.batches[rows].output_ns += max(output_ns)

    def took_back(self) -> None:
        """One request that `ran` counted as answered has no answer after all; `refused` says what became of it."""
        with self._lock:
            account = self._account
            account.outcomes["ok"] -= 1
            account.success.count -= 1

    def refused(self, error: BaseException, received_ns: int = 0) -> None:
        """One request ended without tensors: refused before the queue, dropped in it, or failed by its run.

        Args:
            error: why; `outcome_of` says how it is counted.
            received_ns: the stamp of its arrival; 0 when unknown, which counts as no time at all.
        """
        took_ns = self._clock_ns() - received_ns if received_ns else 0
        with self._lock:
            self._account.outcomes[outcome_of(error)] += 1
            self._account.fail.add(1, took_ns)

    def found(self, rows: int, received_ns: int, looked_ns: int) -> None:
        """A request of so many rows is answered from the response cache, which took `looked_ns` to look it up."""
        took_ns = self._clock_ns() - received_ns
        last_inference_ms = self._wall_ns() // 1_000_000
        with self._lock:
            account = self._account
            account.outcomes["ok"] += 1
            account.request_seconds.observe(took_ns)
            account.success.add(1, took_ns)
            account.queue_seconds.observe(0)
            account.queue.add(1, 0)
            account.cache_hit.add(1, looked_ns)
            account.rows += rows
            account.last_inference_ms = last_inference_ms

    def missed(self, looked_ns: int) -> None:
        """A request is not in the response cache; what becomes of it is counted like that of any other."""
        with self._lock:
            self._account.cache_miss.add(1, looked_ns)

    def offered_rows(self, waiting: int) -> float:
        """Rows that callers have asked to be run: those that ran, those that wait, and those of requests that were
        refused, came too late or left, which count as the mean request does. What the cache answered is not in it.

        Args:
            waiting: requests that wait.
        """
        with self._lock:
            account = self._account
            outcomes = account.outcomes
            unserved = waiting + sum(outcomes[each] for each in ("shed", "expired", "canceled", "failed"))
            mean_rows = account.rows / outcomes["ok"] if outcomes["ok"] else 1.0
            return account.batch_size.total + unserved * mean_rows

    def snapshot(self) -> Account:
        """A consistent copy of the account."""
        with self._lock:
            return deepcopy(self._account)
