"""The figures of texts, and their samples."""

import pytest

from forwardpass_server.errors import CallCancelled
from forwardpass_server.observe.generation import GenerationStatistics, Texts
from forwardpass_server.observe.metrics import Metrics
from forwardpass_server.observe.timeline import Timeline

LABELS = {"model": "m", "version": "1"}
MS = 1_000_000


class Writer:
    """What the page reads of a generator."""

    depth, inflight, active, parked, slots, instances = 3, 12, 9, 2, 64, 1
    queue_bytes = 0
    seconds_per_row = 0.0
    slo_s = 0.25

    def __init__(self, statistics: GenerationStatistics) -> None:
        self.statistics = statistics

    @property
    def written(self) -> Texts:
        return self.statistics.texts()


def timeline(received_ms: int, queued_ms: int, taken_ms: int, end_ms: int) -> Timeline:
    made = Timeline(received_ms * MS)
    made.queued_ns, made.taken_ns, made.run_start_ns, made.run_end_ns = (
        queued_ms * MS,
        taken_ms * MS,
        taken_ms * MS,
        end_ms * MS,
    )
    return made


def test_texts_are_counted_once_and_their_runs_for_each_of_them() -> None:
    statistics = GenerationStatistics(clock_ns=lambda: 60 * MS)
    for run in range(3):
        statistics.stepped(
            2,
            taken_ns=10 * MS,
            start_ns=11 * MS,
            end_ns=15 * MS,
            tokens=16,
            firsts_ns=[9 * MS, 20 * MS] if not run else [],
            gaps_ns=[] if not run else [5 * MS, 5 * MS],
        )
        statistics.said(2, MS)
    statistics.finished([timeline(0, 2, 10, 50), timeline(10, 10, 20, 50)])
    statistics.refused(CallCancelled("left"))
    account, texts = statistics.snapshot(), statistics.texts()
    assert (account.outcomes["ok"], account.outcomes["canceled"]) == (2, 1)
    assert (account.executions, account.rows, account.batch_size.total) == (3, 6, 6)
    assert (account.queue.count, account.queue.ns) == (2, 18 * MS)
    assert (account.success.count, account.success.ns) == (2, 110 * MS)
    assert (account.compute_infer.count, account.compute_infer.ns) == (2, 70 * MS)
    assert account.compute_input.count == account.compute_output.count == 2
    assert (account.batches[2].executions, account.batches[2].infer_ns, account.batches[2].output_ns) == (
        3,
        12 * MS,
        3 * MS,
    )
    assert texts.tokens == 48
    assert (texts.first_piece_seconds.sum, sum(texts.first_piece_seconds.counts)) == (pytest.approx(0.029), 2)
    assert (texts.between_pieces_seconds.sum, sum(texts.between_pieces_seconds.counts)) == (pytest.approx(0.02), 4)


def test_a_copy_stands_still() -> None:
    statistics = GenerationStatistics()
    before = statistics.texts()
    statistics.stepped(1, taken_ns=0, start_ns=0, end_ns=1, tokens=5, firsts_ns=[1], gaps_ns=[])
    assert before.tokens == 0
    assert sum(before.first_piece_seconds.counts) == 0


def test_they_stand_on_the_page_and_only_for_those_who_write() -> None:
    metrics = Metrics(methods=[], build={})
    statistics = GenerationStatistics()
    statistics.stepped(5, taken_ns=0, start_ns=0, end_ns=MS, tokens=160, firsts_ns=[3 * MS], gaps_ns=[4 * MS] * 4)
    metrics.set_state("m", 1, "ready")
    metrics.serve("m", 1, Writer(statistics))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {**LABELS, **labels})

    assert value("generation_slots") == 64
    assert value("generation_active") == 9
    assert value("generation_waiting") == 3
    assert value("generation_parked") == 2
    assert value("generation_tokens_total") == 160
    assert value("generation_first_piece_seconds_count") == 1
    assert value("generation_first_piece_seconds_sum") == pytest.approx(0.003)
    assert value("generation_between_pieces_seconds_bucket", le="0.005") == 4
    assert value("infer_batch_size_bucket", le="8.0") == 1
    assert value("infer_batch_size_bucket", le="4.0") == 0
    assert value("sequence_slots") is None
