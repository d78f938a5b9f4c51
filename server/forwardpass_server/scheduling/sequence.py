"""The sequences of one version: which there are, who has a slot, whose request runs next. Pure: no clock, no lock.

A sequence is a line of requests with one id, from one whose position starts it to one that ends it. Its requests run
one by one, in their order, since each takes the state that the one before it left. It needs a slot to run, and keeps it
until it ends; without one it waits, the longest first.

Ids are used again: a request that starts a sequence may stand behind others of its id, and begins anew when its turn
comes. So a line holds one sequence after the other, and what befalls one of them goes as far as the next start.

One rule for whatever goes wrong: a request that fails leaves the state as it was. What nobody can carry on from ends
the sequence, and those behind it are told: its first request failed, or a caller left and may or may not count its
step.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, Generic, TypeAlias, TypeVar

from forwardpass_server.scheduling.lifeline import Lifeline
from forwardpass_server.tensors.recent import Recent

SequenceId: TypeAlias = int | str

REMEMBERED = 1024
"""Ids whose end is remembered, so that whoever goes on with one is told why it is over."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a request stands in its sequence."""

    id: SequenceId
    """Never 0 or "", which stand for none."""
    starts: bool = False
    ends: bool = False


class Ended(Enum):
    """Why a sequence is over; the value is its label in metrics."""

    END = "end"
    """Its last request was answered."""
    IDLE = "idle"
    """Nothing came for longer than it may be idle."""
    LEFT = "client_left"
    """A caller left, or its deadline passed; or the stream that its requests came by broke."""
    RESTARTED = "restarted"
    """Another began under its id."""
    FAILED = "failed"
    """The request that was to start it failed."""
    UNLOADED = "unloaded"
    """Its version was unloaded."""


class NotStarted(Exception):
    """A request goes on with a sequence that is not there.

    Args:
        ended: why it is over; None for one that is not remembered, or never was.
    """

    def __init__(self, ended: Ended | None) -> None:
        super().__init__(ended)
        self.ended = ended


class Slot:
    """Where the state of one sequence is kept: two rows of the states, of which one holds it, and the other takes the
    next; so a run that fails, and may be repeated, has destroyed nothing."""

    INITIAL = 0
    """The row that holds the state every sequence begins with."""

    __slots__ = ("_current", "_first")

    def __init__(self, number: int) -> None:
        self._first = 1 + 2 * number
        self._current = 0

    @staticmethod
    def rows(slots: int) -> int:
        """How many rows so many slots need."""
        return 1 + 2 * slots

    def read(self, position: Position) -> int:
        """The row that a request's state is in."""
        return self.INITIAL if position.starts else self._first + self._current

    @property
    def write(self) -> int:
        """The row that takes its next state."""
        return self._first + 1 - self._current

    def flip(self) -> None:
        """The next state is the state now."""
        self._current = 1 - self._current


class Member:
    """A request of a sequence. Whoever schedules it adds what else it needs to know."""

    __slots__ = ("position", "sequence")

    sequence: Sequence[Any]

    def __init__(self, position: Position) -> None:
        self.position = position


M = TypeVar("M", bound=Member)


class Sequence(Generic[M]):
    """One id, and whoever waits under it.

    Attributes:
        id: see `Position`.
        slot: its own; None while it waits for one.
        line: requests that wait for the one that runs, or for the slot.
        running: the request that runs, or waits to be batched.
        begun: its start has run or runs.
        doomed: why it is over as soon as that request is through; None when it is not.
        lifeline: of the stream that its latest request came by; None for a unary one.
    """

    __slots__ = ("begun", "doomed", "id", "lifeline", "line", "running", "slot")

    def __init__(self, sequence_id: SequenceId) -> None:
        self.id = sequence_id
        self.slot: Slot | None = None
        self.line: deque[M] = deque()
        self.running: M | None = None
        self.begun = False
        self.doomed: Ended | None = None
        self.lifeline: Lifeline | None = None

    @property
    def open(self) -> bool:
        """A further request goes on with it, and need not start it."""
        if self.line:
            return not self.line[-1].position.ends
        if self.running is not None:
            return self.doomed is None and not self.running.position.ends
        return self.begun


@dataclass(slots=True)
class Next(Generic[M]):
    """What follows from a change."""

    run: list[M] = field(default_factory=list)
    """Let these run; each owes a `finished`."""
    failed: list[tuple[M, Ended]] = field(default_factory=list)
    """These never run, because their sequence is over."""
    gone: list[Sequence[M]] = field(default_factory=list)
    """Nothing is left under their ids."""

    def add(self, other: Next[M]) -> None:
        self.run += other.run
        self.failed += other.failed
        self.gone += other.gone


class Sequences(Generic[M]):
    """All sequences of one version. Not for several threads at once.

    Args:
        slots: sequences that may be active at a time.
        idle_s: how long a sequence keeps its slot without a request, in seconds.
    """

    def __init__(self, slots: int, idle_s: float) -> None:
        self.slots = slots
        self.idle_s = idle_s
        self.waiting = 0
        """Requests in lines."""
        self.backlogged = 0
        """Those of them whose sequence has no slot."""
        self.started = 0
        """Requests admitted that start a sequence."""
        self.ended: Counter[Ended] = Counter()
        """Sequences that are over; with those in `started` still to end."""
        self._all: dict[SequenceId, Sequence[M]] = {}
        self._free = [Slot(number) for number in reversed(range(slots))]
        self._slotless: dict[SequenceId, Sequence[M]] = {}
        self._idle: dict[SequenceId, float] = {}  # when each is over; in that order, as all may idle equally long
        self._over: Recent[SequenceId, Ended] = Recent(REMEMBERED)

    def __len__(self) -> int:
        """Sequences that are active or wait for a slot."""
        return len(self._all)

    @property
    def active(self) -> int:
        """Slots in use."""
        return self.slots - len(self._free)

    @property
    def slotless(self) -> int:
        """Sequences that wait for a slot."""
        return len(self._slotless)

    @property
    def next_due(self) -> float:
        """When the next sequence will have been idle for too long; inf when none is idle."""
        return next(iter(self._idle.values()), inf)

    def get(self, sequence_id: SequenceId) -> Sequence[M] | None:
        """The sequence of that id, if there is one."""
        return self._all.get(sequence_id)

    def lines(self) -> list[M]:
        """Every request that waits in a line."""
        return [member for sequence in self._all.values() for member in sequence.line]

    def admit(self, member: M) -> Next[M]:
        """A request arrived.

        Raises:
            NotStarted: it does not start its sequence, and nobody has.
        """
        position = member.position
        sequence = self._all.get(position.id)
        if not position.starts and (sequence is None or not sequence.open):
            raise NotStarted(self._over.get(position.id))
        if sequence is None:
            sequence = self._all[position.id] = self._slotless[position.id] = Sequence(position.id)
        if position.starts:
            self.started += 1
        member.sequence = sequence
        sequence.line.append(member)
        self.waiting += 1
        self.backlogged += sequence.slot is None
        self._idle.pop(position.id, None)
        return Next(run=[*self._release(sequence), *self._give_slots()])

    def finished(self, member: M, now: float, *, stepped: bool, left: bool = False) -> Next[M]:
        """A request that ran has its answer.

        Args:
            member: of `Next.run`.
            now: seconds, on the clock of `expire`.
            stepped: its next state is the state now; otherwise all is as before it.
            left: nobody knows whether its caller counts it.
        """
        sequence, position = member.sequence, member.position
        assert sequence.running is member, position
        assert sequence.slot is not None, position
        sequence.running = None
        why = sequence.doomed
        if why is None and stepped:
            sequence.slot.flip()
            why = Ended.END if position.ends else None
        elif why is None and left:
            why = Ended.LEFT
        elif why is None and position.starts:
            why = Ended.FAILED
        if why is not None:
            return self._end(sequence, why)
        run = self._release(sequence)
        if not run:
            self._idle[sequence.id] = now + self.idle_s
        return Next(run=run)

    def leave(self, member: M) -> Next[M] | None:
        """The caller of a request left. None when it waits in no line: then the one who runs it knows better.

        Its sequence is over: the others of it that wait are failed. The caller of `leave` answers `member` itself.
        """
        sequence = member.sequence
        line = [*sequence.line]
        if member not in line:
            return None
        at = line.index(member)
        starts = [number for number, each in enumerate(line) if each.position.starts]
        first = max((number for number in starts if number <= at), default=0)
        behind = min((number for number in starts if number > at), default=len(line))
        sequence.line = deque(line[:first] + line[behind:])
        removed = line[first:behind]
        self._forget(sequence, removed, Ended.LEFT)
        then = Next[M](failed=[(each, Ended.LEFT) for each in removed if each is not member])
        if not removed[0].position.starts:  # it had begun
            then.add(self._end(sequence, Ended.LEFT))
        elif not sequence.line and sequence.slot is None:
            then.gone += self._let_go(sequence, Ended.LEFT)
        return then

    def end(self, sequence_id: SequenceId, why: Ended) -> Next[M]:
        """Whatever there is under an id is over."""
        sequence = self._all.get(sequence_id)
        if sequence is None:
            return Next()
        removed = [*sequence.line]
        sequence.line.clear()
        self._forget(sequence, removed, why)
        then = Next[M](failed=[(each, why) for each in removed])
        then.add(self._end(sequence, why))
        return then

    def end_all(self, why: Ended) -> Next[M]:
        """Everything is over."""
        then = Next[M]()
        for each in [*self._slotless, *self._all]:  # first those that would be given the slots of the others
            then.add(self.end(each, why))
        return then

    def expire(self, now: float) -> Next[M]:
        """Sequences that were idle for too long are over."""
        then = Next[M]()
        for each in [each for each, due in self._idle.items() if due <= now]:
            then.add(self.end(each, Ended.IDLE))
        return then

    def _release(self, sequence: Sequence[M]) -> list[M]:
        """The next of a line, if it may run."""
        if sequence.slot is None or sequence.running is not None or not sequence.line:
            return []
        member = sequence.line.popleft()
        self.waiting -= 1
        if member.position.starts:
            if sequence.begun:
                self.ended[Ended.RESTARTED] += 1
            sequence.begun = True
        sequence.running = member
        return [member]

    def _give_slots(self) -> list[M]:
        """Free slots go to those who wait for one; who may run now."""
        run = []
        while self._free and self._slotless:
            sequence = self._slotless.pop(next(iter(self._slotless)))
            sequence.slot = self._free.pop()
            self.backlogged -= len(sequence.line)
            run += self._release(sequence)
        return run

    def _end(self, sequence: Sequence[M], why: Ended) -> Next[M]:
        """What has begun in a sequence is over, as soon as nothing of it runs; the next start in its line is not."""
        if sequence.running is not None:
            sequence.doomed = sequence.doomed or why
            return Next(failed=self._cut(sequence, why))
        if sequence.begun:
            self.ended[why] += 1
        sequence.begun, sequence.doomed = False, None
        failed = self._cut(sequence, why)
        gone = self._let_go(sequence, why)
        return Next(run=self._give_slots(), failed=failed, gone=gone)

    def _cut(self, sequence: Sequence[M], why: Ended) -> list[tuple[M, Ended]]:
        """Take those out of a line who come before the next start."""
        removed = []
        while sequence.line and not sequence.line[0].position.starts:
            removed.append(sequence.line.popleft())
        self._forget(sequence, removed, why)
        return [(each, why) for each in removed]

    def _forget(self, sequence: Sequence[M], removed: list[M], why: Ended) -> None:
        """Account for requests that were taken out of a line."""
        self.waiting -= len(removed)
        if sequence.slot is None:
            self.backlogged -= len(removed)
        starts = sum(each.position.starts for each in removed)
        if starts:
            self.ended[why] += starts

    def _let_go(self, sequence: Sequence[M], why: Ended) -> list[Sequence[M]]:
        """Take a slot back. Whoever still waits in the line waits for another; returns the sequence if nobody does."""
        if sequence.slot is not None:
            self._free.append(sequence.slot)
            sequence.slot = None
            self.backlogged += len(sequence.line)
        self._idle.pop(sequence.id, None)
        if sequence.line:
            self._slotless.setdefault(sequence.id, sequence)
            return []
        self._slotless.pop(sequence.id, None)
        del self._all[sequence.id]
        self._over.put(sequence.id, why)
        return [sequence]
