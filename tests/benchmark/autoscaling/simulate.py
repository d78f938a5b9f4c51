"""One autoscaler against one trace: what callers saw, and what it cost."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from arrivals import Trace, arrivals
from fleet import Fleet, Metrics, Model
from hpa import SYNC_S, Autoscaler, Behaviour

SCRAPE_S = 15
SCRAPE_AT_S = 7
"""Prometheus looks at 7, 22, 37, … s; the autoscaler decides at 15, 30, … with figures that are 8 s old."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A metric and its target."""

    name: str
    metric: Callable[[Metrics], float]
    target: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it.

    Args:
        in_time: share of all requests that were answered within the SLO.
        worst_minute: the same of the worst minute.
        p99_s: of the answered.
        replica_minutes: paid for.
        peak: the most replicas at a time.
        changes: how often the number of replicas was changed.
        flaps: how often it was raised within ten minutes of having been lowered.
        replicas: for each second.
        in_time_by_minute, sent_by_minute: for each minute.
    """

    name: str
    in_time: float
    worst_minute: float
    p99_s: float
    replica_minutes: float
    peak: int
    changes: int
    flaps: int
    replicas: list[int]
    in_time_by_minute: list[float]
    sent_by_minute: list[int]


def simulate(contender: Contender, model: Model, trace: Trace, replicas: int = 2) -> Outcome:
    """Play the trace."""
    coming_s = arrivals(trace)
    coming_s = coming_s[coming_s < trace.seconds]
    fleet = Fleet(model, replicas, trace.seconds)
    scaler = Autoscaler(Behaviour(target=contender.target))
    bounds = np.searchsorted(coming_s, np.arange(trace.seconds + 1))
    seen: list[float] = []
    had: list[int] = []
    for second in range(1, trace.seconds + 1):
        fleet.advance(float(second), coming_s[bounds[second - 1] : bounds[second]])
        fleet.sample()
        if second % SCRAPE_S == SCRAPE_AT_S:
            seen = [contender.metric(each) for each in fleet.scrape()]
        had.append(len(fleet))
        if second % int(SYNC_S) == 0:
            fleet.scale(scaler.decide(float(second), len(fleet), seen[: len(fleet)]))
    return _outcome(contender.name, fleet, had)


def _outcome(name: str, fleet: Fleet, had: list[int]) -> Outcome:
    sent = fleet.tally.sent.reshape(-1, 60).sum(1)
    late = fleet.tally.late.reshape(-1, 60).sum(1)
    by_minute = 1 - late / np.maximum(sent, 1)
    steps = np.diff(had)
    downs = np.flatnonzero(steps < 0)
    flaps = sum(bool(((downs < up) & (downs > up - 600)).any()) for up in np.flatnonzero(steps > 0))
    return Outcome(
        name=name,
        in_time=float(1 - late.sum() / sent.sum()),
        worst_minute=float(by_minute.min()),
        p99_s=float(np.quantile(fleet.tally.latencies_s, 0.99)),
        replica_minutes=sum(had) / 60,
        peak=max(had),
        changes=int((steps != 0).sum()),
        flaps=flaps,
        replicas=had,
        in_time_by_minute=[round(float(each), 5) for each in by_minute],
        sent_by_minute=[int(each) for each in sent],
    )
