"""The names that Triton gives its metrics, so that dashboards, alerts and perf_analyzer made for it go on working.

Off unless `--triton-metrics` asks for it: every figure is on the page under our own name already. Their counters are in
microseconds and do not end in `_total`, which Prometheus's client library would put there, so they are shown without a
type; queries do not mind.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric

from forwardpass_server.observe.gpu import Reading
from forwardpass_server.observe.statistics import Account, Outcome

US = 1000
"""Nanoseconds of a microsecond."""

REASONS: Mapping[Outcome, str] = {
    "shed": "REJECTED",
    "expired": "REJECTED",
    "canceled": "CANCELED",
    "failed": "BACKEND",
    "invalid": "OTHER",
}
"""Under which reason of theirs a request of ours that was not answered is counted."""

FAILURE = "nv_inference_request_failure"
PENDING = "nv_inference_pending_request_count"


def collect(accounts: Iterable[tuple[tuple[str, str], Account, int]], gpus: Iterable[Reading]) -> Iterator[Metric]:
    """The aliases.

    Args:
        accounts: model and version, what was counted of it, and how many requests wait.
        gpus: likewise of the GPUs.
    """
    families = {name: Metric(name, text, "unknown") for name, text in _OF_MODELS.items()}
    pending = families[PENDING] = Metric(PENDING, "Requests that wait for an instance, by Triton's name.", "gauge")
    for (model, version), account, waiting in accounts:
        labels = {"model": model, "version": version}
        for name, value in _values(account).items():
            families[name].add_sample(name, labels, value)
        for reason in dict.fromkeys(REASONS.values()):
            count = sum(account.outcomes[outcome] for outcome, theirs in REASONS.items() if theirs == reason)
            families[FAILURE].add_sample(FAILURE, labels | {"reason": reason}, count)
        pending.add_sample(PENDING, labels, waiting)
    yield from families.values()
    yield from _collect_gpus(gpus)


_OF_MODELS = {
    "nv_inference_request_success": "Requests answered, by Triton's name.",
    FAILURE: "Requests not answered, by Triton's name and reasons.",
    "nv_inference_count": "Rows that were run, by Triton's name.",
    "nv_inference_exec_count": "Runs of the model, by Triton's name.",
    "nv_inference_request_duration_us": "Time of requests, by Triton's name, in microseconds.",
    "nv_inference_queue_duration_us": "Time that requests waited, by Triton's name, in microseconds.",
    "nv_inference_compute_input_duration_us": "Time of stacking, by Triton's name, in microseconds.",
    "nv_inference_compute_infer_duration_us": "Time of running, by Triton's name, in microseconds.",
    "nv_inference_compute_output_duration_us": "Time of splitting and encoding, by Triton's name, in microseconds.",
    "nv_cache_num_hits_per_model": "Answers from the response cache, by Triton's name.",
    "nv_cache_num_misses_per_model": "Requests not found in the response cache, by Triton's name.",
    "nv_cache_hit_duration_per_model": "Time of looking up what was found, by Triton's name, in microseconds.",
    "nv_cache_miss_duration_per_model": "Time of looking up what was not, by Triton's name, in microseconds.",
}


def _values(account: Account) -> dict[str, float]:
    return {
        "nv_inference_request_success": account.outcomes["ok"],
        "nv_inference_count": account.batch_size.total,
        "nv_inference_exec_count": account.executions,
        "nv_inference_request_duration_us": account.success.ns // US,
        "nv_inference_queue_duration_us": account.queue.ns // US,
        "nv_inference_compute_input_duration_us": account.compute_input.ns // US,
        "nv_inference_compute_infer_duration_us": account.compute_infer.ns // US,
        "nv_inference_compute_output_duration_us": account.compute_output.ns // US,
        "nv_cache_num_hits_per_model": account.cache_hit.count,
        "nv_cache_num_misses_per_model": account.cache_miss.count,
        "nv_cache_hit_duration_per_model": account.cache_hit.ns // US,
        "nv_cache_miss_duration_per_model": account.cache_miss.ns // US,
    }


def _collect_gpus(readings: Iterable[Reading]) -> Iterator[Metric]:
    gauges = {name: Metric(name, text, "gauge") for name, text in _OF_GPUS.items()}
    for reading in readings:
        values = (reading.busy_ratio, reading.memory_used_bytes, reading.memory_total_bytes, reading.power_watts)
        for (name, gauge), value in zip(gauges.items(), values, strict=True):
            if value is not None:
                gauge.add_sample(name, {"gpu_uuid": reading.uuid}, value)
    yield from gauges.values()


_OF_GPUS = {
    "nv_gpu_utilization": "Share of time in which a kernel ran, by Triton's name.",
    "nv_gpu_memory_used_bytes": "Memory in use, by Triton's name.",
    "nv_gpu_memory_total_bytes": "Memory of the GPU, by Triton's name.",
    "nv_gpu_power_usage": "Power drawn in watts, by Triton's name.",
}
