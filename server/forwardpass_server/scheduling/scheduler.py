"""The scheduler of one model version: admits requests and sees that each is answered once.

    submit ─▶ queue ─▶ policy ─▶ runner (stack, run, split) ─▶ responder

A caller of `submit` gets an exception, or the responder gets an answer; never both, never neither.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from forwardpass_server.errors import ForwardpassError, Stopping
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.scheduling.batch import merge_key, one_shape
from forwardpass_server.scheduling.cost import CostCurve
from forwardpass_server.scheduling.executor import Executor, InlineExecutor, InlineLoop, ThreadExecutor, execute
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.queue import RequestQueue
from forwardpass_server.scheduling.request import Request
from forwardpass_server.scheduling.runner import Run, Runner
from forwardpass_server.scheduling.watchdog import Watchdog
from forwardpass_server.tensors.signature import Signature

log = logging.getLogger(__name__)


class Scheduler:
    """Schedules one version. Starts at once; `close` ends it.

    Args:
        name: for threads and messages: the model, and its version where two may run beside each other.
        runs: the model, once per instance; several may be the same callable if it may run on several threads.
        signature: the version's.
        limits: how it may be scheduled.
        cost: what its runs cost, from warm-up.
        inline: the loop whose thread runs the model; None gives every instance a thread.
        finite: fail requests whose outputs hold a NaN or an infinity.
        watchdog: ends runs that last too long; None lets them. Not used for inline models.
        statistics: the version's account; a new one when None.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        runs: Sequence[Run],
        signature: Signature,
        *,
        limits: Limits,
        cost: CostCurve | None = None,
        inline: InlineLoop | None = None,
        finite: bool = False,
        watchdog: Watchdog | None = None,
        statistics: VersionStatistics | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if inline is not None and len(runs) != 1:
            raise ValueError(f"{name}: {len(runs)} instances cannot share the loop thread; inline models have one")
        self.name = name
        self.statistics = statistics or VersionStatistics(clock_ns)
        self._one_shape = one_shape(signature)
        self._queue = RequestQueue(name, limits, cost=cost, instances=len(runs), clock_ns=clock_ns)
        self._threaded = inline is None
        self._runners = [Runner(run, self.statistics, clock_ns, can_end=self._threaded, finite=finite) for run in runs]
        self._watchdog = watchdog if self._threaded else None
        self._executor: Executor = (
            ThreadExecutor(name, self._queue, self._runners)
            if inline is None
            else InlineExecutor(self._queue, self._runners[0], inline)
        )
        if self._watchdog is not None:
            for runner in self._runners:
                self._watchdog.watch(runner)
        self._executor.start()

    @property
    def limits(self) -> Limits:
        """How it schedules."""
        return self._queue.limits

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return self._queue.depth

    @property
    def queue_bytes(self) -> int:
        """Bytes of input tensors that wait."""
        return self._queue.nbytes

    @property
    def inflight(self) -> int:
        """Requests admitted and not yet answered: those that wait and those that run."""
        return self._queue.depth + self._queue.running

    @property
    def instances(self) -> int:
        """How many runs may be in progress at a time."""
        return len(self._runners)

    @property
    def seconds_per_row(self) -> float:
        """What a row costs an instance that has enough to do, in seconds; 0 while unknown."""
        return self._queue.seconds_per_row

    @property
    def slo_s(self) -> float:
        """The latency that its configuration promises, in seconds; inf for none."""
        return self._queue.limits.max_latency_s

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn. Loop thread; never blocks.

        Raises:
            Busy, DeadlineExpired, TooLarge: refused, counted, and the responder will not be called.
        """
        if not self._one_shape:
            request.merge_key = merge_key(request.inputs)
        try:
            self._queue.submit(request)
        except ForwardpassError as error:
            self.statistics.refused(error, request.timeline.received_ns)
            raise
        self._executor.arrived()
        if self._threaded:  # an inline model has answered before anybody can hear that the caller left
            request.responder.on_cancel(partial(self._left, request))

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing runs; True when it came to that within `timeout_s` seconds.

        Refuses nobody: that is for the transport, or the version's leases. Not on the loop thread.
        """
        return self._queue.wait_idle(timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse newcomers, fail those who wait, wait for what runs, end the threads. Not on the loop thread.

        After `drain` nobody waits, so nobody is failed. A run that does not end within `timeout_s` seconds is ended,
        and its requests fail.

        Returns:
            False when a run did not even end when it was told to, within as many seconds again.
        """
        self._queue.close()
        left = self._queue.clear()
        for request in left:
            self._runners[0].fail(request, Stopping(f"'{self.name}' was unloaded before the request's turn came"))
        if left:
            log.warning("%s: closed with %d requests waiting; they were refused", self.name, len(left))
        ended = self._executor.stop(timeout_s)
        if not ended:
            log.warning("%s: closed with a run that took more than %g s; it is ended", self.name, timeout_s)
            for runner in self._runners:
                runner.end(runner.began_ns, Stopping(f"'{self.name}' was unloaded while the model ran"))
            ended = self._executor.stop(timeout_s)
        if self._watchdog is not None:
            for runner in self._runners:
                self._watchdog.forget(runner)
        return ended

    def _left(self, request: Request) -> None:
        """The caller of an unanswered request has left: out of the queue, or out of the run. Loop thread."""
        action = self._queue.take_departed(request)
        if action is not None:
            execute(action, self._queue, self._runners[0])
            return
        for runner in self._runners:
            runner.left(request)
