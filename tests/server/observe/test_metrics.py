"""The page as Prometheus sees it, and as its own checker judges it."""

import shutil
import subprocess
from dataclasses import dataclass
from math import inf

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from forwardpass_server.errors import DeadlineExpired, InvalidRequest, Overloaded, RunFailed
from forwardpass_server.observe.metrics import Metrics
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.observe.timeline import Timeline

INFER = "/inference.GRPCInferenceService/ModelInfer"
MNIST = {"model": "mnist_cnn", "version": "3"}


class Served:
    """A version that serves, with a queue of 7."""

    depth = 7
    queue_bytes = 280
    inflight = 9
    instances = 2
    seconds_per_row = 0.004
    slo_s = 0.25

    def __init__(self) -> None:
        self.statistics = VersionStatistics()
        self.timeline = Timeline(1)
        self.timeline.queued_ns = 2
        self.timeline.run_end_ns = 3_000_000
        self.timeline.encoded_ns = 4_000_000


@dataclass
class LoopStats:
    loop_busy_s: float = 0.0
    loop_lag_max_s: float = 0.0


def make() -> Metrics:
    return Metrics(methods=[INFER], build={"version": "0.1.0", "onnxruntime": "1.31.1"})


def full() -> Metrics:
    """With something in every metric."""
    metrics = make()
    call = metrics.call(INFER)
    for code in ("OK", "OK", "INVALID_ARGUMENT"):
        call.started()
        call.handled(code, 2_000_000)
    metrics.set_state("mnist_cnn", 3, "ready")
    metrics.loaded("mnist_cnn", 3, 1.5, {"sha256": "ab", "provider": "CPUExecutionProvider"}, fallback=True)
    metrics.load_failed("mnist_cnn", 4)
    metrics.set_draining(True)
    metrics.watch_loop(LoopStats(loop_busy_s=12.5, loop_lag_max_s=0.25))
    served = Served()
    served.statistics.ran([served, served], 8, 1_000_000, 1_000_000, 3_000_000)
    served.statistics.answered([served, served], 8)
    served.statistics.run_failed()
    for error in (InvalidRequest("x"), RunFailed("x"), Overloaded("x", retry_after_s=1)):
        served.statistics.refused(error)
    metrics.serve("mnist_cnn", 3, served)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_promtool_accepts_the_page() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian package prometheus) is not installed")
    for metrics in (make(), full()):
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True, timeout=60
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_calls_are_counted_by_method_and_code() -> None:
    metrics = full()
    labels = {"grpc_service": "inference.GRPCInferenceService", "grpc_method": "ModelInfer"}
    assert value(metrics, "grpc_server_started_total", **labels) == 3
    assert value(metrics, "grpc_server_handled_total", **labels, grpc_code="OK") == 2
    assert value(metrics, "grpc_server_handled_total", **labels, grpc_code="INVALID_ARGUMENT") == 1
    assert value(metrics, "grpc_server_handling_seconds_count", **labels) == 3
    assert value(metrics, "grpc_server_handling_seconds_sum", **labels) == pytest.approx(0.006)
    assert value(metrics, "grpc_server_handling_seconds_bucket", **labels, le="0.0025") == 3
    assert value(metrics, "grpc_server_handling_seconds_bucket", **labels, le="0.001") == 0


def test_a_version_shows_its_account() -> None:
    metrics = full()
    for outcome, count in {"ok": 2, "invalid": 1, "failed": 1, "shed": 1, "expired": 0, "canceled": 0}.items():
        assert value(metrics, "infer_requests_total", **MNIST, outcome=outcome) == count
    assert value(metrics, "infer_rows_total", **MNIST) == 8
    assert value(metrics, "infer_batches_total", **MNIST) == 1
    assert value(metrics, "infer_failed_batches_total", **MNIST) == 1
    assert value(metrics, "infer_batch_size_bucket", **MNIST, le="8.0") == 1
    assert value(metrics, "infer_batch_size_bucket", **MNIST, le="4.0") == 0
    assert value(metrics, "infer_compute_seconds_sum", **MNIST) == pytest.approx(0.004)
    assert value(metrics, "infer_request_seconds_count", **MNIST) == 2
    assert value(metrics, "infer_queue_seconds_count", **MNIST) == 2
    assert value(metrics, "infer_busy_seconds_total", **MNIST) == pytest.approx(0.003)
    assert value(metrics, "infer_instances", **MNIST) == 2
    assert value(metrics, "infer_slo_seconds", **MNIST) == 0.25


def test_a_model_that_promises_no_latency_has_no_slo() -> None:
    metrics = make()
    served = Served()
    served.slo_s = inf
    metrics.serve("mnist_cnn", 3, served)
    assert value(metrics, "infer_slo_seconds", **MNIST) is None


def test_demand_and_saturation_are_what_was_asked_since_the_version_serves() -> None:
    now_s = 100.0
    metrics = Metrics(methods=[], build={}, clock_s=lambda: now_s)
    loop = LoopStats()
    metrics.watch_loop(loop)
    served = Served()
    served.depth = 0
    metrics.serve("mnist_cnn", 3, served)
    metrics.sample()
    served.statistics.ran([served, served], 500, 1_000_000, 1_000_000, 3_000_000)
    now_s, loop.loop_busy_s = 101.0, 0.25
    metrics.sample()
    assert value(metrics, "infer_demand_seconds_total", **MNIST) == pytest.approx(500 * 0.004)
    assert value(metrics, "saturation_ratio") == pytest.approx(500 * 0.004 / 2)
    metrics.serve("mnist_cnn", 3, Served())
    assert value(metrics, "infer_demand_seconds_total", **MNIST) == 0


def test_every_metric_has_help_and_says_its_unit() -> None:
    units = ("_seconds", "_bytes", "_ratio", "_info")
    counted = ("_requests", "_rows", "_batches", "_hits", "_misses", "_failures", "_started", "_handled", "_instances")
    counted += ("_slots", "_active", "_waiting", "_parked", "_tokens", "_ended", "_refused")
    plain = {"infer_queue_depth", "infer_inflight", "infer_batch_size", "model_state", "provider_fallback", "draining"}
    for family in full().registry.collect():
        if not family.name.startswith(("process_", "python_")):  # prometheus_client's own
            assert family.documentation.endswith("."), family.name
            assert family.name in plain or family.name.endswith((*units, *counted)), family.name


def test_the_queue_is_read_when_it_is_asked_for() -> None:
    metrics = make()
    served = Served()
    metrics.serve("mnist_cnn", 3, served)
    assert value(metrics, "infer_queue_depth", **MNIST) == 7
    assert value(metrics, "infer_queue_bytes", **MNIST) == 280
    assert value(metrics, "infer_inflight", **MNIST) == 9
    served.depth = 0
    assert value(metrics, "infer_queue_depth", **MNIST) == 0


def test_a_version_shows_its_life() -> None:
    metrics = full()
    assert value(metrics, "model_state", **MNIST, state="ready") == 1
    assert value(metrics, "model_load_seconds", **MNIST) == 1.5
    assert value(metrics, "model_load_failures_total", model="mnist_cnn", version="4") == 1
    assert value(metrics, "provider_fallback", **MNIST) == 1
    assert value(metrics, "model_info", **MNIST, sha256="ab", provider="CPUExecutionProvider") == 1
    metrics.set_state("mnist_cnn", 3, "draining")
    assert value(metrics, "model_state", **MNIST, state="ready") is None
    assert value(metrics, "model_state", **MNIST, state="draining") == 1


def test_the_process_shows_itself() -> None:
    metrics = full()
    assert value(metrics, "draining") == 1
    assert value(metrics, "event_loop_lag_seconds") == 0.25
    assert value(metrics, "event_loop_busy_seconds_total") == 12.5
    assert value(metrics, "forwardpass_build_info", version="0.1.0", onnxruntime="1.31.1") == 1
    assert (value(metrics, "process_resident_memory_bytes") or 0) > 2**20


def test_a_version_that_is_gone_leaves_no_series() -> None:
    metrics = full()
    metrics.forget("mnist_cnn", 3)
    metrics.forget("mnist_cnn", 4)
    assert b"mnist_cnn" not in generate_latest(metrics.registry)


def test_methods_that_are_not_served_share_one_series() -> None:
    metrics = make()

    def series() -> int:
        page = generate_latest(metrics.registry).decode()
        return sum(len(f.samples) for f in text_string_to_metric_families(page) if f.name.startswith("grpc_server"))

    metrics.call("/x/0").handled("UNIMPLEMENTED", 1)
    before = series()
    for number in range(1000):
        call = metrics.call(f"/x/{number}\nforged 1")
        call.started()
        call.handled("UNIMPLEMENTED", 1)
    assert series() == before
    assert value(metrics, "grpc_server_started_total", grpc_service="other", grpc_method="other") == 1000


def test_names_from_the_repository_are_escaped() -> None:
    metrics = make()
    metrics.set_state('a"b\\c', 1, "ready")
    page = generate_latest(metrics.registry).decode()
    assert 'model="a\\"b\\\\c"' in page


def test_two_servers_in_one_process_do_not_share_their_metrics() -> None:
    one, two = make(), make()
    one.call(INFER).started()
    labels = {"grpc_service": "inference.GRPCInferenceService", "grpc_method": "ModelInfer"}
    assert value(one, "grpc_server_started_total", **labels) == 1
    assert value(two, "grpc_server_started_total", **labels) == 0


def test_a_registry_may_be_given() -> None:
    registry = CollectorRegistry()
    assert Metrics(methods=[], build={}, registry=registry).registry is registry


def test_tritons_names_show_the_same_account_and_only_when_asked_for() -> None:
    metrics = Metrics(methods=[], build={}, triton_names=True)
    served = Served()
    served.timeline.received_ns = 1
    served.statistics.ran([served, served], 8, 1_000_000, 1_000_000, 3_000_000)
    served.statistics.answered([served, served], 8)
    for error in (InvalidRequest("x"), RunFailed("x"), Overloaded("x", retry_after_s=1), DeadlineExpired("x")):
        served.statistics.refused(error)
    metrics.serve("mnist_cnn", 3, served)
    assert value(metrics, "nv_inference_request_success", **MNIST) == 2
    assert value(metrics, "nv_inference_count", **MNIST) == 8
    assert value(metrics, "nv_inference_exec_count", **MNIST) == 1
    assert value(metrics, "nv_inference_compute_infer_duration_us", **MNIST) == 4000
    assert value(metrics, "nv_inference_pending_request_count", **MNIST) == 7
    failures = {
        reason: value(metrics, "nv_inference_request_failure", **MNIST, reason=reason)
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }
    assert failures == {"REJECTED": 2, "CANCELED": 0, "BACKEND": 1, "OTHER": 1}
    page = generate_latest(metrics.registry).decode()
    assert 'nv_inference_request_success{model="mnist_cnn",version="3"} 2.0' in page.splitlines(), "no _total"
    assert "nv_" not in generate_latest(full().registry).decode()
