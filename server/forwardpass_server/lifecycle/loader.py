"""From a version folder to a version that can serve: verify, load, warm, prove; each stage may end it with a reason.

The one thing to know: everything happens on the device, the session and the batch sizes that will serve. What was shown
here is what callers get.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from forwardpass_server.errors import InvalidRequest, LoadFailed, RunFailed
from forwardpass_server.lifecycle import (
    config_shapes,
    generators,
    labels,
    prove,
    sequence_layout,
    verify,
    warmup_requests,
)
from forwardpass_server.lifecycle.config_shapes import Served
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.lifecycle.repository import MANIFEST_FILE, VersionFolder
from forwardpass_server.lifecycle.states import State
from forwardpass_server.lifecycle.verify import PrivateCopy
from forwardpass_server.logs import event
from forwardpass_server.runtime.states import StateSpec
from forwardpass_server.runtime.warmup import buckets, inline_rows, probe_batching, warm
from forwardpass_server.scheduling.batch import one_shape
from forwardpass_server.scheduling.cost import CostCurve
from forwardpass_server.scheduling.ensemble import OnLoop
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.scheduling.sequence import Sequences, Slot
from forwardpass_server.scheduling.sequence_scheduler import Rider, SequenceScheduler
from forwardpass_server.scheduling.stateful import StatefulModel, States
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.scheduling.watchdog import Watchdog
from forwardpass_server.tensors.generator import ON_WIRE, is_generator
from forwardpass_server.tensors.generator import read as generator_of
from forwardpass_server.tensors.signature import Signature

log = logging.getLogger(__name__)

RunOnce = Callable[[Sequence[np.ndarray | None], Sequence[int]], Sequence[np.ndarray]]
"""Inputs in the signature's order, indices of outputs → those outputs."""

CERTAIN = 0.5
"""A deadline nearer than this share of the smallest run's measured time cannot be met; between that and the time itself
it is tried, should the measurement have been disturbed."""


class Session(Protocol):
    """A model on its device; `runtime.session.Session` or its fake."""

    provider: str
    metadata: dict[str, str]

    def run(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[int], termination: Termination | None = None
    ) -> list[np.ndarray]:
        """Inputs in the signature's order → the outputs at those indices; `termination` ends this run."""

    def close(self) -> None:
        """Free it."""


class Runtime(Protocol):
    """What loads models; `runtime` in production."""

    def try_load(self, path: Path) -> None:
        """Load a file where a crash harms nobody. Raises LoadFailed."""

    def open(self, path: Path, signature: Signature, settings: ModelSettings) -> Session:
        """Load a file to serve it, where and as its settings say. Raises LoadFailed."""

    def keep_states(
        self,
        session: Session,
        settings: ModelSettings,
        specs: Sequence[StateSpec],
        *,
        rows: int,
        outputs: Collection[int],
        batched: bool,
    ) -> tuple[Run, States]:
        """Room for states beside a session, and its `run` that answers those `outputs` as the room takes them."""

    def has_control_flow(self, path: Path) -> bool:
        """Whether the time of a run may depend on the values."""


@dataclass(frozen=True, kw_only=True)
class LoadRules:
    """What holds for every version.

    Args:
        root: of the repository.
        require_manifest: refuse a version without one.
        bytes_max: of the files of one version together.
        scratch: folder for private copies; None for the system's.
        max_batch_size: rows of one run, where config.pbtxt does not say.
        max_requests: that may wait for one version, where config.pbtxt does not say.
        max_queue_bytes: of tensors that may wait for one version.
        processes: that share the port, each with versions of its own.
    """

    root: Path
    require_manifest: bool = False
    bytes_max: int = 64 << 30
    scratch: Path | None = None
    max_batch_size: int = 64
    max_requests: int = 1024
    max_queue_bytes: int = 256 << 20
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class KeptSequences:
    """What a version that keeps sequences is beside its session.

    Args:
        model_name: for messages.
        signature: as its callers see it.
        model: with their states.
        slots: sequences that may be active at a time.
        idle_s: how long one may be idle, in seconds.
        on_loop: runs something soon on the loop thread.
    """

    model_name: str
    signature: Signature
    model: StatefulModel
    slots: int
    idle_s: float
    on_loop: OnLoop

    def scheduler(self, inside: Scheduler) -> SequenceScheduler:
        """The version's scheduler, round one of `model.run`."""
        sequences: Sequences[Rider] = Sequences(self.slots, self.idle_s)
        return SequenceScheduler(self.model_name, self.model, inside, sequences, on_loop=self.on_loop)


class Loader:
    """Loads versions, one at a time. Repository thread.

    Args:
        rules: what holds for all of them.
        runtime: where they run.
        inline: of the transport's loop, for models that cost less than a thread's wake-up.
        watchdog: ends runs that last too long; None lets them.
        on_loop: runs something soon on the loop thread.
    """

    def __init__(
        self,
        rules: LoadRules,
        runtime: Runtime,
        inline: InlineLoop,
        watchdog: Watchdog | None = None,
        *,
        on_loop: OnLoop = lambda function: function(),
    ) -> None:
        self._rules = rules
        self._runtime = runtime
        self._inline = inline
        self._watchdog = watchdog
        self._on_loop = on_loop

    def __call__(self, folder: VersionFolder, settings: ModelSettings, enter: Callable[[State], None]) -> LoadedVersion:
        """Load one version; `enter` is called as each stage begins.

        Raises:
            LoadFailed: the reason, for the repository index; nothing of the version is left behind.
        """
        enter(State.VERIFYING)
        if settings.sequences is not None and self._rules.processes > 1:
            raise LoadFailed(
                f"{settings.source}: sequence_batching needs --processes=1, got {self._rules.processes}: the state of "
                "a sequence is in one process, and its next request may reach another"
            )
        if folder.manifest is None and self._rules.require_manifest:
            raise LoadFailed(
                f"no {MANIFEST_FILE}, and --require-manifest is set; publish it with `forwardpass-train publish`"
            )
        with contextlib.ExitStack() as stack:
            copy = stack.enter_context(
                verify.private_copy(
                    folder,
                    root=self._rules.root,
                    filename=settings.filename,
                    bytes_max=self._rules.bytes_max,
                    scratch=self._rules.scratch,
                )
            )
            if folder.manifest is None:
                self._runtime.try_load(copy.model)
            return self._load(folder, settings, enter, copy)

    def _load(
        self, folder: VersionFolder, settings: ModelSettings, enter: Callable[[State], None], copy: PrivateCopy
    ) -> LoadedVersion:
        enter(State.LOADING)
        optional = {each.name for each in settings.message.input if each.optional} if settings.message else ()
        graph = Signature.from_onnx(copy.model, settings.max_batch_size or self._rules.max_batch_size, optional)
        session = self._runtime.open(copy.model, graph, settings)
        try:
            if is_generator(session.metadata):
                return self._load_generator(folder, settings, enter, copy, graph, session)
            generators.check_no_generator(settings)
            served = config_shapes.served(settings, graph)
            signature = served.signature
            golden = served.golden(
                prove.read(copy.folder, folder.manifest.golden if folder.manifest else (), served.in_graph)
            )
            run = served.around(session.run)
            with _blaming_the_model():
                enter(State.WARMING)
                example = golden[0].inputs if golden else None
                alone_because = probe_batching(run, signature, example=example)
                signature, merges = _batching(settings, signature, alone_because)
                sizes = buckets(signature.max_batch_size)
                cost = warm(run, signature, sizes, example=example)
                # It is proved as its graph is, with states among its tensors; its callers see none.
                sequences = self._sequences(folder, settings, served, session, signature)
                callers = signature if sequences is None else sequences.signature
                self._run_wanted(run if sequences is None else sequences.model.run_alone, folder, settings, callers)
                enter(State.PROVING)
                proof_runs = prove.prove(run, signature, golden, sizes if merges else ())
            steady = not self._runtime.has_control_flow(copy.model)
            max_rows = cost.useful_rows(signature.max_batch_size) if merges else 0
            rows_on_loop = self._rows_on_loop(settings, cost, max_rows, steady=steady)
            inline = rows_on_loop is not None
            max_rows = max_rows if rows_on_loop is None else min(max_rows, rows_on_loop)
            self._log(folder, alone_because, cost, inline=inline, proof_runs=proof_runs)
            return LoadedVersion(
                model=folder.model,
                number=folder.version,
                signature=callers,
                scheduler=self._scheduler(folder, settings, run, callers, cost, max_rows, inline=inline, steady=steady)
                if sequences is None
                else sequences.scheduler(
                    self._scheduler(
                        folder, settings, sequences.model.run, callers, cost, max_rows, inline=inline, steady=steady
                    )
                ),
                settings=settings,
                provider=session.provider,
                proved=bool(golden),
                sha256=copy.sha256,
                properties={
                    **session.metadata,
                    "forwardpass.provider": session.provider,
                    "forwardpass.proved": "true" if golden else "false",
                    "forwardpass.batched": "true" if merges else f"false: {_why_alone(signature, alone_because)}",
                    "forwardpass.sha256": copy.sha256,
                },
                release_session=session.close,
                cached=settings.message is not None and settings.message.response_cache.enable,
                labels=labels.read(folder.model_folder, self._rules.root, settings.message, session.metadata, callers),
            )
        except BaseException:
            session.close()
            raise

    def _load_generator(
        self,
        folder: VersionFolder,
        settings: ModelSettings,
        enter: Callable[[State], None],
        copy: PrivateCopy,
        graph: Signature,
        session: Session,
    ) -> LoadedVersion:
        """The rest of the way of a version that writes texts."""
        generators.check_settings(settings)
        generator = generator_of(session.metadata, graph)
        golden = prove.read(copy.folder, folder.manifest.golden if folder.manifest else (), graph)
        enter(State.WARMING)
        slots = self._rules.max_batch_size if settings.max_batch_size is None else max(settings.max_batch_size, 1)
        with _blaming_the_model():
            warmed = generators.warmed(session.run, generator, slots)
            enter(State.PROVING)
            sizes = buckets(warmed.slots) if warmed.slots > 1 else ()
            proof_runs = prove.prove(session.run, graph, golden, sizes)
        self._log(folder, warmed.alone_because, warmed.cost, inline=False, proof_runs=proof_runs)
        return LoadedVersion(
            model=folder.model,
            number=folder.version,
            signature=ON_WIRE,
            scheduler=GenerationScheduler(
                f"{folder.model}/{folder.version}",
                session.run,
                generator,
                slots=warmed.slots,
                max_texts=max(1, min(self._rules.max_requests, self._rules.max_queue_bytes // generator.row_bytes)),
                cost=warmed.cost,
                watchdog=self._watchdog,
            ),
            settings=settings,
            provider=session.provider,
            proved=bool(golden),
            sha256=copy.sha256,
            properties={
                **session.metadata,
                "forwardpass.provider": session.provider,
                "forwardpass.proved": "true" if golden else "false",
                "forwardpass.batched": f"false: {warmed.alone_because}" if warmed.alone_because else "true",
                "forwardpass.slots": str(warmed.slots),
                "forwardpass.sha256": copy.sha256,
            },
            release_session=session.close,
        )

    def _sequences(
        self, folder: VersionFolder, settings: ModelSettings, served: Served, session: Session, whole: Signature
    ) -> KeptSequences | None:
        """What a version that keeps sequences is beside its session; None for one that keeps none."""
        if settings.sequences is None:
            return None
        bound = sequence_layout.bind(settings, whole, folder.model_folder, self._rules.root)
        slots = settings.sequences.slots(whole.max_batch_size, settings.instances)
        try:
            run, states = self._runtime.keep_states(
                session,
                settings,
                bound.states,
                rows=Slot.rows(slots),
                outputs=frozenset(served.numbers[output] for _, output in bound.layout.states),
                batched=bound.layout.batched,
            )
        except MemoryError as exc:
            raise LoadFailed(f"{settings.source}: no memory for the states of {slots} sequences") from exc
        return KeptSequences(
            model_name=folder.model,
            signature=bound.signature,
            model=StatefulModel(served.around(run), states, bound.layout),
            slots=slots,
            idle_s=settings.sequences.idle_s,
            on_loop=self._on_loop,
        )

    def _run_wanted(self, run: RunOnce, folder: VersionFolder, settings: ModelSettings, signature: Signature) -> None:
        """The requests of `model_warmup`, each of which must succeed."""
        wanted = range(len(signature.outputs))
        for name, inputs in warmup_requests.requests(settings, signature, folder.model_folder, self._rules.root):
            try:
                run(inputs, wanted)
            except (InvalidRequest, RunFailed) as exc:
                raise LoadFailed(f"the warm-up {name!r} of {settings.source} failed: {exc}") from exc

    def _scheduler(
        self,
        folder: VersionFolder,
        settings: ModelSettings,
        run: Run,
        signature: Signature,
        cost: CostCurve,
        max_rows: int,
        *,
        inline: bool,
        steady: bool,
    ) -> Scheduler:
        limits = Limits(
            max_rows=max_rows,
            max_requests=settings.most_waiting(self._rules.max_requests),
            max_bytes=self._rules.max_queue_bytes,
            max_delay_s=settings.max_queue_delay_s if max_rows else 0.0,
            enough_rows=settings.sequences.enough_rows(max_rows) if settings.sequences else 0,
            max_latency_s=settings.max_latency_s,
            shortest_run_s=_shortest_run_s(signature, cost) if steady else 0.0,
            priorities=settings.priorities,
            default_priority=settings.default_priority,
            policies=settings.queue_policies,
        )
        return Scheduler(
            f"{folder.model}/{folder.version}",
            [run] * settings.instances,
            signature,
            limits=limits,
            cost=cost,
            inline=self._inline if inline else None,
            finite=settings.refuse_nonfinite,
            watchdog=self._watchdog,
        )

    def _rows_on_loop(self, settings: ModelSettings, cost: CostCurve, max_rows: int, *, steady: bool) -> int | None:
        if settings.instances > 1 or settings.max_queue_delay_s > 0:
            return None
        return inline_rows(cost, max_rows, control_flow=not steady)

    def _log(
        self, folder: VersionFolder, alone_because: str | None, cost: CostCurve, *, inline: bool, proof_runs: int
    ) -> None:
        largest = cost.points[-1] if cost.points else None
        event(
            log,
            logging.INFO,
            "version warmed and proved" if proof_runs else "version warmed; nothing proves it",
            model=folder.model,
            version=folder.version,
            proof_runs=proof_runs,
            runs_on="loop" if inline else "thread",
            rows=largest and largest.rows,
            p50_us=largest and round(largest.p50_s * 1e6, 1),
            not_batched_because=alone_because,
        )


def _shortest_run_s(signature: Signature, cost: CostCurve) -> float:
    """What no run can beat, in seconds: the measured time of the smallest; 0 where shapes, and so times, differ."""
    return cost.points[0].p50_s * CERTAIN if cost.points and one_shape(signature) else 0.0


def _batching(settings: ModelSettings, signature: Signature, alone_because: str | None) -> tuple[Signature, bool]:
    """The signature with its batch size settled, and whether requests may share a run.

    A configured `max_batch_size` says how requests are shaped, and is kept; but where the trial showed that rows
    influence each other, each request still runs alone, unless the configuration allows that as well.
    """
    if settings.allow_batch_dependent_answers:
        alone_because = None
    if settings.max_batch_size is None and alone_because is not None:
        return dataclasses.replace(signature, max_batch_size=0), False
    if settings.max_batch_size is not None:
        signature = dataclasses.replace(signature, max_batch_size=settings.max_batch_size)
    return signature, signature.max_batch_size > 1 and alone_because is None


def _why_alone(signature: Signature, alone_because: str | None) -> str:
    return alone_because or f"max_batch_size is {signature.max_batch_size}"


@contextlib.contextmanager
def _blaming_the_model() -> Iterator[None]:
    """Errors of a run, which no caller asked for here, are reasons why the version cannot serve."""
    try:
        yield
    except (InvalidRequest, RunFailed) as exc:
        raise LoadFailed(f"the model does not run: {exc}") from exc
