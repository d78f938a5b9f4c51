"""The waiting room of one version: bounded by requests and by bytes, in order of arrival.

The one lock of scheduling lives here. It guards references and numbers only: nothing under it calls a responder, a
model or another lock.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf

from forwardpass_server.errors import NotReady, Overloaded
from forwardpass_server.scheduling.cost import CostCurve
from forwardpass_server.scheduling.policy import (
    Action,
    Limits,
    QueueFull,
    admit,
    next_action,
    retry_after_s,
)
from forwardpass_server.scheduling.request import Request

SWEEP_INTERVAL_NS = 10_000_000
"""A full queue is searched for the departed at most this often, in nanoseconds, so that refusing stays cheap."""


class RequestQueue:
    """Requests of one version, waiting for an instance.

    Whoever takes requests owes `finished` for every one it took, so that `wait_idle` knows when nothing is waiting and
    nothing is running.

    Args:
        name: the model's, for messages.
        limits: how much may wait.
        cost: what runs cost, for the retry time of the refused.
        instances: how many takers there are.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        *,
        cost: CostCurve | None = None,
        instances: int = 1,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.limits = limits
        self.cost = cost or CostCurve()
        self._instances = instances
        self._clock_ns = clock_ns
        self._waiting: deque[Request] = deque()
        self._bytes = 0
        self._rows = 0
        self._running = 0
        self._closed = False
        self._swept_ns = 0
        # Requests found dead while making room; the next taker answers them.
        self._dead: list[Request] = []
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._takers = 0

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of their input tensors."""
        return self._bytes

    @property
    def running(self) -> int:
        """Requests taken and not yet answered."""
        return self._running

    def submit(self, request: Request) -> None:
        """Let a request wait. Any thread; never blocks. Stamps `queued`.

        Raises:
            Overloaded: full; says when to retry.
            DeadlineExpired: too late already.
            TooLarge: larger than the whole queue.
            NotReady: closed.
        """
        now_ns = self._clock_ns()
        with self._lock:
            if self._closed:
                raise NotReady(f"model '{self.name}' is being unloaded")
            try:
                admit(request, now_ns * 1e-9, len(self._waiting), self._bytes, self.limits)
            except QueueFull:
                self._admit_among_the_dead(request, now_ns)
            request.timeline.queued_ns = now_ns
            self._waiting.append(request)
            self._bytes += request.nbytes
            self._rows += request.rows
            if self._takers:
                self._arrived.notify()

    def take(self) -> Action | None:
        """Wait until there is something to run or to drop, and take it; None when closed and empty.

        Blocks the calling thread; costs nothing while nothing arrives. Stamps nothing.
        """
        with self._lock:
            while True:
                action = self._take(self._clock_ns())
                if action.batch or action.dropped:
                    return action
                if self._closed and not self._waiting:
                    return None
                self._takers += 1
                # NOTE: a Condition takes no infinite timeout; None is its word for that.
                self._arrived.wait(None if action.wait_s == inf else action.wait_s)
                self._takers -= 1

    def take_nowait(self) -> Action | None:
        """What there is to run or to drop now; None when there is neither. Never blocks."""
        with self._lock:
            action = self._take(self._clock_ns())
        return action if action.batch or action.dropped else None

    def finished(self, count: int) -> None:
        """So many taken requests have been answered."""
        with self._lock:
            self._running -= count
            assert self._running >= 0
            if not self._running and not self._waiting:
                self._idle.notify_all()

    def close(self) -> None:
        """Let nobody in from now on; those inside are still taken. Wakes the takers."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()

    def clear(self) -> list[Request]:
        """Take everybody who waits out of the queue; the caller answers them and owes no `finished`."""
        with self._lock:
            left = [*self._dead, *self._waiting]
            self._dead.clear()
            self._waiting.clear()
            self._bytes = self._rows = 0
            self._arrived.notify_all()
            if not self._running:
                self._idle.notify_all()
        return left

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until nobody waits and nobody runs; False when that took longer than `timeout_s` seconds."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._running and not self._waiting and not self._dead, timeout_s)

    def _admit_among_the_dead(self, request: Request, now_ns: int) -> None:
        """Look for room among those who need none any more, before giving up. Under the lock."""
        if now_ns - self._swept_ns >= SWEEP_INTERVAL_NS:
            self._swept_ns = now_ns
            self._sweep(now_ns * 1e-9)
        try:
            admit(request, now_ns * 1e-9, len(self._waiting), self._bytes, self.limits)
        except QueueFull as full:
            retry_s = retry_after_s(self._rows, self.limits, self.cost, self._instances)
            raise Overloaded(
                f"queue of '{self.name}' is full ({full}); retry after {retry_s * 1e3:.0f} ms", retry_after_s=retry_s
            ) from None

    def _sweep(self, now: float) -> None:
        """Set aside the departed and the expired, wherever they stand. Under the lock."""
        living: deque[Request] = deque()
        for request in self._waiting:
            if request.responder.cancelled or request.deadline <= now:
                self._dead.append(request)
                self._bytes -= request.nbytes
                self._rows -= request.rows
            else:
                living.append(request)
        self._waiting = living

    def _take(self, now_ns: int) -> Action:
        """Apply the policy to the waiting. Under the lock."""
        waiting = self._waiting
        action = next_action(waiting, now_ns * 1e-9, self.limits)
        for _ in range(action.seen):
            request = waiting.popleft()
            self._bytes -= request.nbytes
            self._rows -= request.rows
        if action.passed:
            for request in reversed(action.passed):
                waiting.appendleft(request)
                self._bytes += request.nbytes
                self._rows += request.rows
        if self._dead:
            action.dropped[:0] = self._dead
            self._dead.clear()
        self._running += len(action.batch) + len(action.dropped)
        return action
