"""Control rpcs to every process: the supervisor's end. It knows neither models nor logs, only orders and their replies.

The one thing to know: orders are given one at a time, each to all processes at once, so that all end in the same state
whoever gave them. What is in force is kept, and a process that begins anew is given it before it may listen.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswerInTime
from typing import Protocol

from forwardpass_server.control import (
    InForce,
    Order,
    Reply,
    pack_in_force,
    pack_order,
    pack_replies,
    unpack_in_force,
    unpack_order,
    unpack_replies,
)
from forwardpass_server.link import LinkClosed, NoAnswer
from forwardpass_server.seat import ADOPT, OBEY

ANSWER_WAIT_S = 10.0
"""How long those who only ask wait for a process, in seconds; orders wait until it has obeyed or is gone."""

INTERNAL, UNAVAILABLE = 13, 14
"""gRPC's codes for a process that could not answer, and for one that does not."""


class Member(Protocol):
    """A process, as far as it is asked; a `supervisor.Member`."""

    @property
    def number(self) -> int: ...
    def ask(self, question: bytes) -> "Future[bytes]": ...


class Broadcast:
    """Passes orders on. Every method may be called on any thread; `answer` and `join` block."""

    def __init__(self, answer_wait_s: float = ANSWER_WAIT_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._answer_wait_s = answer_wait_s
        self._clock = clock
        self._lock = threading.Lock()
        """Held while an order is carried out, and for the last step of a newcomer."""
        self._seats = threading.Lock()
        self._members: tuple[Member, ...] = ()
        """Replaced whole, under `_seats`."""
        self._in_force: InForce | None = None

    def join(self, member: Member, in_force: bytes) -> None:
        """Bring a process up to date; from then on it is asked whatever all are asked.

        Args:
            member: it has loaded what it found, and does not listen yet.
            in_force: as it sees it. That of the first process is the beginning.

        Raises:
            LinkClosed: it is gone.
        """
        theirs: InForce = unpack_in_force(in_force)
        with self._lock:
            if self._in_force is None:
                self._in_force = theirs
            ours = self._in_force
        if ours != theirs:
            # All models, perhaps: orders to the others go on meanwhile, and are made up for below.
            member.ask(ADOPT + pack_in_force(ours)).result()
        with self._lock:
            if self._in_force != ours:
                member.ask(ADOPT + pack_in_force(self._in_force)).result()
            with self._seats:
                self._members = (*self._members, member)

    def leave(self, member: Member) -> None:
        """The process is gone."""
        # NOTE: not under `_lock`, which an order to this very process may hold.
        with self._seats:
            self._members = tuple(each for each in self._members if each is not member)

    def answer(self, question: bytes) -> bytes:
        """What all answer to an order that one of them was given; of those that are gone, nothing."""
        order = unpack_order(question)
        if not order.changes:
            return pack_replies(self._gather(order, self._clock() + self._answer_wait_s))
        with self._lock:
            replies = self._gather(order, None)
            for reply in replies:
                if reply.code == 0:
                    self._remember(reply.leaves)
        return pack_replies(replies)

    def _gather(self, order: Order, until: float | None) -> list[Reply]:
        frame = OBEY + pack_order(order)
        asked = [(member, member.ask(frame)) for member in self._members]
        replies = []
        for member, future in asked:
            try:
                left_s = None if until is None else max(0.0, until - self._clock())
                replies += unpack_replies(future.result(left_s))
            except NoAnswerInTime:
                text = f"process {member.number} does not answer; try again in a while"
                replies.append(Reply(process=member.number, code=UNAVAILABLE, message=text, silent=True))
            except NoAnswer as error:
                replies.append(Reply(process=member.number, code=INTERNAL, message=str(error)))
            except LinkClosed:
                continue  # whoever is started in its place is given what is in force
        return replies

    def _remember(self, leaves: Mapping[str, Order | None]) -> None:
        in_force = dict(self._in_force or {})
        for key, order in leaves.items():
            in_force.pop(key, None)  # so that what was ordered last comes last
            if order is not None:
                in_force[key] = order
        self._in_force = in_force
