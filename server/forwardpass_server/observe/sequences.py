"""The sequences of the versions that keep some, on the metrics page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

LABELS = ("model", "version")


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceCounts:
    """The sequences of one version.

    Args:
        slots: how many may be active at a time.
        active: that have a slot.
        waiting: that wait for one.
        started: since the load.
        ended: likewise, by why.
        refused: requests that were let into no sequence, by why.
    """

    slots: int
    active: int
    waiting: int
    started: int
    ended: Mapping[str, int]
    refused: Mapping[str, int]


@runtime_checkable
class KeepsSequences(Protocol):
    """A `scheduling.sequence_scheduler.SequenceScheduler`. Read on the page's thread."""

    @property
    def sequence_counts(self) -> SequenceCounts: ...


def collect(serving: Iterable[tuple[Sequence[str], object]]) -> Iterator[Metric]:
    """The samples of this moment.

    Args:
        serving: labels and scheduler of each version; those that keep no sequences are passed over.
    """
    slots = GaugeMetricFamily("sequence_slots", "Sequences that may be active at a time.", labels=LABELS)
    active = GaugeMetricFamily("sequences_active", "Sequences that have a slot.", labels=LABELS)
    waiting = GaugeMetricFamily("sequences_waiting", "Sequences that wait for a slot.", labels=LABELS)
    started = CounterMetricFamily("sequences_started", "Sequences that requests started.", labels=LABELS)
    ended = CounterMetricFamily("sequences_ended", "Sequences that are over, by why.", labels=[*LABELS, "reason"])
    refused = CounterMetricFamily(
        "sequence_requests_refused", "Requests that were let into no sequence, by why.", labels=[*LABELS, "reason"]
    )
    for labels, scheduled in serving:
        if not isinstance(scheduled, KeepsSequences):
            continue
        counts = scheduled.sequence_counts
        slots.add_metric(labels, counts.slots)
        active.add_metric(labels, counts.active)
        waiting.add_metric(labels, counts.waiting)
        started.add_metric(labels, counts.started)
        for reason, count in counts.ended.items():
            ended.add_metric([*labels, reason], count)
        for reason, count in counts.refused.items():
            refused.add_metric([*labels, reason], count)
    yield from (slots, active, waiting, started, ended, refused)
