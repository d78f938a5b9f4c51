"""What one generator has done: the account of its version, and beside it what only texts have; and its samples.

A request is a text here: it counts once, when it ends, as answered, refused, gone or failed. A run is a step of many
texts, so `rows` and the batch sizes of the account say how many rode in each.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from forwardpass_server.observe.histogram import LATENCY_BOUNDS_S, NS, Histogram
from forwardpass_server.observe.statistics import BatchSize, VersionStatistics
from forwardpass_server.observe.timeline import Timeline

LABELS = ("model", "version")


@dataclass(slots=True)
class Texts:
    """Figures of texts."""

    tokens: int = 0
    """Tokens written; those of prompts are not in it."""
    first_piece_seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S, NS))
    """From the arrival of a request to its first tokens."""
    between_pieces_seconds: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S, NS))
    """From tokens to the next tokens of the same text."""


class GenerationStatistics(VersionStatistics):
    """The account of one generator. Every method may be called on any thread."""

    def __init__(
        self, clock_ns: Callable[[], int] = time.monotonic_ns, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        super().__init__(clock_ns, wall_ns)
        self._texts = Texts()

    def stepped(
        self,
        rows: int,
        *,
        taken_ns: int,
        start_ns: int,
        end_ns: int,
        tokens: int,
        firsts_ns: Sequence[int],
        gaps_ns: Sequence[int],
    ) -> None:
        """A run succeeded. Called before its tokens leave.

        Args:
            rows: texts that rode in it.
            taken_ns, start_ns, end_ns: they were chosen; the model started; the model answered.
            tokens: written by it.
            firsts_ns: of each text whose first tokens they are, the time since its arrival.
            gaps_ns: of the others that wrote, the time since their tokens before.
        """
        last_inference_ms = self._wall_ns() // 1_000_000
        with self._lock:
            account, texts = self._account, self._texts
            account.batch_size.observe(rows)
            account.rows += rows
            account.executions += 1
            account.last_inference_ms = last_inference_ms
            of_size = account.batches.setdefault(rows, BatchSize())
            of_size.executions += 1
            of_size.input_ns += start_ns - taken_ns
            of_size.infer_ns += end_ns - start_ns
            texts.tokens += tokens
            if firsts_ns:
                texts.first_piece_seconds.observe_all(firsts_ns)
            if gaps_ns:
                texts.between_pieces_seconds.observe_all(gaps_ns)

    def said(self, rows: int, took_ns: int) -> None:
        """The tokens of a run of so many rows have left, which took so long."""
        with self._lock:
            self._account.batches[rows].output_ns += took_ns

    def finished(self, texts: Sequence[Timeline]) -> None:
        """Texts came to their end: written whole, or up to a stop string. Called before their last pieces leave."""
        now_ns = self._clock_ns()
        with self._lock:
            account = self._account
            for timeline in texts:
                waited_ns = timeline.taken_ns - timeline.queued_ns
                account.outcomes["ok"] += 1
                account.queue_seconds.observe(waited_ns)
                account.compute_seconds.observe(timeline.run_end_ns - timeline.taken_ns)
                account.request_seconds.observe(now_ns - timeline.received_ns)
                account.queue.add(1, waited_ns)
                account.compute_input.add(1, timeline.run_start_ns - timeline.taken_ns)
                account.compute_infer.add(1, timeline.run_end_ns - timeline.run_start_ns)
                account.compute_output.add(1, now_ns - timeline.run_end_ns)
                account.success.add(1, now_ns - timeline.received_ns)

    def texts(self) -> Texts:
        """A consistent copy of the figures of texts."""
        with self._lock:
            return deepcopy(self._texts)


@runtime_checkable
class WritesTexts(Protocol):
    """A `scheduling.generation.GenerationScheduler`. Read on the page's thread."""

    @property
    def written(self) -> Texts: ...
    @property
    def slots(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def parked(self) -> int: ...


def collect(serving: Iterable[tuple[Sequence[str], object]]) -> Iterator[Metric]:
    """The samples of this moment. How many texts rode in each run is `infer_batch_size`, the runs `infer_batches`.

    Args:
        serving: labels and scheduler of each version; those that write no texts are passed over.
    """
    slots = GaugeMetricFamily("generation_slots", "Texts that one run advances at most.", labels=LABELS)
    active = GaugeMetricFamily(
        "generation_active", "Texts that were begun and are not at their end, parked ones included.", labels=LABELS
    )
    waiting = GaugeMetricFamily("generation_waiting", "Texts that wait for their first run.", labels=LABELS)
    parked = GaugeMetricFamily(
        "generation_parked", "Texts that are left out of runs until their reader has caught up.", labels=LABELS
    )
    tokens = CounterMetricFamily(
        "generation_tokens", "Tokens that were written; those of prompts are not in it.", labels=LABELS
    )
    first = HistogramMetricFamily(
        "generation_first_piece_seconds", "From a request's arrival to the first tokens of its text.", labels=LABELS
    )
    between = HistogramMetricFamily(
        "generation_between_pieces_seconds", "From tokens to the next tokens of the same text.", labels=LABELS
    )
    for labels, scheduled in serving:
        if not isinstance(scheduled, WritesTexts):
            continue
        slots.add_metric(labels, scheduled.slots)
        active.add_metric(labels, scheduled.active)
        waiting.add_metric(labels, scheduled.depth)
        parked.add_metric(labels, scheduled.parked)
        texts = scheduled.written
        tokens.add_metric(labels, texts.tokens)
        first.add_metric(labels, texts.first_piece_seconds.cumulative(), texts.first_piece_seconds.sum)
        between.add_metric(labels, texts.between_pieces_seconds.cumulative(), texts.between_pieces_seconds.sum)
    yield from (slots, active, waiting, parked, tokens, first, between)
