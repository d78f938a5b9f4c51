"""The repository thread's own book: one record a version, from which each table is made.

Records change here and nowhere else, by legal steps of the state machine; every change publishes a new table, and tells
those who subscribed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from forwardpass_server.lifecycle.leases import Leases
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.observer import LifecycleObserver
from forwardpass_server.lifecycle.registry import Table, VersionStatus
from forwardpass_server.lifecycle.states import State, step
from forwardpass_server.lifecycle.versions import Current
from forwardpass_server.logs import event

log = logging.getLogger(__name__)


@dataclass
class Record:
    """One version.

    Args:
        model: its name.
        number: its version.
        state: where it stands.
        reason: why it stands there.
        wanted: the version policy asks for it.
        serving: the leases of what serves, None when nothing does.
        serving_stamp: of the files that it serves from.
        failed_stamp: of the files that it last failed with.
        failure: why it did.
    """

    model: str
    number: int
    state: State = State.FOUND
    reason: str = ""
    wanted: bool = True
    serving: Leases[LoadedVersion] | None = None
    serving_stamp: object = None
    failed_stamp: object = None
    failure: str = ""


class Ledger:
    """All records. The repository thread alone calls its methods; `table` may be read on any thread."""

    def __init__(self) -> None:
        self.table = Table()
        self.subscribers: list[Callable[[], None]] = []
        self.observers: list[LifecycleObserver] = []
        self._records: dict[tuple[str, int], Record] = {}
        self._unasked: frozenset[str] = frozenset()

    def models(self) -> set[str]:
        """Names of the models that have a record."""
        return {model for model, _ in self._records}

    def ask(self, model: str, *, asked: bool) -> None:
        """Write down whether somebody wants a model at all, and has its failures forgotten if not."""
        unasked = self._unasked - {model} if asked else self._unasked | {model}
        if unasked == self._unasked:
            return
        self._unasked = unasked
        for record in self.of(model):
            if record.state is State.FAILED and not asked:
                record.failed_stamp = None
                self.enter(record, State.UNLOADED)
        self.publish()

    def of(self, model: str) -> list[Record]:
        """The records of a model, by number."""
        return [record for (name, _), record in sorted(self._records.items()) if name == model]

    def record(self, model: str, number: int) -> Record:
        """The record of a version; a new one, in state FOUND, if there is none."""
        record = self._records.get((model, number))
        if record is None:
            record = self._records[model, number] = Record(model, number)
            self._tell(record)
        return record

    def current(self, model: str) -> dict[int, Current]:
        """What `versions.decide` wants to know of each version of a model."""
        return {r.number: Current(serving=r.serving_stamp, failed=r.failed_stamp) for r in self.of(model)}

    def enter(self, record: Record, state: State, reason: str = "") -> None:
        """Take a step.

        Raises:
            IllegalTransition: `state` does not follow the present one.
        """
        record.state, record.reason = step(record.state, state), reason
        record.wanted = state not in (State.DRAINING, State.UNLOADED)
        event(log, logging.DEBUG, "version state", model=record.model, version=record.number, state=state.value)
        self.publish()
        self._tell(record)

    def serve(
        self, record: Record, leases: Leases[LoadedVersion], stamp: object, seconds: float
    ) -> Leases[LoadedVersion] | None:
        """Let a version serve, after a load of `seconds`; returns the leases replaced, which no table has any more."""
        replaced, record.serving = record.serving, leases
        record.serving_stamp, record.failed_stamp = stamp, None
        if replaced is None:
            self.enter(record, State.READY)
        else:  # its files were changed in place: READY it was, READY it is
            record.reason = ""
            self.publish()
        for observer in self.observers:
            observer.loaded(leases.version, seconds)
        return replaced

    def fail(
        self, record: Record, stamp: object, reason: str, *, withdraw: bool = False
    ) -> Leases[LoadedVersion] | None:
        """Write down that a load failed. What serves under that number goes on; or, with `withdraw`, it serves no
        longer, and its leases are returned, which no table names any more."""
        record.failed_stamp, record.failure = stamp, reason
        for observer in self.observers:
            observer.load_failed(record.model, record.number)
        withdrawn = record.serving if withdraw else None
        if withdrawn is not None:
            record.serving = record.serving_stamp = None
        if record.serving is None:
            self.enter(record, State.FAILED, reason)
        else:
            record.reason = f"serves what was loaded before its files changed; loading them failed: {reason}"
            self.publish()
        return withdrawn

    def withdraw(self, record: Record, reason: str) -> Leases[LoadedVersion]:
        """Let a version serve no longer; returns its leases, which no table names any more."""
        leases = record.serving
        assert leases is not None, record
        record.serving = record.serving_stamp = None
        self.enter(record, State.DRAINING, reason)
        return leases

    def explain(self, record: Record, *, wanted: bool, reason: str) -> None:
        """Say why a version that is neither loaded nor being loaded is where it is."""
        if record.state in (State.FOUND, State.UNLOADED) and (record.wanted, record.reason) != (wanted, reason):
            record.wanted, record.reason = wanted, reason
            self.publish()

    def forget(self, record: Record) -> None:
        """Drop the record of a version that is neither served nor in the repository."""
        del self._records[record.model, record.number]
        self.publish()
        for observer in self.observers:
            observer.forgotten(record.model, record.number)

    def complete(self) -> None:
        """The first loads are over."""
        if not self.table.complete:
            self.publish(complete=True)

    def publish(self, *, complete: bool = False) -> None:
        """Replace the table, and say so."""
        serving: dict[tuple[str, str], Leases[LoadedVersion]] = {}
        models: dict[str, dict[int, VersionStatus]] = {}
        for (model, number), record in sorted(self._records.items()):
            models.setdefault(model, {})[number] = _status(record)
            if record.serving is not None:
                # Ascending, so that the highest stays under "".
                serving[model, str(number)] = serving[model, ""] = record.serving
        self.table = Table(
            serving=serving, models=models, unasked=self._unasked, complete=complete or self.table.complete
        )
        for callback in self.subscribers:
            callback()

    def _tell(self, record: Record) -> None:
        for observer in self.observers:
            observer.state_changed(record.model, record.number, record.state)


def _status(record: Record) -> VersionStatus:
    return VersionStatus(
        model=record.model,
        version=record.number,
        state=record.state,
        reason=record.reason,
        proved=record.serving is not None and record.serving.version.proved,
        wanted=record.wanted,
    )
