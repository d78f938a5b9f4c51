"""The waiting room of one version: bounded by requests and by bytes, in the order of `policy.rank`.

The one lock of scheduling lives here. It guards references and numbers only: nothing under it calls a model, another
lock, or a responder (save for `cancelled`, which is a flag).
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from math import inf
from operator import attrgetter

from forwardpass_server.errors import NotReady, Overloaded
from forwardpass_server.scheduling.cost import CostCurve, ServedCost
from forwardpass_server.scheduling.policy import (
    Action,
    Limits,
    Load,
    QueueFull,
    admit,
    check_priority,
    delayed,
    give_time,
    next_action,
    rank,
    retry_after_s,
    seconds_per_row,
)
from forwardpass_server.scheduling.request import Request

SWEEP_INTERVAL_NS = 10_000_000
"""A full queue is searched for the departed at most this often, in nanoseconds, so that refusing stays cheap."""

_rank_of = attrgetter("rank")


class RequestQueue:
    """Requests of one version, waiting for an instance.

    Whoever takes an action owes `finished` for it, so that `wait_idle` knows when nothing is waiting and nothing is
    running, and newcomers know when an instance will be free.

    Args:
        name: the model's, for messages.
        limits: how much may wait.
        cost: what runs cost, from warm-up.
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
        self.cost = ServedCost(cost or CostCurve())
        self._has_policies = not limits.policies.plain
        self._instances = instances
        self._clock_ns = clock_ns
        self._waiting: list[Request] = []
        self._bytes = 0
        self._rows = 0
        self._running = 0
        # Of each action in progress: when it will be over, as expected; and when it was taken.
        self._runs: dict[int, tuple[float, int]] = {}
        # The rows of the run before, and when it was taken, where somebody waited at its end.
        self._unobserved: tuple[int, int] | None = None
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

    @property
    def seconds_per_row(self) -> float:
        """See `policy.seconds_per_row`. Any thread."""
        with self._lock:
            return seconds_per_row(self.limits, self.cost)

    def submit(self, request: Request) -> None:
        """Let a request wait. Any thread; never blocks. Stamps `queued`, and sets its rank.

        Raises:
            Overloaded: full, or too slow for its deadline; says when to retry.
            DeadlineExpired: too late already, or nearer than one run takes.
            TooLarge: larger than the whole queue.
            NotReady: closed.
        """
        now_ns = self._clock_ns()
        now = now_ns * 1e-9
        limits = self.limits
        if limits.max_latency_s < inf:
            request.deadline = min(request.deadline, now + limits.max_latency_s)
        if self._has_policies or request.timeout_s < inf:
            give_time(request, now, limits)
        request.rank = rank(request, now, limits)
        with self._lock:
            waiting = self._waiting
            if (
                request.deadline == inf
                and len(waiting) < limits.max_requests
                and self._bytes + request.nbytes <= limits.max_bytes
                and (not waiting or waiting[-1].rank <= request.rank)
                and not self._closed
                and not self._has_policies
            ):
                waiting.append(request)  # without a deadline and behind everybody: 0.5 µs, where `_admit` takes 2.5
            else:
                at = self._admit(request, now_ns)
                self._waiting.insert(at, request)
            request.timeline.queued_ns = now_ns
            self._bytes += request.nbytes
            self._rows += request.rows
            if self._takers:
                self._arrived.notify()

    def take_departed(self, request: Request) -> Action | None:
        """One request whose caller has left, out of its turn, to be dropped; None when somebody took it before."""
        with self._lock:
            if request not in self._waiting:
                return None
            self._waiting.remove(request)
            return self._taken(Action(dropped=[request]), self._clock_ns())

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

    def finished(self, action: Action, *, ran_whole: bool) -> None:
        """Everything in an action has been answered.

        Args:
            action: as `take` gave it.
            ran_whole: in one run, so that its duration says what a run of this size costs.
        """
        now_ns = self._clock_ns()
        with self._lock:
            _, taken_ns = self._runs.pop(id(action))
            if ran_whole:
                if self._waiting and self._instances == 1:
                    # Its instance will ask again: until then it is busy with whatever the thread does besides.
                    self._unobserved = (action.rows, taken_ns)
                else:
                    self.cost.observe(action.rows, (now_ns - taken_ns) * 1e-9)
            self._running -= len(action.batch) + len(action.dropped)
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

    def _admit(self, request: Request, now_ns: int) -> int:
        """Where to insert a newcomer, if it may come in. Under the lock."""
        if self._closed:
            raise NotReady(f"model '{self.name}' is being unloaded")
        limits, now = self.limits, now_ns * 1e-9
        try:
            at = self._place(request)
            load = self._load(at, request.rank[0], now)
            if self._has_policies:
                check_priority(request, load, limits)
            admit(request.rows, request.nbytes, request.deadline, now, load, limits, self.cost)
            return at
        except QueueFull as full:
            # Look for room among those who need none any more, before giving up.
            if now_ns - self._swept_ns >= SWEEP_INTERVAL_NS and self._sweep(now_ns):
                return self._admit(request, now_ns)
            retry_s = retry_after_s(self._rows, limits, self.cost, self._instances)
            raise Overloaded(
                f"queue of '{self.name}' {full}; retry after {retry_s * 1e3:.0f} ms", retry_after_s=retry_s
            ) from None

    def _place(self, request: Request) -> int:
        """The index at which a newcomer belongs. Under the lock."""
        waiting = self._waiting
        if not waiting or waiting[-1].rank <= request.rank:  # in order of arrival, as mostly
            return len(waiting)
        return bisect_right(waiting, request.rank, key=_rank_of)

    def _load(self, at: int, priority: int, now: float) -> Load:
        """What stands before a newcomer of a priority at index `at`. Under the lock."""
        behind = self._waiting[at:]
        alike = 0
        if self._has_policies:
            alike = sum(request.rank[0] == priority for request in self._waiting)
        rows_ahead = self._rows - sum([request.rows for request in behind]) if behind else self._rows
        busy_s = 0.0
        if len(self._runs) >= self._instances:
            busy_s = max(min(over for over, _ in self._runs.values()) - now, 0.0)
        return Load(len(self._waiting), self._bytes, rows_ahead, behind, busy_s, self._instances, alike)

    def _sweep(self, now_ns: int) -> bool:
        """Set aside the departed and the expired, wherever they stand; True when there were any. Under the lock."""
        self._swept_ns = now_ns
        now = now_ns * 1e-9
        self._delay(now)
        dead = [r for r in self._waiting if r.responder.cancelled or min(r.deadline, r.wait_until) <= now]
        if dead:
            gone = set(dead)
            self._waiting = [request for request in self._waiting if request not in gone]
            self._dead += dead
            self._bytes -= sum(request.nbytes for request in dead)
            self._rows -= sum(request.rows for request in dead)
        return bool(dead)

    def _take(self, now_ns: int) -> Action:
        """Apply the policy to the waiting. Under the lock."""
        if self._has_policies:
            self._delay(now_ns * 1e-9)
        if self._unobserved is not None:
            rows, taken_ns = self._unobserved
            self._unobserved = None
            self.cost.observe(rows, (now_ns - taken_ns) * 1e-9)
        action = next_action(self._waiting, now_ns * 1e-9, self.limits, self.cost)
        self._waiting[: action.seen] = action.passed
        return self._taken(action, now_ns)

    def _delay(self, now: float) -> None:
        """Put those who waited too long behind the others of their priority, where that is their policy. Under the
        lock."""
        late = delayed(self._waiting, now, self.limits)
        for request in late:
            request.rank = (request.rank[0], True, request.rank[2])
            request.wait_until = inf
        if late:
            self._waiting.sort(key=_rank_of)

    def _taken(self, action: Action, now_ns: int) -> Action:
        """Account for requests that have left the queue. Under the lock."""
        for request in action.batch + action.dropped:
            self._bytes -= request.nbytes
            self._rows -= request.rows
        if self._dead:
            action.dropped[:0] = self._dead
            self._dead.clear()
        if action.batch or action.dropped:
            takes_s = self.cost.seconds(action.rows) if action.batch else 0.0
            self._running += len(action.batch) + len(action.dropped)
            self._runs[id(action)] = (now_ns * 1e-9 + takes_s, now_ns)
        return action
