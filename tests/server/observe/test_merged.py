"""Many pages as one: totals never fall, and every gauge has a rule."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from forwardpass_server.observe.gpu import Reading
from forwardpass_server.observe.merged import GAUGES, MergedPages, read
from forwardpass_server.observe.metrics import Metrics


class Process:
    """What one process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("infer_requests", "Requests.", ["model"], registry=self.registry)
        self.seconds = Histogram("infer_queue_seconds", "Waiting.", buckets=(0.1, 1.0), registry=self.registry)
        self.depth = Gauge("infer_queue_depth", "Waiting now.", registry=self.registry)
        self.lag = Gauge("event_loop_lag_seconds", "Late.", registry=self.registry)
        self.started = Gauge("process_start_time_seconds", "Began.", registry=self.registry)

    def page(self) -> str:
        return generate_latest(self.registry).decode()


def samples(merged: MergedPages) -> dict[tuple[str, str], float]:
    """Values by name and labels, read from the page itself."""
    text = generate_latest(merged.registry).decode()
    return {
        (sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_and_histograms_are_added_and_gauges_joined_by_their_rule() -> None:
    one, other = Process(), Process()
    one.calls.labels("a").inc(3)
    other.calls.labels("a").inc(4)
    other.calls.labels("b").inc(5)
    one.seconds.observe(0.05)
    other.seconds.observe(0.5)
    for process, value in ((one, 2.0), (other, 7.0)):
        process.depth.set(value)
        process.lag.set(value)
        process.started.set(value)
    merged = samples(MergedPages(lambda: {1: one.page(), 2: other.page()}, restarts=lambda: 9, hangs=lambda: 3))
    assert merged["infer_requests_total", "model=a"] == 7
    assert merged["infer_requests_total", "model=b"] == 5
    assert merged["infer_queue_seconds_bucket", "le=0.1"] == 1
    assert merged["infer_queue_seconds_bucket", "le=+Inf"] == merged["infer_queue_seconds_count", ""] == 2
    assert merged["infer_queue_seconds_sum", ""] == pytest.approx(0.55)
    assert merged["infer_queue_depth", ""] == 9
    assert merged["event_loop_lag_seconds", ""] == 7
    assert merged["process_start_time_seconds", ""] == 2
    assert merged["server_processes", ""] == 2
    assert merged["server_process_restarts_total", ""] == 9
    assert merged["server_process_hangs_total", ""] == 3


def test_totals_of_a_process_that_ended_stay_and_its_gauges_go() -> None:
    one, other = Process(), Process()
    pages: dict[int, str | None] = {}
    merged = MergedPages(lambda: pages, restarts=lambda: 0, hangs=lambda: 0)
    for process, count in ((one, 3), (other, 4)):
        process.calls.labels("a").inc(count)
        process.depth.set(count)
    pages |= {1: one.page(), 2: other.page()}
    assert samples(merged)["infer_requests_total", "model=a"] == 7
    del pages[1]
    after = samples(merged)
    assert (after["infer_requests_total", "model=a"], after["infer_queue_depth", ""]) == (7, 4)
    third = Process()
    third.calls.labels("a").inc(10)
    pages |= {3: third.page()}
    assert samples(merged)["infer_requests_total", "model=a"] == 17
    del pages[3]
    assert samples(merged)["infer_requests_total", "model=a"] == 17


def test_of_a_process_that_is_late_the_page_before_stands() -> None:
    one = Process()
    one.calls.labels("a").inc(3)
    pages: dict[int, str | None] = {1: one.page(), 2: None}
    merged = MergedPages(lambda: pages, restarts=lambda: 0, hangs=lambda: 0)
    assert samples(merged)["infer_requests_total", "model=a"] == 3
    pages[1] = None
    assert samples(merged)["infer_requests_total", "model=a"] == 3


def test_every_gauge_of_the_server_has_a_rule_and_every_rule_a_gauge() -> None:
    gpu = Reading(gpu="0", uuid="GPU-1", busy_ratio=0.5)
    metrics = Metrics(methods=["/a/B"], build={"version": "1"}, gpus=lambda: [gpu], triton_names=True)
    page = read(generate_latest(metrics.registry).decode())
    assert {name for name, family in page.items() if family.kind == "gauge"} == GAUGES.keys()
    assert {family.kind for family in page.values()} <= {"counter", "gauge", "histogram", "unknown"}
