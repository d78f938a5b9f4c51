"""The scheduler of one model version: admits requests and sees that each is answered once.

    submit ─▶ queue ─▶ policy ─▶ runner (stack, run, split) ─▶ responder

A caller of `submit` gets an exception, or the responder gets an answer; never both, never neither.
"""

import logging
import time
from collections.abc import Callable, Sequence

from forwardpass_server.errors import ForwardpassError, Stopping
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.scheduling.batch import merge_key
from forwardpass_server.scheduling.cost import CostCurve
from forwardpass_server.scheduling.executor import Executor, InlineExecutor, InlineLoop, ThreadExecutor
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.queue import RequestQueue
from forwardpass_server.scheduling.request import Request
from forwardpass_server.scheduling.runner import Run, Runner
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
        statistics: VersionStatistics | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if inline is not None and len(runs) != 1:
            raise ValueError(f"{name}: {len(runs)} instances cannot share the loop thread; inline models have one")
        self.name = name
        self.statistics = statistics or VersionStatistics(clock_ns)
        self._one_shape = _one_shape(signature)
        self._queue = RequestQueue(name, limits, cost=cost, instances=len(runs), clock_ns=clock_ns)
        self._runners = [Runner(run, self.statistics, clock_ns) for run in runs]
        self._executor: Executor = (
            ThreadExecutor(name, self._queue, self._runners)
            if inline is None
            else InlineExecutor(self._queue, self._runners[0], inline)
        )
        self._executor.start()

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

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing runs; True when it came to that within `timeout_s` seconds.

        Refuses nobody: that is for the transport, or the version's leases. Not on the loop thread.
        """
        return self._queue.wait_idle(timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse newcomers, fail those who wait, wait for what runs, end the threads. Not on the loop thread.

        After `drain` nobody waits, so nobody is failed.

        Returns:
            False when a run did not end within `timeout_s` seconds; its thread then ends with it.
        """
        self._queue.close()
        left = self._queue.clear()
        for request in left:
            self._runners[0].fail(request, Stopping(f"'{self.name}' was unloaded before the request's turn came"))
        if left:
            log.warning("%s: closed with %d requests waiting; they were refused", self.name, len(left))
        return self._executor.stop(timeout_s)


def _one_shape(signature: Signature) -> bool:
    """Whether all requests have the same shape past their rows and give the same inputs, so that any two may merge."""
    return all(
        spec.ranked and not spec.optional and all(isinstance(size, int) for size in spec.shape[1:])
        for spec in signature.inputs
    )
