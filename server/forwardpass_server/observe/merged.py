"""Many pages as one: what the processes of one server count, each for itself, as if one process had counted it.

Counters and histograms are added. Of a process that ended they are kept, as its last page had them, so that a total
never falls; what it counted after that page is lost with it. Gauges are of this moment, and joined as `GAUGES` says.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Join = Callable[[Iterable[float]], float]

GAUGES: Mapping[str, Join] = {
    # what is there in all processes together
    "infer_queue_depth": sum,
    "infer_queue_bytes": sum,
    "infer_inflight": sum,
    "infer_instances": sum,
    "sequence_slots": sum,
    "sequences_active": sum,
    "sequences_waiting": sum,
    "nv_inference_pending_request_count": sum,
    "generation_active": sum,
    "generation_parked": sum,
    "generation_slots": sum,
    "generation_waiting": sum,
    "response_cache_bytes": sum,
    "process_virtual_memory_bytes": sum,
    "process_resident_memory_bytes": sum,
    # what is said of a version or a build: 1 where one process says so
    "forwardpass_build_info": max,
    "model_info": max,
    "model_state": max,
    "provider_fallback": max,
    "python_info": max,
    # the same GPUs, seen by each
    "gpu_busy_ratio": max,
    "gpu_memory_used_bytes": max,
    "gpu_memory_total_bytes": max,
    "gpu_power_watts": max,
    "nv_gpu_utilization": max,
    "nv_gpu_memory_used_bytes": max,
    "nv_gpu_memory_total_bytes": max,
    "nv_gpu_power_usage": max,
    # the worst of them
    "draining": max,
    "event_loop_lag_seconds": max,
    "infer_slo_seconds": max,
    "saturation_ratio": max,
    "model_load_seconds": max,
    "process_open_fds": max,
    "process_max_fds": min,
    "process_start_time_seconds": min,
}
"""How each gauge of `observe.metrics` is joined; a test compares. One that is not here is added."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample, and its labels in order of their names."""


@dataclass
class Family:
    """One metric of one page.

    Args:
        kind: "counter", "gauge" or "histogram".
        help: its line of help.
        samples: by name and labels.
    """

    kind: str
    help: str
    samples: dict[Key, float] = field(default_factory=dict)


Page = dict[str, Family]


def read(text: str) -> Page:
    """A page in Prometheus's text format, by the names of its metrics."""
    page: Page = {}
    for metric in text_string_to_metric_families(text):
        family = page.setdefault(metric.name, Family(metric.type, metric.documentation))
        for sample in metric.samples:
            family.samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return page


def merge(pages: Iterable[Page]) -> Page:
    """One page out of several; `GAUGES` has the rules."""
    merged: Page = {}
    values: dict[str, dict[Key, list[float]]] = {}
    for page in pages:
        for name, family in page.items():
            merged.setdefault(name, Family(family.kind, family.help))
            for key, value in family.samples.items():
                values.setdefault(name, {}).setdefault(key, []).append(value)
    for name, family in merged.items():
        join = GAUGES.get(name, sum) if family.kind == "gauge" else sum
        family.samples = {key: join(each) for key, each in values.get(name, {}).items()}
    return merged


def totals(page: Page) -> Page:
    """What of a page outlives its process: counters and histograms."""
    return {name: family for name, family in page.items() if family.kind != "gauge"}


class MergedPages(Collector):
    """The processes' pages as one registry.

    Args:
        fetch: the page of each process that lives, by a number that no other process ever has; None for one that does
            not answer in time, whose page before that then stands. Called on the page's thread.
        restarts: how many processes have been started in place of others.
        hangs: how many have been killed because they did not answer.
    """

    def __init__(
        self, fetch: Callable[[], Mapping[int, str | None]], restarts: Callable[[], int], hangs: Callable[[], int]
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._fetch = fetch
        self._restarts = restarts
        self._hangs = hangs
        self._lock = threading.Lock()
        self._pages: dict[int, Page] = {}
        self._ended: Page = {}
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """All samples of this moment. The page's thread."""
        with self._lock:
            fetched = self._fetch()
            for number in self._pages.keys() - fetched.keys():
                self._ended = merge([self._ended, totals(self._pages.pop(number))])
            self._pages |= {number: read(text) for number, text in fetched.items() if text is not None}
            merged = merge([self._ended, *self._pages.values()])
        yield GaugeMetricFamily("server_processes", "Processes that share the port.", value=len(fetched))
        yield CounterMetricFamily(
            "server_process_restarts", "Processes started in place of one that ended.", value=self._restarts()
        )
        yield CounterMetricFamily(
            "server_process_hangs", "Processes killed because they did not answer.", value=self._hangs()
        )
        for name, family in merged.items():
            metric = Metric(name, family.help, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def describe(self) -> list[Metric]:
        """Nothing: a registry that asked would collect."""
        return []
