"""Replicas on a clock moved by hand: queue, policy, account and saturation are the server's own; only runs are played.

What is simulated: how long a run takes (the measured curve, times chance, and what its requests cost beside it on the
same core), that a new replica takes seconds until it serves, and that clients choose a replica by chance. What is the
server's own code: whom a batch takes, whom it refuses, what is counted, and the metric.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forwardpass_server.errors import Busy, DeadlineExpired
from forwardpass_server.observe.saturation import WINDOW_S, Demand, Saturation
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.scheduling.cost import CostCurve
from forwardpass_server.scheduling.policy import Action, Limits
from forwardpass_server.scheduling.queue import RequestQueue
from forwardpass_server.scheduling.request import Request

NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is served.

    Args:
        curve: seconds of a run by its rows, measured.
        limits: as the server has them for this model; `max_latency_s` is the SLO.
        loop_s: for how long a request keeps the event loop busy, measured.
        request_s: what a request costs the core beside its run, measured at full load.
        spread: the standard deviation of a run's duration, as a share of it.
        start_s: from the decision to have one more replica until it serves.
    """

    curve: CostCurve
    limits: Limits
    loop_s: float
    request_s: float = 0.0
    spread: float = 0.05
    start_s: float = 20.0


class Caller:
    """Who waits for one answer, and never leaves."""

    cancelled = False

    def on_cancel(self, callback: Callable[[], None]) -> None:
        pass

    def succeed(self, outputs: Any, request: Request) -> None:
        pass

    def fail(self, error: Exception) -> None:
        pass


CALLER = Caller()


@dataclass
class Clock:
    """The time, in seconds."""

    s: float = 0.0

    def ns(self) -> int:
        return round(self.s * NS)


@dataclass
class Metrics:
    """What autoscalers may look at, of one replica over the last `WINDOW_S` seconds."""

    saturation: float
    cpu: float
    """Cores used, of the one that it asks for."""
    in_flight: float
    """Requests admitted and not answered, now."""


@dataclass
class Tally:
    """What became of requests, by the second in which they arrived."""

    seconds: int
    sent: np.ndarray = field(init=False)
    late: np.ndarray = field(init=False)
    """Refused, dropped, or answered after the SLO."""
    latencies_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sent, self.late = np.zeros(self.seconds, int), np.zeros(self.seconds, int)


class Replica:
    """One server with one instance of the model."""

    def __init__(self, number: int, model: Model, clock: Clock, rng: np.random.Generator, tally: Tally) -> None:
        self.number = number
        self.ready_s = clock.s + model.start_s
        self.reports = False
        self._model, self._clock, self._rng, self._tally = model, clock, rng, tally
        self.queue = RequestQueue("m", model.limits, cost=model.curve, clock_ns=clock.ns)
        self.statistics = VersionStatistics(clock.ns, lambda: 0)
        self.instances = 1
        self._demand, self._saturation = Demand(), Saturation()
        self._running: tuple[Action, float] | None = None
        self._busy_s = 0.0
        self._requests = 0
        self._used: deque[tuple[float, float]] = deque([(clock.s, 0.0)])

    @property
    def depth(self) -> int:
        return self.queue.depth

    @property
    def seconds_per_row(self) -> float:
        return self.queue.seconds_per_row

    def arrive(self) -> float | None:
        """A request comes; the time at which a run that it starts will end."""
        now_ns = self._clock.ns()
        timeline = Timeline(now_ns)
        request = Request((), rows=1, nbytes=1024, outputs=(0,), responder=CALLER, timeline=timeline)
        self._requests += 1
        second = int(self._clock.s)
        self._tally.sent[second] += 1
        try:
            self.queue.submit(request)
        except (Busy, DeadlineExpired) as error:
            self.statistics.refused(error, now_ns)
            self._tally.late[second] += 1
        return self._next()

    def end_run(self) -> float | None:
        """The run in progress ends; the time at which the next one will."""
        assert self._running is not None
        (action, began_s), self._running = self._running, None
        now_ns, began_ns = self._clock.ns(), round(began_s * NS)
        self.statistics.ran(action.batch, action.rows, began_ns, began_ns, now_ns)
        self.queue.finished(action, ran_whole=True)
        self._busy_s += self._clock.s - began_s
        for request in action.batch:
            took_s = self._clock.s - request.timeline.received_ns / NS
            self._tally.latencies_s.append(took_s)
            if took_s > self._model.limits.max_latency_s:
                self._tally.late[request.timeline.received_ns // NS] += 1
        return self._next()

    def sample(self) -> None:
        """Once a second, as the server's main thread does."""
        now_s = self._clock.s
        self._demand.sample(self)
        self._saturation.sample(now_s, self._requests * self._model.loop_s, [(self._demand, 1)])
        self._used.append((now_s, self._cpu_s()))
        while len(self._used) > 2 and self._used[1][0] <= now_s - WINDOW_S:
            self._used.popleft()

    def metrics(self) -> Metrics:
        """As of the last sample."""
        (first_s, first), (last_s, last) = self._used[0], self._used[-1]
        cpu = (last - first) / (last_s - first_s) if last_s > first_s else 0.0
        return Metrics(self._saturation.ratio, cpu, self.queue.depth + self.queue.running)

    def _cpu_s(self) -> float:
        running_s = self._clock.s - self._running[1] if self._running else 0.0
        return self._busy_s + running_s

    def _next(self) -> float | None:
        while self._running is None:
            action = self.queue.take_nowait()
            if action is None:
                return None
            for request in action.dropped:
                self.statistics.refused(DeadlineExpired("late"), request.timeline.received_ns)
                self._tally.late[request.timeline.received_ns // NS] += 1
            if not action.batch:
                self.queue.finished(action, ran_whole=False)
                continue
            self._running = (action, self._clock.s)
            takes_s = _seconds(self._model.curve, action.rows) + action.rows * self._model.request_s
            return self._clock.s + takes_s * max(1 + self._model.spread * self._rng.standard_normal(), 0.5)
        return None


def _seconds(curve: CostCurve, rows: int) -> float:
    return float(np.interp(rows, [point.rows for point in curve.points], [point.p50_s for point in curve.points]))


class Fleet:
    """Replicas behind clients that choose among those that serve."""

    def __init__(self, model: Model, replicas: int, seconds: int, seed: int = 0) -> None:
        self.clock = Clock()
        self.tally = Tally(seconds)
        self._model = model
        self._rng = np.random.default_rng(seed)
        self._numbers = itertools.count()
        self._all: list[Replica] = []
        self._serving: list[Replica] = []
        self._events: list[tuple[float, int, Replica]] = []
        self.scale(replicas)
        for replica in self._all:  # those of the beginning serve from the beginning
            replica.ready_s = 0.0

    def __len__(self) -> int:
        return len(self._all)

    def scale(self, replicas: int) -> None:
        """Have so many; the youngest go first, and end what they have admitted."""
        while len(self._all) < replicas:
            self._all.append(Replica(next(self._numbers), self._model, self.clock, self._rng, self.tally))
        del self._all[replicas:]
        self._look()

    def advance(self, to_s: float, arriving_s: np.ndarray) -> None:
        """Let time pass, with these arrivals in it."""
        events = self._events
        self._look()
        choices = self._rng.random(len(arriving_s))
        for at_s, choice in zip(arriving_s.tolist(), choices.tolist(), strict=True):
            while events and events[0][0] <= at_s:
                self._end_run()
            self.clock.s = at_s
            replica = self._serving[int(choice * len(self._serving))]
            self._expect(replica, replica.arrive())
        while events and events[0][0] <= to_s:
            self._end_run()
        self.clock.s = to_s

    def sample(self) -> None:
        """Once a second."""
        for replica in self._all:
            if replica.ready_s <= self.clock.s:
                replica.sample()

    def scrape(self) -> list[Metrics]:
        """What Prometheus sees: the replicas that serve."""
        return [replica.metrics() for replica in self._all if replica.ready_s <= self.clock.s]

    def _look(self) -> None:
        self._serving = [replica for replica in self._all if replica.ready_s <= self.clock.s] or self._all[:1]

    def _expect(self, replica: Replica, ends_s: float | None) -> None:
        if ends_s is not None:
            heapq.heappush(self._events, (ends_s, replica.number, replica))

    def _end_run(self) -> None:
        self.clock.s, _, replica = heapq.heappop(self._events)
        self._expect(replica, replica.end_run())
