"""ModelStatistics: the account of each version, the same one that the metrics page shows.

Durations of stages are of answered requests. `memory_usage` stays empty: ONNX Runtime does not say what one session of
many holds.
"""

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.observe.statistics import BatchSize, Stage


class Statistics:
    """What the versions that serve have done since they were loaded. Loop thread."""

    def __init__(self, models: ModelManager) -> None:
        self._models = models

    def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Of one version, of all that serve of one model, or of all.

        Raises:
            InvalidRequest, NotFound, NotReady: as inference would.
        """
        if request.name and request.version:
            versions = [self._models.version(request.name, request.version)]
        else:
            if request.name:
                self._models.version(request.name, "")
            versions = [each for each in self._models.serving() if request.name in ("", each.model)]
        return pb.ModelStatisticsResponse(model_stats=[_statistics(version) for version in versions])


def _statistics(version: LoadedVersion) -> pb.ModelStatistics:
    account = version.scheduler.statistics.snapshot()
    return pb.ModelStatistics(
        name=version.model,
        version=str(version.number),
        last_inference=account.last_inference_ms,
        inference_count=account.rows,
        execution_count=account.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(account.success),
            fail=_duration(account.fail),
            queue=_duration(account.queue),
            compute_input=_duration(account.compute_input),
            compute_infer=_duration(account.compute_infer),
            compute_output=_duration(account.compute_output),
            cache_hit=_duration(account.cache_hit),
            cache_miss=_duration(account.cache_miss),
        ),
        batch_stats=[_batch(rows, runs) for rows, runs in sorted(account.batches.items())],
    )


def _duration(stage: Stage) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=stage.count, ns=stage.ns)


def _batch(rows: int, runs: BatchSize) -> pb.InferBatchStatistics:
    """The runs of one batch size; durations are of runs, not of requests."""
    return pb.InferBatchStatistics(
        batch_size=rows,
        compute_input=pb.StatisticDuration(count=runs.executions, ns=runs.input_ns),
        compute_infer=pb.StatisticDuration(count=runs.executions, ns=runs.infer_ns),
        compute_output=pb.StatisticDuration(count=runs.executions, ns=runs.output_ns),
    )
