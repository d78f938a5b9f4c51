"""One server, wired: start → serve → drain → stop. No other module builds its collaborators.

    main                   life: waits for a signal, then stops everything in order; gives free memory back meanwhile
    loop                   every call and byte; and the models that cost less than a thread's wake-up
    <model>/<version>-<n>  one per model instance: take, stack, run, split, encode, reply
    repository             looks for versions; loads, swaps, drains
    watchdog               ends runs that last longer than any run may
    metrics-page           the Prometheus page
    traces                 tells a collector of traced requests, where one was named

Importing this does nothing, and two servers live in one process if each has its ports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from forwardpass_server import __version__, memory
from forwardpass_server.access.gate import Credentials, Gate
from forwardpass_server.access.tokens import TokenFile
from forwardpass_server.config import ServerConfig
from forwardpass_server.control import InForce, Order, Reply
from forwardpass_server.errors import StartFailed
from forwardpass_server.lifecycle import loader
from forwardpass_server.lifecycle.ensemble import EnsembleLoader
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.loader import Loader, LoadRules
from forwardpass_server.lifecycle.manager import ModelManager, Watch
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.lifecycle.states import State
from forwardpass_server.logs import event
from forwardpass_server.observe import gpu, page
from forwardpass_server.observe.metrics import Metrics
from forwardpass_server.observe.page import MetricsPage
from forwardpass_server.observe.tracing import Tracer
from forwardpass_server.rpc import services, status
from forwardpass_server.rpc.counted import counted, counted_stream
from forwardpass_server.rpc.everywhere import Together
from forwardpass_server.rpc.response_cache import ResponseCache
from forwardpass_server.runtime import child, control_flow, providers, states
from forwardpass_server.runtime.session import Session
from forwardpass_server.runtime.states import StateSpec
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.scheduling.stateful import States
from forwardpass_server.scheduling.watchdog import Watchdog
from forwardpass_server.tensors.shared_memory import SharedMemory
from forwardpass_server.tensors.signature import Signature
from forwardpass_server.transport import credentials, sockets
from forwardpass_server.transport.completion_queue import CompletionQueueServer, unknown_method
from forwardpass_server.transport.credentials import CredentialFiles
from forwardpass_server.transport.options import TransportOptions

log = logging.getLogger(__name__)

MIB = 1 << 20

UNLOAD_S = 5.0
"""How long versions may take to be freed, and a load to be given up, once no call is left, in seconds."""

TRACES_S = 3.0
"""How long a stop waits for the collector to take the last traces, in seconds."""

BEAT_CHECK_S = 0.1
"""How often whoever waits for the loop to turn looks whether it has ended, in seconds."""

TEND_INTERVAL_S = 1.0
"""How often the main thread looks at the load and the memory of the process, in seconds."""


class News(Enum):
    """What the main thread waits for."""

    MODELS_CHANGED = "models changed"
    STOP_ASKED = "stop asked"
    RELOAD_ASKED = "reload asked"
    LOOP_ENDED = "loop ended"


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """How a stop went.

    Args:
        calls_lost: admitted calls that outlived the grace and were cancelled.
        threads_left: a load, or a run, did not come to its end; leave the process without waiting for it.
    """

    calls_lost: int = 0
    threads_left: bool = False

    @property
    def clean(self) -> bool:
        """Whether nothing was lost and nothing is left."""
        return not self.calls_lost and not self.threads_left


class Server:
    """One server. `start` (or `load`, then `listen`), `wait` and `stop` are called in that order, on one thread.

    Building it opens and starts nothing; it only tries the device and reads certificates.

    Args:
        config: its settings.
        together: the way to the other processes of this server; None where it is the only one.

    Raises:
        StartFailed: the device cannot be had, or a certificate or a token file cannot be used.
    """

    def __init__(self, config: ServerConfig, together: Together | None = None) -> None:
        self._config = config
        self._began = time.monotonic()
        # A SimpleQueue, since a signal handler may put while the same thread is inside `get`.
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._plan = providers.resolve(config.device)
        inline = InlineLoop()
        self._watchdog = None if config.max_run_s is None else Watchdog(config.max_run_s)

        def on_loop(function: Callable[[], None]) -> None:
            self._transport.call_soon(function)

        load = EnsembleLoader(
            Loader(_rules(config), OnnxRuntime(self._plan, config), inline, self._watchdog, on_loop=on_loop),
            find=lambda model, version: self._models.version(model, version),
            lend=lambda model, version: self._models.lease(model, version),
            on_loop=on_loop,
            max_requests=config.max_queue_requests,
        )
        self._models = ModelManager(_watch(config), load, strict_readiness=config.strict_readiness)
        cache = ResponseCache(int(config.response_cache_mib * MIB)) if config.response_cache_mib else None
        self._tracer = _tracer(config)
        self._token_files = {
            path: TokenFile(path) for path in (config.data_token_file, config.admin_token_file) if path is not None
        }
        built = services.build(
            self._models,
            server_version=__version__,
            enable_reflection=config.enable_reflection,
            memory=SharedMemory(int(config.max_queue_mib * MIB)) if config.enable_shared_memory else None,
            cache=cache,
            gate=_gate(config, self._token_files),
            triton_codes=config.triton_status_codes,
            together=together,
            tracer=self._tracer,
        )
        self._health = built.health
        self._obeying = built.obeying
        versions = {"version": __version__, "onnxruntime": providers.VERSION, "device": self._plan.device}
        gpus = gpu.find() if self._plan.device != "cpu" else None
        self._metrics = Metrics(
            methods=[*built.unary, *built.streams],
            build=versions,
            gpus=None if gpus is None else gpus.read,
            triton_names=config.triton_metrics,
        )
        self._transport = CompletionQueueServer(
            _options(config),
            {method: counted(handle, self._metrics.call(method)) for method, handle in built.unary.items()},
            {method: counted_stream(make, self._metrics.call(method)) for method, make in built.streams.items()},
            on_error=_code_and_text,
            unknown=self._unknown_method,
        )
        self._transport.on_idle = inline.run_ready
        self._transport.on_refusing = self._refusing
        self._metrics.watch_loop(self._transport.stats)
        if cache is not None:
            self._metrics.watch_cache(lambda: cache.nbytes)
        self._models.observe(MetricsObserver(self._metrics, self._plan.fallback_reason is not None))
        self._models.subscribe(self._models_changed)
        self._page = None
        if config.metrics_port is not None:
            self._page = MetricsPage(self._metrics.registry, config.host, config.metrics_port)
        self._loop = threading.Thread(target=self._run_loop, name="loop", daemon=True)
        self._stop_asked = False
        self.port: int | None = None
        """Port of gRPC, once `start` has returned True."""

    @property
    def metrics_port(self) -> int | None:
        """Port of the metrics page, once started; None when there is none."""
        return None if self._page is None else self._page.port

    def metrics_text(self) -> bytes:
        """What the metrics page shows now. Any thread."""
        return page.text(self._metrics.registry)

    def obey(self, order: Order) -> Reply:
        """Carry out what was ordered of all processes. Any thread; blocks."""
        return self._obeying.obey(order)

    def in_force(self) -> InForce:
        """What of it a process that begins anew has to be given. Any thread."""
        return self._obeying.in_force()

    def adopt(self, in_force: InForce) -> None:
        """Have the same in force as the other processes. Any thread; blocks, while models are loaded."""
        self._obeying.adopt(in_force)

    def beat(self) -> None:
        """Return when the loop has turned, if it runs: that shows that this process lives. Any thread."""
        if self._loop.is_alive():
            turned = threading.Event()
            self._on_loop(turned.set)
            while self._loop.is_alive() and not turned.wait(BEAT_CHECK_S):
                pass

    def start(self) -> bool:
        """`load`, then `listen`. Blocks until the server serves.

        Returns:
            False when `ask_to_stop` came first; then call `stop`, as in any case.

        Raises:
            StartFailed: as `load` and `listen`.
        """
        if not self.load():
            return False
        self.listen()
        return True

    def load(self) -> bool:
        """Open the repository; load, warm and prove what is in it. Blocks until that is done.

        Returns:
            False when `ask_to_stop` came first; then call `stop`, as in any case.

        Raises:
            StartFailed: no repository, a port in use, or (with `exit_on_error`) a model that cannot be served.
        """
        event(log, logging.INFO, "starting", version=__version__, repository=self._config.model_repository)
        event(log, logging.INFO, "device", device=self._plan.device, provider=self._plan.expected)
        if self._plan.fallback_reason is not None:
            event(log, logging.WARNING, "running on the CPU", reason=self._plan.fallback_reason)
        self._check_port_free()
        if self._page is not None:
            event(log, logging.INFO, "metrics page", address=f"http://{self._config.host}:{self._page.start()}/metrics")
        if self._watchdog is not None:
            self._watchdog.start()
        if self._tracer is not None:
            self._tracer.start()
        self._models.start()
        while not self._models.complete and not self._stop_asked:
            self._hear()
        if self._stop_asked:
            return False
        self._report_models()
        return True

    def listen(self) -> None:
        """Bind the port and serve.

        Raises:
            StartFailed: the port is in use.
        """
        self.port = self._transport.bind()
        self._loop.start()
        seconds = round(time.monotonic() - self._began, 3)
        event(log, logging.INFO, "serving", address=f"{self._config.host}:{self.port}", start_seconds=seconds)

    def wait(self) -> None:
        """Block until somebody asks to stop.

        Raises:
            RuntimeError: the loop ended by itself, which it never should.
        """
        kept = memory.Memory(memory.resident_bytes, memory.trimmer())
        while not self._stop_asked:
            try:
                self._hear(TEND_INTERVAL_S)
            except queue.Empty:
                self._metrics.sample()
                kept.tend(idle=not any(version.scheduler.inflight for version in self._models.serving()))

    def ask_to_stop(self) -> None:
        """Let `start` or `wait` return. Any thread, and signal handlers."""
        self._news.put(News.STOP_ASKED)

    def ask_to_reload(self) -> None:
        """Have the token files read again, changed or not. Any thread, and signal handlers."""
        self._news.put(News.RELOAD_ASKED)

    def stop(self) -> Stopped:
        """Stop in order, and lose no call: not ready, drain, refuse, finish, end the threads, free the models."""
        began = time.monotonic()
        calls_lost = 0
        self._metrics.set_draining(True)
        if self.port is not None:
            event(log, logging.INFO, "stopping", drain_s=self._config.drain_s, grace_s=self._config.grace_s)
            self._on_loop(self._health.leave)
            report = self._transport.stop(drain_s=self._config.drain_s, grace_s=self._config.grace_s)
            self._loop.join()
            calls_lost = report.cancelled
            event(
                log,
                logging.INFO,
                "calls ended",
                answered=report.answered,
                cancelled=report.cancelled,
                refused=report.refused,
                connections=report.connections,
            )
        stopped = Stopped(calls_lost=calls_lost, threads_left=not self._models.stop(UNLOAD_S))
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._tracer is not None:
            self._tracer.stop(TRACES_S)
        if self._page is not None:
            self._page.stop()
        event(
            log,
            logging.INFO if stopped.clean else logging.WARNING,
            "stopped",
            calls_lost=stopped.calls_lost,
            threads_left=stopped.threads_left,
            seconds=round(time.monotonic() - began, 3),
        )
        return stopped

    def _refusing(self) -> None:
        """Loop thread: the stop refuses from now on. End what would not end by itself, or too late."""
        self._health.close()
        self._models.refuse_orders()

    def _hear(self, timeout_s: float | None = None) -> None:
        match self._news.get(timeout=timeout_s):
            case News.STOP_ASKED:
                self._stop_asked = True
            case News.RELOAD_ASKED:
                for each in self._token_files.values():
                    each.reread()
            case News.LOOP_ENDED:
                raise RuntimeError("the loop ended by itself; the log says why")
            case News.MODELS_CHANGED:
                pass  # whoever waits looks again

    def _models_changed(self) -> None:
        """Repository thread: wake `start`, and tell those who watch the health."""
        if self._loop.is_alive():
            self._on_loop(self._health.changed)
        else:
            self._news.put(News.MODELS_CHANGED)

    def _on_loop(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever wanted to know
            self._transport.call_soon(function)

    def _unknown_method(self, method: str) -> tuple[int, str]:
        """Loop thread: the answer to a method that nobody here has; counted as "other", whatever it was called."""
        code, message = unknown_method(method)
        account = self._metrics.call(method)
        account.started()
        account.handled(status.Code(code).name, 0)
        return code, message

    def _run_loop(self) -> None:
        try:
            self._transport.run()
        except BaseException:
            log.exception("the loop ended")
            raise
        finally:
            self._news.put(News.LOOP_ENDED)

    def _check_port_free(self) -> None:
        """Fail before minutes of loading, not after; `bind` has the last word."""
        port = self._config.grpc_port
        shared = self._config.processes > 1
        reason = sockets.why_not_bindable(self._config.host, port, reuse_port=shared) if port else ""
        if reason:
            raise StartFailed(
                f"cannot listen on {self._config.host}:{port}: {reason}; choose another --grpc-port, or stop who has it"
            )

    def _report_models(self) -> None:
        """Say what will be served; with `exit_on_error`, refuse what is not whole.

        Raises:
            StartFailed: a model has no version that serves, and `exit_on_error` is set.
        """
        for version in self._models.serving():
            inputs = ", ".join(
                f"{spec.name}: {spec.dtype.wire}{spec.shape_text()}" for spec in version.signature.inputs
            )
            event(log, logging.INFO, "model ready", model=version.model, version=version.number, inputs=inputs)
        failed = [each for each in self._models.statuses() if each.state is State.FAILED]
        if failed and self._config.exit_on_error:
            reasons = "; ".join(f"{each.model!r} version {each.version}: {each.reason}" for each in failed)
            raise StartFailed(f"--exit-on-error is set, and {len(failed)} versions cannot be served: {reasons}")
        if not self._models.serving():
            event(log, logging.WARNING, "no model is ready", failed=len(failed))


class OnnxRuntime:
    """Loads models by ONNX Runtime on one device. A `lifecycle.loader.Runtime`."""

    def __init__(self, plan: providers.Plan, config: ServerConfig) -> None:
        self._plan = plan
        self._intra_op_threads = config.intra_op_threads
        self._timeout_s = config.load_timeout_s

    def try_load(self, path: Path) -> None:
        """See `runtime.child.try_load`."""
        child.try_load(path, self._timeout_s)

    def open(self, path: Path, signature: Signature, settings: ModelSettings) -> Session:
        """A session on the device, or where the model's settings say."""
        threads = settings.session.intra_op_threads or self._intra_op_threads
        options = dataclasses.replace(settings.session, intra_op_threads=threads)
        return Session(path, signature, self._plan_of(settings), options)

    def keep_states(
        self,
        session: loader.Session,
        settings: ModelSettings,
        specs: Sequence[StateSpec],
        *,
        rows: int,
        outputs: Collection[int],
        batched: bool,
    ) -> tuple[Run, States]:
        """See `runtime.states.beside`."""
        assert isinstance(session, Session), "one that `open` returned"
        return states.beside(session, self._plan_of(settings), specs, rows=rows, outputs=outputs, batched=batched)

    def _plan_of(self, settings: ModelSettings) -> providers.Plan:
        return providers.for_model(self._plan, on_cpu=settings.on_cpu, tensorrt=settings.accelerator)

    def has_control_flow(self, path: Path) -> bool:
        """See `runtime.control_flow`."""
        return control_flow.has_control_flow(path)


class MetricsObserver:
    """Keeps the metrics of versions. A `lifecycle.observer.LifecycleObserver`."""

    def __init__(self, metrics: Metrics, fallback: bool) -> None:
        self._metrics = metrics
        self._fallback = fallback

    def state_changed(self, model: str, version: int, state: State) -> None:
        """The version is in this state now."""
        self._metrics.set_state(model, version, state.value)

    def loaded(self, version: LoadedVersion, seconds: float) -> None:
        """The version is READY."""
        info = {"sha256": version.sha256, "provider": version.provider, "proved": str(version.proved).lower()}
        self._metrics.loaded(version.model, version.number, seconds, info, fallback=self._fallback)
        self._metrics.serve(version.model, version.number, version.scheduler)

    def load_failed(self, model: str, version: int) -> None:
        """A load failed."""
        self._metrics.load_failed(model, version)

    def forgotten(self, model: str, version: int) -> None:
        """The version is not known any more."""
        self._metrics.forget(model, version)


def _code_and_text(error: BaseException) -> tuple[int, str]:
    """What the transport answers when a stream's handler raises."""
    code, message, _ = status.of(error)
    return code, message


def _watch(config: ServerConfig) -> Watch:
    explicit = config.model_control_mode == "explicit"
    return Watch(
        root=config.model_repository,
        poll_s=config.repository_poll_secs,
        once=config.model_control_mode != "poll",
        only=frozenset(config.load_model) if explicit and "*" not in config.load_model else None,
        by_order=explicit,
        name=config.model_name,
    )


def _gate(config: ServerConfig, token_files: Mapping[Path, TokenFile]) -> Gate:
    if (
        (config.data_token_file or config.admin_token_file)
        and config.tls_cert is None
        and not _is_loopback(config.host)
    ):
        event(
            log,
            logging.WARNING,
            "tokens are asked for without TLS: whoever can listen on the way reads them; see --tls-cert",
            host=config.host,
        )

    def known(file: Path | None, subjects: tuple[str, ...]) -> Credentials | None:
        if file is None and not subjects:
            return None
        return Credentials(tokens=None if file is None else token_files[file], subjects=frozenset(subjects))

    return Gate(
        data=known(config.data_token_file, config.data_subject),
        admin=known(config.admin_token_file, config.admin_subject),
    )


def _is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tracer(config: ServerConfig) -> Tracer | None:
    """Raises:
    StartFailed: traces are wanted, and OpenTelemetry is not installed.
    """
    if config.trace_endpoint is None:
        return None
    try:
        # Imported here, since it is an extra: it may not be installed.
        from forwardpass_server.observe import spans
    except ImportError as exc:
        raise StartFailed(
            f"--trace-endpoint needs OpenTelemetry ({exc}); install it with: pip install 'forwardpass[tracing]'"
        ) from exc
    return Tracer(spans.SpanTeller(spans.otlp(config.trace_endpoint), __version__), config.trace_sample_ratio)


def _rules(config: ServerConfig) -> LoadRules:
    return LoadRules(
        root=config.model_repository,
        require_manifest=config.require_manifest,
        bytes_max=int(config.max_version_gib * (1 << 30)),
        scratch=config.scratch_dir,
        max_batch_size=config.max_batch_size,
        max_requests=config.max_queue_requests,
        max_queue_bytes=int(config.max_queue_mib * MIB),
        processes=config.processes,
    )


def _options(config: ServerConfig) -> TransportOptions:
    tls = None
    if config.tls_cert is not None and config.tls_key is not None:
        files = CredentialFiles(certificate=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca)
        tls = credentials.load(files)
    return TransportOptions(
        host=config.host,
        port=config.grpc_port,
        reuse_port=config.processes > 1,
        credentials=tls,
        max_message_bytes=int(config.max_message_mib * MIB),
        max_metadata_bytes=config.max_metadata_kib << 10,
        compression=config.response_compression,
        max_connections=config.max_connections,
        max_connection_age_s=config.max_connection_age_s,
        max_connection_age_grace_s=config.max_connection_age_grace_s,
    )
