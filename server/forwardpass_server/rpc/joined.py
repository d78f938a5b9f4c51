"""What the processes of one server answer, each for itself, as one answer."""

from collections.abc import Iterable, Sequence

from google.protobuf.message import Message

from forwardpass_proto import grpc_service_pb2 as pb

Index = pb.RepositoryIndexResponse.ModelIndex

READY = "READY"


def statistics(answers: Sequence[pb.ModelStatisticsResponse]) -> pb.ModelStatisticsResponse:
    """Counts and durations are added, those of runs by their batch size; the last inference is the latest."""
    joined: dict[tuple[str, str], pb.ModelStatistics] = {}
    for answer in answers:
        for each in answer.model_stats:
            key = (each.name, each.version)
            if key in joined:
                _add_version(joined[key], each)
            else:
                joined[key] = each
    return pb.ModelStatisticsResponse(model_stats=[joined[key] for key in sorted(joined, key=_by_number)])


def index(answers: Sequence[tuple[int, pb.RepositoryIndexResponse]], silent: Iterable[int]) -> list[Index]:
    """A version is READY where it is so in every process; else the first in which it is not is named in the reason.

    Args:
        answers: with the number of the process that gave it; not one is left out that is not READY.
        silent: processes that did not answer.
    """
    names = {(row.name, row.version) for _, answer in answers for row in answer.models}
    by_process = [(process, {(row.name, row.version): row for row in answer.models}) for process, answer in answers]
    rows = []
    for name, version in sorted(names, key=_by_number):
        unknown = Index(name=name, version=version, state="UNAVAILABLE", reason="it does not know this version (yet)")
        told = [(process, of_process.get((name, version), unknown)) for process, of_process in by_process]
        late = Index(name=name, version=version, state="UNAVAILABLE", reason="it does not answer")
        rows.append(_one_row([*told, *((process, late) for process in silent)]))
    return rows


def _one_row(told: Sequence[tuple[int, Index]]) -> Index:
    if all(row == told[0][1] for _, row in told):
        return told[0][1]
    # All may be READY, and one of them say why what was to replace it cannot be loaded.
    process, first = next(
        ((process, row) for process, row in told if row.state != READY),
        next((process, row) for process, row in told if row.reason or row.state != READY),
    )
    reason = f"process {process}: {first.reason}" if first.reason else f"in process {process}"
    return Index(name=first.name, version=first.version, state=first.state, reason=reason)


def _by_number(key: tuple[str, str]) -> tuple[str, int]:
    name, version = key
    return name, int(version)


def _add_version(total: pb.ModelStatistics, other: pb.ModelStatistics) -> None:
    total.last_inference = max(total.last_inference, other.last_inference)
    total.inference_count += other.inference_count
    total.execution_count += other.execution_count
    _add_durations(total.inference_stats, other.inference_stats)
    runs = {each.batch_size: each for each in total.batch_stats}
    for each in other.batch_stats:
        if each.batch_size in runs:
            _add_durations(runs[each.batch_size], each)
        else:
            runs[each.batch_size] = each
    ordered = [pb.InferBatchStatistics.FromString(runs[size].SerializeToString()) for size in sorted(runs)]
    del total.batch_stats[:]
    total.batch_stats.extend(ordered)


def _add_durations(total: Message, other: Message) -> None:
    """Add every duration that one of both has."""
    for field, duration in other.ListFields():
        if isinstance(duration, pb.StatisticDuration):
            sum_ = getattr(total, field.name)
            sum_.count += duration.count
            sum_.ns += duration.ns
