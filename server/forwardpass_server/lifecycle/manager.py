"""The repository thread: looks at the repository, loads beside, moves the pointer, drains the old.

    scan ─▶ decide (pure) ─▶ load beside ─▶ serve ─▶ close the old leases ─▶ tear down when drained

The one thing to know: only this thread changes anything. Requests read an immutable table (`registry`), which is
replaced whole, so whoever asks sees all of a swap or none of it. A version that cannot be loaded changes nothing but
its own line in the table.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from forwardpass_server.errors import ForwardpassError, LoadFailed, NotReady, StartFailed
from forwardpass_server.lifecycle import ensemble
from forwardpass_server.lifecycle.config_pbtxt import ConfigReader
from forwardpass_server.lifecycle.leases import Lease, Leases
from forwardpass_server.lifecycle.ledger import Ledger, Record
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.model_settings import LATEST, ModelSettings
from forwardpass_server.lifecycle.observer import LifecycleObserver
from forwardpass_server.lifecycle.ordered import Ordered
from forwardpass_server.lifecycle.orders import Answer, check_name
from forwardpass_server.lifecycle.registry import ModelDescription, VersionStatus
from forwardpass_server.lifecycle.repository import (
    ModelFolder,
    Problem,
    RepositoryUnreadable,
    Scan,
    VersionFolder,
)
from forwardpass_server.lifecycle.served_folder import look
from forwardpass_server.lifecycle.settling import Settling
from forwardpass_server.lifecycle.states import State
from forwardpass_server.lifecycle.versions import Decision, Found, Policy, Specific, decide
from forwardpass_server.logs import event

log = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long a drained version may take to end its threads, in seconds; nothing is running then."""

SEQUENCES_S = 30.0
"""How long the sequences of a version may go on in it when it serves no longer, in seconds. Nothing else of it does."""

UNASKED = Specific(frozenset())
"""The policy of a model that nobody has ordered."""

Enter = Callable[[State], None]
"""Tells the manager which stage a load enters. Raises `Abandoned` when the server stops meanwhile."""

Load = Callable[[VersionFolder, ModelSettings, Enter], LoadedVersion]
"""Loads one version, or raises `LoadFailed`. Runs on the repository thread; see `loader.Loader`."""


class Abandoned(LoadFailed):
    """The server stops; the load was given up between two stages."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How the repository is looked at.

    Args:
        root: of the repository.
        poll_s: seconds between two looks, and for which a version without a manifest must not have changed.
        once: look only until what was found at first is loaded.
        only: the models to load; None for all.
        name: of the model, where the root is one model and no repository; see `served_folder`.
        by_order: from then on load and unload what is ordered, and nothing else.
    """

    root: Path
    poll_s: float
    once: bool = False
    only: frozenset[str] | None = None
    by_order: bool = False
    name: str | None = None


@dataclass(frozen=True)
class Steps:
    """What an ensemble stands on.

    Args:
        serials: of the version that serves each step, None where none does: another stamp of the ensemble.
        settled: none of their models waits for files.
    """

    serials: tuple[int | None, ...]
    settled: bool


class ModelManager:
    """Keeps the versions that the repository and its policies ask for, ready to be leased.

    Args:
        watch: how the repository is looked at.
        load: loads one version.
        strict_readiness: the server is ready only while every model is.
        clock: monotonic seconds.
        wall_clock: seconds since 1970, as files are stamped.
    """

    def __init__(
        self,
        watch: Watch,
        load: Load,
        *,
        strict_readiness: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._watch = watch
        self._load = load
        self._strict_readiness = strict_readiness
        self._clock = clock
        self._ledger = Ledger()
        self._configs = ConfigReader(watch.root)
        self._settling = Settling(watch.poll_s, clock, wall_clock)
        self._ordered = Ordered(
            watch.only,
            self._ledger,
            self._configs,
            follow=lambda name, found: self._follow(name, found, ordered=True),
            stopping=lambda: self._stopping,
        )
        self._problems: frozenset[Problem] = frozenset()
        self._readable = True
        self._unsettled: set[str] = set()
        """Models one of whose versions waits until its files have settled; ensembles wait with them."""
        self._drained: deque[tuple[Record | None, LoadedVersion]] = deque()
        self._lingering: tuple[Leases[LoadedVersion], ...] = ()
        """Of versions that serve no longer, save the sequences that began there; the latest first. Replaced whole."""
        self._emptied: deque[tuple[Leases[LoadedVersion], Callable[[], None]]] = deque()
        self._leaving = 0
        self._wake = threading.Event()
        self._give_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)

    # ---- any thread; none blocks

    def lease(
        self, name: str, version: str, sequence_id: object = None, *, starts: bool = False
    ) -> Lease[LoadedVersion]:
        """The right to use a version until the lease is released.

        Args:
            name: of the model.
            version: as the request writes it; "" for the highest that is ready.
            sequence_id: of the request's sequence; None for none. It is looked for in the version that would be leased
                now, and then in those where it may have begun, even if they serve no longer.
            starts: the request starts it, and so goes to the version that would be leased now.

        Raises:
            InvalidRequest: `version` is neither "" nor a positive decimal number without leading zeros.
            NotFound: no such model or version.
            NotReady: known, wanted, and not serving; says why.
        """
        if sequence_id is not None and starts:
            for home in self._homes(name, version, sequence_id):
                home.version.restarted_elsewhere(sequence_id)
        elif sequence_id is not None:
            for home in self._homes(name, version, sequence_id):
                if lease := home.acquire():
                    return lease
        while True:
            # None means withdrawn since; the table that says so was published before.
            if lease := self._ledger.table.lease(name, version):
                return lease

    def _homes(self, name: str, version: str, sequence_id: object) -> Iterator[Leases[LoadedVersion]]:
        """The versions where a sequence goes on that began there, if not in the one that would be leased now."""
        table = self._ledger.table
        now = table.serving.get((name, version))
        if now is not None and (now.version.sequences is None or now.version.keeps(sequence_id)):
            return
        elsewhere = [*self._lingering]
        if now is not None and not version:
            elsewhere += [table.serving[name, number] for number in reversed(table.versions(name))]
        for leases in elsewhere:
            loaded = leases.version
            if loaded.model == name and version in ("", str(loaded.number)) and loaded.keeps(sequence_id):
                yield leases

    def version(self, name: str, version: str) -> LoadedVersion:
        """The version that would be leased, for what is constant about it. Raises as `lease` does."""
        return self._ledger.table.version(name, version)

    def describe(self, name: str, version: str) -> ModelDescription:
        """What ModelMetadata says. Raises as `lease` does."""
        return self._ledger.table.describe(name, version)

    def ready(self, name: str, version: str) -> bool:
        """Whether `lease` would succeed.

        Raises:
            InvalidRequest, NotFound: as `lease`.
        """
        return self._ledger.table.ready(name, version)

    def server_ready(self) -> bool:
        """Whether requests make sense: the first loads are over, and some model is ready (strict: every model)."""
        ready = self._ledger.table.ready_models()
        enough = all(ready) if self._strict_readiness else any(ready) or not ready
        return self._ledger.table.complete and enough

    def statuses(self) -> list[VersionStatus]:
        """Every version known, by model and number."""
        return self._ledger.table.statuses()

    def serving(self) -> list[LoadedVersion]:
        """The versions that serve, by model and number."""
        return self._ledger.table.loaded()

    def order_load(self, model: str, config: str | None, answer: Answer) -> None:
        """Have a model loaded, or loaded again if its files or its configuration changed.

        Args:
            model: its name.
            config: in place of its config.pbtxt, in JSON, until it is loaded without one.
            answer: called with None when every version that is to be served serves; else with an error. What served
                before goes on then.

        Raises:
            InvalidRequest: no name of a model, or a configuration that cannot be used.
            NotReady: the server follows the repository by itself, or never looks again.
            Overloaded, Stopping: too many orders wait; the server stops.
        """
        self._check_ordered(model)
        self._ordered.load(model, config, answer)
        self._wake.set()

    def order_unload(self, model: str, answer: Answer, *, with_steps: bool = False) -> None:
        """Have a model unloaded: no new request, and when those it has are answered, nothing is left of it.

        Args:
            model: its name.
            answer: called with None when nothing of it is left; else with an error.
            with_steps: of an ensemble, unload the models of its steps too, save those of other ensembles.

        Raises:
            InvalidRequest, NotReady, Overloaded, Stopping: as `order_load`.
        """
        self._check_ordered(model)
        self._ordered.unload(model, answer, with_steps=with_steps)
        self._wake.set()

    def refuse_orders(self) -> None:
        """Answer every order that waits with Stopping, and take no more."""
        self._ordered.refuse()

    def _check_ordered(self, model: str) -> None:
        check_name(model)
        if not self._watch.by_order:
            raise NotReady(
                "models are not loaded and unloaded by request here: "
                + (
                    "the server follows the repository by itself (--model-control-mode=poll)"
                    if not self._watch.once
                    else "the server loads what is there when it starts (--model-control-mode=none)"
                )
                + "; --model-control-mode=explicit obeys requests"
            )

    @property
    def asked(self) -> frozenset[str] | None:
        """The models that are to be loaded; None for all that are found."""
        return self._ordered.asked

    @property
    def complete(self) -> bool:
        """Whether the first loads are over: every version found at first is READY or FAILED."""
        return self._ledger.table.complete

    # ---- for the app

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back after every change, on the repository thread; the callback must not block. Before `start`."""
        self._ledger.subscribers.append(callback)

    def observe(self, observer: LifecycleObserver) -> None:
        """Tell `observer` of every step. Before `start`."""
        self._ledger.observers.append(observer)

    def start(self) -> None:
        """Begin to look and to load. Returns at once; subscribers are told when it is `complete`.

        Raises:
            StartFailed: there is no repository, or not a model that was asked for by name.
        """
        try:
            found = look(self._watch.root, self._watch.name)
        except RepositoryUnreadable as exc:
            raise StartFailed(f"{exc}; see --model-repository") from exc
        missing = sorted((self._watch.only or frozenset()) - found.models.keys())
        if missing:
            raise StartFailed(f"no model {', '.join(map(repr, missing))} in the repository; see --load-model")
        if self._watch.by_order and self._ordered.asked is None:
            self._ordered.asked = frozenset(found.models)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Withdraw every version, wait for its leases, free it, end the thread. A load is given up at its next stage.

        Returns:
            False when the thread did not end within `timeout_s` seconds: a load has no next stage yet, or a lease is
            still held. Leave the process then without waiting for it.
        """
        self._give_up_at = self._clock() + timeout_s
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self._leaving

    # ---- the repository thread

    @property
    def _stopping(self) -> bool:
        return self._give_up_at is not None

    def _run(self) -> None:
        again: float | None = 0.0
        while not self._stopping:
            if again is not None and self._clock() >= again:
                again = self._clock() + self._watch.poll_s if self._look_again() else None
            self._wake.wait(None if again is None else max(again - self._clock(), 0.0))
            self._wake.clear()
            self._tear_down()
            self._ordered.obey(self._found)
        self.refuse_orders()
        self._withdraw_all()

    def _look_again(self) -> bool:
        """Look once, whatever happens: a thread that died would keep the server as it is, for ever and in silence."""
        try:
            return self._look()
        except Exception:
            log.exception("a look at the repository raised what none should raise")
            return True

    def _look(self) -> bool:
        """Look once, and do what follows. Returns whether to look again."""
        try:
            found = self._found()
        except RepositoryUnreadable as exc:
            if self._readable:
                event(log, logging.ERROR, "repository unreadable; what serves goes on", reason=exc)
            self._readable = False
            return True
        self._readable = True
        waiting = False
        for name in self._ordered.in_order(found):
            waiting |= self._follow(name, found)
            if self._stopping:
                return False
        if not waiting:
            self._ledger.complete()
        return waiting or not self._watch.once

    def _found(self) -> Scan:
        """What lies in the repository now. Raises RepositoryUnreadable."""
        found = look(self._watch.root, self._watch.name)
        self._report(found.problems)
        return found

    def _follow(self, name: str, found: Scan, *, ordered: bool = False) -> bool:
        """Load and let go of versions of one model until its policy is met. Returns whether one is waited for.

        Args:
            name: of the model.
            found: what lies in the repository.
            ordered: whoever asked for it says that its files are complete.
        """
        folder = found.models.get(name)
        unreadable = {problem.version for problem in found.problems if problem.model == name}
        if folder is None and None in unreadable:
            return False  # it is there and cannot be read: nothing is known, so nothing changes
        folder = folder or ModelFolder(name=name, path=self._watch.root / name)
        settings = self._configs.settings(folder)
        policy = LATEST if isinstance(settings, LoadFailed) else settings.policy
        asked = self._ordered.asked
        if asked is not None:
            self._ledger.ask(name, asked=name in asked)
            policy = policy if name in asked else UNASKED
        steps = self._steps(settings)
        seen = {
            number: self._seen(version, folder, steps, ordered=ordered) for number, version in folder.versions.items()
        }
        for record in self._ledger.of(name):
            if record.number in unreadable and record.number not in seen:
                seen[record.number] = Found(stamp=record.serving_stamp, settled=False)  # there, and cannot be read
        for number in seen:
            self._ledger.record(name, number)
        while (decision := decide(seen, self._ledger.current(name), policy)).load and not self._stopping:
            number = decision.load[0]
            self._load_one(self._ledger.record(name, number), folder.versions[number], settings, seen[number].stamp)
        for number in decision.unload:
            self._unload(self._ledger.record(name, number), _not_chosen(policy))
        self._tidy(name, seen.keys(), decision, policy)
        (self._unsettled.add if decision.waiting else self._unsettled.discard)(name)
        return bool(decision.waiting)

    def _steps(self, settings: ModelSettings | LoadFailed) -> Steps | None:
        """What serves the steps of an ensemble; None for what is none."""
        models = ensemble.models_of(settings)
        if not models:
            return None
        serving = self._ledger.table.serving
        serials = tuple(serving[step].version.serial if step in serving else None for step in models)
        return Steps(serials, settled=not any(model in self._unsettled for model, _ in models))

    def _seen(self, version: VersionFolder, model: ModelFolder, steps: Steps | None, *, ordered: bool = False) -> Found:
        record = self._ledger.record(version.model, version.version)
        # A manifest is written last, so a new folder that has one is complete. A folder that we know and that is being
        # changed (a sync that overwrites, a deletion in progress) may still have the manifest of before.
        complete = version.manifest is not None and record.serving is None and record.failed_stamp is None
        quiet = self._settling.settled((version.model, version.version), version.stamp)
        configured = self._settling.settled(version.model, model.stamp)
        # The same number again, while its predecessor is being drained: when that is done.
        draining = record.state is State.DRAINING
        settled = (ordered or ((complete or quiet) and configured)) and not draining
        stamp = (version.stamp, self._configs.stamp(model))
        if steps is None:
            return Found(stamp=stamp, settled=settled)
        return Found(stamp=(*stamp, steps.serials), settled=settled and (ordered or steps.settled))

    def _load_one(
        self, record: Record, folder: VersionFolder, settings: ModelSettings | LoadFailed, stamp: object
    ) -> None:
        """Load a version beside what serves and put it in its place, or write down why not."""
        began = self._clock()
        event(log, logging.INFO, "version loading", model=record.model, version=record.number)
        if record.state in (State.FAILED, State.UNLOADED):
            self._ledger.enter(record, State.FOUND)
        try:
            version = self._try(record, folder, settings)
        except Abandoned:
            event(log, logging.INFO, "load given up: the server stops", model=record.model, version=record.number)
            return
        except ForwardpassError as exc:
            self._failed(record, stamp, str(exc), withdraw=bool(ensemble.models_of(settings)))
            return
        except Exception as exc:
            log.exception("loading raised what no stage should raise")
            self._failed(record, stamp, f"unexpected {type(exc).__name__}; the server's log says more")
            return
        seconds = self._clock() - began
        self._linger(record)
        replaced = self._ledger.serve(record, Leases(version), stamp, seconds)
        if replaced is not None:
            self._close(replaced, None)
        event(
            log,
            logging.INFO,
            "version ready",
            model=record.model,
            version=record.number,
            seconds=round(seconds, 3),
            provider=version.provider,
            proved=version.proved,
            max_batch_size=version.signature.max_batch_size,
        )

    def _try(self, record: Record, folder: VersionFolder, settings: ModelSettings | LoadFailed) -> LoadedVersion:
        def enter(state: State) -> None:
            if self._stopping:
                raise Abandoned("the server stops")
            # While files that changed in place are loaded anew, the version remains what it was: READY.
            if record.serving is None:
                self._ledger.enter(record, state)

        if isinstance(settings, LoadFailed):
            raise settings
        if folder.problem:
            raise LoadFailed(folder.problem)
        return self._load(folder, settings, enter)

    def _failed(self, record: Record, stamp: object, reason: str, *, withdraw: bool = False) -> None:
        """A load failed. What serves goes on, save an ensemble, whose steps do not fit it any more (`withdraw`)."""
        withdrawn = self._ledger.fail(record, stamp, reason, withdraw=withdraw)
        serving = [other.number for other in self._ledger.of(record.model) if other.serving is not None]
        event(
            log,
            logging.ERROR,
            "version failed",
            model=record.model,
            version=record.number,
            reason=reason,
            serving=max(serving, default=None),
        )
        if withdrawn is not None:
            self._close(withdrawn, None)

    def _unload(self, record: Record, reason: str) -> None:
        self._linger(record)
        leases = self._ledger.withdraw(record, reason)
        event(log, logging.INFO, "version draining", model=record.model, version=record.number, leases=leases.held)
        self._close(leases, record)

    def _linger(self, record: Record) -> None:
        """Let the sequences of what serves be found, before another serves in its place."""
        if record.serving is not None and record.serving.version.sequences is not None:
            self._lingering = (record.serving, *self._lingering)

    def _close(self, leases: Leases[LoadedVersion], record: Record | None) -> None:
        """Grant no new leases, and have the version torn down when the last is released.

        Args:
            leases: no table names them any more.
            record: becomes UNLOADED then; None when another version serves under its number.
        """
        self._leaving += 1

        def on_drained() -> None:
            self._drained.append((record, leases.version))
            self._wake.set()

        sequences = leases.version.sequences
        if sequences is None:
            leases.close(on_drained)
            return

        def on_empty() -> None:
            self._emptied.append((leases, on_drained))
            self._wake.set()

        sequences.withdraw(0.0 if self._stopping else SEQUENCES_S, on_empty)

    def _tear_down(self) -> None:
        while self._emptied:
            leases, on_drained = self._emptied.popleft()
            self._lingering = tuple(each for each in self._lingering if each is not leases)
            leases.close(on_drained)
        while self._drained:
            record, version = self._drained.popleft()
            ended = version.close(CLOSE_S)
            self._leaving -= 1
            if record is not None:
                self._ledger.enter(record, State.UNLOADED, record.reason)
            event(
                log,
                logging.INFO if ended else logging.ERROR,
                "version unloaded" if ended else "version does not end; its memory is lost",
                model=version.model,
                version=version.number,
            )

    def _withdraw_all(self) -> None:
        assert self._give_up_at is not None
        for name in sorted(self._ledger.models()):
            for record in self._ledger.of(name):
                if record.serving is not None:
                    self._unload(record, "the server stops")
        for leases in self._lingering:
            if leases.version.sequences is not None:
                leases.version.sequences.withdraw(0.0)
        self._tear_down()
        while self._leaving and (left_s := self._give_up_at - self._clock()) > 0:
            self._wake.wait(left_s)
            self._wake.clear()
            self._tear_down()

    def _tidy(self, name: str, seen: Iterable[int], decision: Decision, policy: Policy) -> None:
        """Say why a version that was found does nothing, and forget those that are gone."""
        for record in self._ledger.of(name):
            if record.number in seen:
                wanted = record.number in decision.waiting
                reason = "its files are still changing" if wanted else _not_chosen(policy)
                self._ledger.explain(record, wanted=wanted, reason=reason)
            elif record.state in (State.FOUND, State.FAILED, State.UNLOADED):
                self._ledger.forget(record)
                self._settling.forget((record.model, record.number))

    def _report(self, problems: Iterable[Problem]) -> None:
        """Log what is wrong in the repository, once."""
        new = frozenset(problems)
        for problem in sorted(new - self._problems, key=lambda each: str(each.path)):
            place = problem.path.relative_to(self._watch.root)
            event(log, logging.WARNING, "repository: ignored", path=place, reason=problem.reason)
        self._problems = new


def _not_chosen(policy: Policy) -> str:
    if policy is UNASKED:
        return "not loaded; RepositoryModelLoad loads it"
    return f"not chosen by the version policy ({policy})"
