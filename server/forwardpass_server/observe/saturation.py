"""How much of what this server can do is asked of it: the one figure to scale replicas by.

    demand_s = offered rows · seconds that a row costs an instance in a batch of the size that a loaded server runs
    saturation = the largest of (demand_s / instances) over the versions, and the busy share of the loop; a second

That is the utilisation law (busy share = arrivals · service time) with the service time of a *loaded* server. Why not
something simpler:

- Busy time of instances, and with it CPU or GPU utilisation, is near 1 long before a batching server is full: batches
  are small at first, and a small batch costs almost what a full one does. And it cannot exceed 1, so it does not say
  how many replicas an overload needs.
- Requests in flight and queue wait grow as ρ/(1-ρ): nothing to see at half load, everything at once at the knee. An
  autoscaler, which multiplies replicas by metric / target, then overshoots and flaps.

Offered rows count what is refused too, so that 1.7 means: 1.7 times this server. It is linear in what callers send,
and what was asked of one replica is asked in halves of two.

Threads: sampled on the main thread once a second, read on the page's.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from forwardpass_server.observe.statistics import VersionStatistics

WINDOW_S = 15.0
"""Over how many seconds the ratio is taken: the usual interval of scrapes, and of the autoscaler's decisions."""


class Serving(Protocol):
    """A version that takes load; a `scheduling.scheduler.Scheduler`."""

    @property
    def statistics(self) -> VersionStatistics: ...

    @property
    def depth(self) -> int: ...
    @property
    def instances(self) -> int: ...
    @property
    def seconds_per_row(self) -> float: ...


@dataclass(slots=True, eq=False)
class Demand:
    """The instance-seconds that were asked of one version since it serves."""

    seconds: float = 0.0
    _rows: float = 0.0

    def sample(self, serving: Serving) -> None:
        """Add what was offered since the last sample, at what a row costs now."""
        rows = serving.statistics.offered_rows(serving.depth)
        if rows > self._rows:  # a waiting request that leaves is counted once it has left, a moment later
            self.seconds += (rows - self._rows) * serving.seconds_per_row
            self._rows = rows


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    loop_busy_s: float
    demands_s: dict[Demand, float]


@dataclass(slots=True)
class Saturation:
    """The ratio over the last `WINDOW_S` seconds."""

    ratio: float = 0.0
    """1 is all that this server can do; above 1 it refuses, or its queues grow."""
    _samples: deque[_Sample] = field(default_factory=deque)

    def sample(self, now_s: float, loop_busy_s: float, versions: Iterable[tuple[Demand, int]]) -> None:
        """Look at the counters.

        Args:
            now_s: of the monotonic clock.
            loop_busy_s: seconds that the loop has been busy since it began.
            versions: the demand of each version that serves, as sampled now, and its instances.
        """
        known = [(demand, instances) for demand, instances in versions if instances]
        samples = self._samples
        samples.append(_Sample(now_s, loop_busy_s, {demand: demand.seconds for demand, _ in known}))
        while len(samples) > 2 and samples[1].at_s <= now_s - WINDOW_S:
            samples.popleft()
        first = samples[0]
        passed_s = now_s - first.at_s
        if passed_s <= 0:
            return
        # A version that came later has asked for nothing before.
        shares = [
            (demand.seconds - first.demands_s.get(demand, 0.0)) / instances / passed_s for demand, instances in known
        ]
        self.ratio = max([(loop_busy_s - first.loop_busy_s) / passed_s, *shares])


class RecentLag:
    """The longest round of the loop lately, whoever asks and however often.

    A gauge of the last round would show one of thousands. The maximum is kept for two windows of `WINDOW_S`, so that
    every round is seen by every scraper that comes at least that often.
    """

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since_s: float | None = None

    def read(self, now_s: float, longest_s: float) -> tuple[float, bool]:
        """The lag to show.

        Args:
            now_s: of the monotonic clock.
            longest_s: the longest round since the last time that this said to begin anew.

        Returns:
            The longest round of this window and the one before it, in seconds; and whether to begin anew.
        """
        if self._since_s is None:
            self._since_s = now_s
        shown_s = max(self._before_s, longest_s)
        if now_s - self._since_s < WINDOW_S:
            return shown_s, False
        self._before_s, self._since_s = longest_s, now_s
        return shown_s, True
