"""Every metric of the server, in this one file: names, help, labels, and where the figures come from.

Nothing here is on the path of a request but `CallMetrics`: the figures of models stand in `observe.statistics` and are
turned into Prometheus samples when somebody scrapes. Label values come from what the server registered (its methods,
the versions in its repository), never from what a caller sent, so the number of series does not grow under an attack.

Units are seconds and bytes; counters end in `_total`.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from forwardpass_server.observe import generation, gpu, sequences, triton
from forwardpass_server.observe.gpu import Reading
from forwardpass_server.observe.histogram import LATENCY_BOUNDS_S, NS, Histogram
from forwardpass_server.observe.saturation import Demand, RecentLag, Saturation
from forwardpass_server.observe.statistics import VersionStatistics

VERSION_LABELS = ("model", "version")
CALL_LABELS = ("grpc_service", "grpc_method")
OTHER_METHOD = "/other/other"
"""Under which calls of methods that this server does not have are counted, whatever they were called."""


class Scheduled(Protocol):
    """What the page reads of a version that serves; a `scheduling.scheduler.Scheduler`. Read on the page's thread."""

    @property
    def statistics(self) -> VersionStatistics: ...
    @property
    def depth(self) -> int: ...
    @property
    def queue_bytes(self) -> int: ...
    @property
    def inflight(self) -> int: ...
    @property
    def instances(self) -> int: ...
    @property
    def seconds_per_row(self) -> float: ...
    @property
    def slo_s(self) -> float: ...


class LoopStats(Protocol):
    """What the page reads of the event loop; a `transport.stats.Stats`."""

    loop_busy_s: float
    loop_lag_max_s: float


@dataclass(slots=True)
class NoLoop:
    """No loop yet."""

    loop_busy_s: float = 0.0
    loop_lag_max_s: float = 0.0


class CallMetrics:
    """The calls of one gRPC method. Every method may be called on any thread: `started` 0.3 µs, `handled` 0.6 µs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = 0
        self._handled: dict[str, int] = {}
        self._seconds = Histogram(LATENCY_BOUNDS_S, NS)

    def started(self) -> None:
        """A call arrived."""
        with self._lock:
            self._started += 1

    def handled(self, code: str, took_ns: int) -> None:
        """A call was answered.

        Args:
            code: the status code's name: "OK", "INVALID_ARGUMENT".
            took_ns: nanoseconds from the message's arrival to the answer.
        """
        with self._lock:
            self._handled[code] = self._handled.get(code, 0) + 1
            self._seconds.observe(took_ns)

    def read(self) -> tuple[int, dict[str, int], list[tuple[str, float]], float]:
        """Calls started; calls handled by code; the buckets and the sum of their durations in seconds."""
        with self._lock:
            return self._started, dict(self._handled), self._seconds.cumulative(), self._seconds.sum


@dataclass(slots=True)
class _Version:
    """What the page says of one version beside its account."""

    state: str = "found"
    load_seconds: float | None = None
    load_failures: int = 0
    info: dict[str, str] | None = None
    fallback: bool = False
    scheduled: Scheduled | None = None
    demand: Demand = field(default_factory=Demand)


class Metrics(Collector):
    """The server's metrics, and the registry that the page shows. Every method may be called on any thread.

    Args:
        methods: full names of the gRPC methods served: "/inference.GRPCInferenceService/ModelInfer".
        build: labels of `build_info`: versions of the server and of what it runs on.
        clock_s: the monotonic clock.
        gpus: reads the GPUs; None where there are none.
        triton_names: show what Triton shows too, by its names.
        registry: a registry of its own when None, so that two servers can live in one process.
    """

    def __init__(
        self,
        *,
        methods: Iterable[str],
        build: Mapping[str, str],
        registry: CollectorRegistry | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        gpus: Callable[[], list[Reading]] | None = None,
        triton_names: bool = False,
    ) -> None:
        self.registry = registry or CollectorRegistry(auto_describe=False)
        self._calls = {method: CallMetrics() for method in (*methods, OTHER_METHOD)}
        self._build = dict(build)
        self._versions: dict[tuple[str, str], _Version] = {}
        self._draining = False
        self._clock_s = clock_s
        self._gpus = gpus
        self._triton_names = triton_names
        self._loop: LoopStats = NoLoop()
        self._lag = RecentLag()
        self._saturation = Saturation()
        self._cache_bytes: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()
        self.registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def call(self, method: str) -> CallMetrics:
        """The metrics of a method; those of "other" for one that is not served."""
        return self._calls.get(method) or self._calls[OTHER_METHOD]

    def set_state(self, model: str, version: int, state: str) -> None:
        """Where a version stands: a value of `lifecycle.states.State`."""
        with self._lock:
            self._version(model, version).state = state

    def loaded(self, model: str, version: int, seconds: float, info: Mapping[str, str], *, fallback: bool) -> None:
        """A version became ready.

        Args:
            seconds: from the start of its verification.
            info: labels of `model_info`: `sha256`, `provider`, `proved`, …; the same keys for every version.
            fallback: it runs on another device than its operator would have liked.
        """
        with self._lock:
            entry = self._version(model, version)
            entry.load_seconds = seconds
            entry.info = dict(info)
            entry.fallback = fallback

    def load_failed(self, model: str, version: int) -> None:
        """A version could not be loaded."""
        with self._lock:
            self._version(model, version).load_failures += 1

    def serve(self, model: str, version: int, scheduled: Scheduled) -> None:
        """Read the queue and the account of a version from now on."""
        with self._lock:
            entry = self._version(model, version)
            entry.scheduled = scheduled
            entry.demand = Demand()

    def forget(self, model: str, version: int) -> None:
        """A version is gone from the server; its series end."""
        with self._lock:
            self._versions.pop((model, str(version)), None)

    def set_draining(self, draining: bool) -> None:
        """Whether the server is on its way out."""
        self._draining = draining

    def watch_loop(self, stats: LoopStats) -> None:
        """Where to read how busy and how late the event loop is. The longest round is set back to 0 now and then."""
        self._loop = stats

    def sample(self) -> None:
        """Look at what was asked of the server; once a second, say. One thread."""
        with self._lock:
            serving = [(entry.demand, entry.scheduled) for entry in self._versions.values() if entry.scheduled]
        for demand, scheduled in serving:
            demand.sample(scheduled)
        versions = [(demand, scheduled.instances) for demand, scheduled in serving]
        self._saturation.sample(self._clock_s(), self._loop.loop_busy_s, versions)

    def watch_cache(self, nbytes: Callable[[], int]) -> None:
        """Where to read how many bytes the response cache holds; called on the page's thread."""
        self._cache_bytes = nbytes

    def collect(self) -> Iterator[Metric]:
        """All samples of this moment. The page's thread."""
        yield from self._collect_process()
        yield from self._collect_calls()
        with self._lock:
            versions = [((model, version), entry) for (model, version), entry in self._versions.items()]
        yield from _collect_lifecycle(versions)
        serving = [(labels, entry.scheduled) for labels, entry in versions if entry.scheduled is not None]
        yield _collect_demand(versions)
        yield from _collect_queues(serving)
        yield from _collect_accounts(serving)
        yield from sequences.collect(serving)
        yield from generation.collect(serving)
        readings = self._gpus() if self._gpus is not None else []
        if self._gpus is not None:
            yield from gpu.collect(readings)
        if self._triton_names:
            accounts = [(labels, each.statistics.snapshot(), each.depth) for labels, each in serving]
            yield from triton.collect(accounts, readings)

    def describe(self) -> list[Metric]:
        """Nothing: names are checked by tests, and a registry that asked would collect."""
        return []

    def _version(self, model: str, version: int) -> _Version:
        return self._versions.setdefault((model, str(version)), _Version())

    def _collect_process(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "forwardpass_build_info", "Versions of the server and of what it runs on; always 1.", labels=[*self._build]
        )
        build.add_metric([*self._build.values()], 1)
        yield build
        yield GaugeMetricFamily("draining", "1 while the server finishes before it stops.", value=int(self._draining))
        lag_s, anew = self._lag.read(self._clock_s(), self._loop.loop_lag_max_s)
        if anew:
            self._loop.loop_lag_max_s = 0.0
        yield GaugeMetricFamily(
            "event_loop_lag_seconds", "Longest round of the event loop in the last 15 to 30 seconds.", value=lag_s
        )
        yield CounterMetricFamily(
            "event_loop_busy_seconds", "Time that the event loop was at work.", value=self._loop.loop_busy_s
        )
        yield GaugeMetricFamily(
            "saturation_ratio",
            "What is asked of this server beside what it can do, over 15 seconds: 1 is full. Scale on this.",
            value=self._saturation.ratio,
        )
        yield GaugeMetricFamily(
            "response_cache_bytes", "Bytes of the answers in the response cache.", value=self._cache_bytes()
        )

    def _collect_calls(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "RPCs that arrived.", labels=CALL_LABELS)
        handled = CounterMetricFamily(
            "grpc_server_handled", "RPCs that were answered, by status code.", labels=[*CALL_LABELS, "grpc_code"]
        )
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds", "From a message's arrival to its answer.", labels=CALL_LABELS
        )
        for full_name, call in self._calls.items():
            _, service, method = full_name.split("/")
            calls, codes, buckets, total = call.read()
            started.add_metric([service, method], calls)
            for code, count in codes.items():
                handled.add_metric([service, method, code], count)
            seconds.add_metric([service, method], buckets, total)
        yield from (started, handled, seconds)


Versions = list[tuple[tuple[str, str], _Version]]
Serving = list[tuple[tuple[str, str], Scheduled]]


def _collect_lifecycle(versions: Versions) -> Iterator[Metric]:
    state = GaugeMetricFamily("model_state", "1 for the state that a version is in.", labels=[*VERSION_LABELS, "state"])
    load = GaugeMetricFamily("model_load_seconds", "How long the last load took.", labels=VERSION_LABELS)
    failures = CounterMetricFamily("model_load_failures", "Loads that failed.", labels=VERSION_LABELS)
    fallback = GaugeMetricFamily(
        "provider_fallback", "1 where a version runs on another device than was wished for.", labels=VERSION_LABELS
    )
    keys = next((list(entry.info) for _, entry in versions if entry.info is not None), [])
    info = GaugeMetricFamily("model_info", "What a loaded version is; always 1.", labels=[*VERSION_LABELS, *keys])
    for labels, entry in versions:
        state.add_metric([*labels, entry.state], 1)
        failures.add_metric(labels, entry.load_failures)
        if entry.load_seconds is not None and entry.info is not None:
            load.add_metric(labels, entry.load_seconds)
            fallback.add_metric(labels, int(entry.fallback))
            info.add_metric([*labels, *(entry.info.get(key, "") for key in keys)], 1)
    yield from (state, load, failures, fallback, info)


def _collect_demand(versions: Versions) -> Metric:
    demand = CounterMetricFamily(
        "infer_demand_seconds",
        "Time of instances that callers asked for, in batches of the size that a loaded server runs.",
        labels=VERSION_LABELS,
    )
    for labels, entry in versions:
        if entry.scheduled is not None:
            demand.add_metric(labels, entry.demand.seconds)
    return demand


def _collect_queues(serving: Serving) -> Iterator[Metric]:
    depth = GaugeMetricFamily("infer_queue_depth", "Requests that wait for an instance.", labels=VERSION_LABELS)
    size = GaugeMetricFamily("infer_queue_bytes", "Bytes of input tensors that wait.", labels=VERSION_LABELS)
    inflight = GaugeMetricFamily("infer_inflight", "Requests admitted and not yet answered.", labels=VERSION_LABELS)
    instances = GaugeMetricFamily("infer_instances", "Runs that may be in progress at a time.", labels=VERSION_LABELS)
    slo = GaugeMetricFamily(
        "infer_slo_seconds", "The latency that the model's configuration promises (slo_p99_ms).", labels=VERSION_LABELS
    )
    for labels, scheduled in serving:
        depth.add_metric(labels, scheduled.depth)
        size.add_metric(labels, scheduled.queue_bytes)
        inflight.add_metric(labels, scheduled.inflight)
        instances.add_metric(labels, scheduled.instances)
        if scheduled.slo_s < inf:
            slo.add_metric(labels, scheduled.slo_s)
    yield from (depth, size, inflight, instances, slo)


def _collect_accounts(serving: Serving) -> Iterator[Metric]:
    requests = CounterMetricFamily("infer_requests", "Requests by how they ended.", labels=[*VERSION_LABELS, "outcome"])
    rows = CounterMetricFamily(
        "infer_rows", "Rows that were run, or answered from the response cache.", labels=VERSION_LABELS
    )
    hits = CounterMetricFamily("infer_cache_hits", "Requests answered from the response cache.", labels=VERSION_LABELS)
    misses = CounterMetricFamily(
        "infer_cache_misses", "Requests looked for in the response cache and not found.", labels=VERSION_LABELS
    )
    batches = CounterMetricFamily("infer_batches", "Runs of the model that succeeded.", labels=VERSION_LABELS)
    failed = CounterMetricFamily(
        "infer_failed_batches",
        "Runs that failed; one of several requests is run again in halves.",
        labels=VERSION_LABELS,
    )
    busy = CounterMetricFamily(
        "infer_busy_seconds",
        "Time that instances spent on runs, stacking and encoding included.",
        labels=VERSION_LABELS,
    )
    queue = HistogramMetricFamily("infer_queue_seconds", "From queued to taken, by request.", labels=VERSION_LABELS)
    compute = HistogramMetricFamily("infer_compute_seconds", "The run that a request rode in.", labels=VERSION_LABELS)
    whole = HistogramMetricFamily(
        "infer_request_seconds", "From a message's arrival to its encoded answer.", labels=VERSION_LABELS
    )
    size = HistogramMetricFamily("infer_batch_size", "Rows of a run.", labels=VERSION_LABELS)
    for labels, scheduled in serving:
        account = scheduled.statistics.snapshot()
        for outcome, count in account.outcomes.items():
            requests.add_metric([*labels, outcome], count)
        rows.add_metric(labels, account.rows)
        hits.add_metric(labels, account.cache_hit.count)
        misses.add_metric(labels, account.cache_miss.count)
        batches.add_metric(labels, account.executions)
        failed.add_metric(labels, account.failed_executions)
        busy_ns = sum(each.input_ns + each.infer_ns + each.output_ns for each in account.batches.values())
        busy.add_metric(labels, busy_ns / NS)
        for family, histogram in (
            (queue, account.queue_seconds),
            (compute, account.compute_seconds),
            (whole, account.request_seconds),
            (size, account.batch_size),
        ):
            family.add_metric(labels, histogram.cumulative(), histogram.sum)
    yield from (requests, rows, hits, misses, batches, failed, busy, queue, compute, whole, size)
