"""What a process of several knows of its supervisor: its number, and a link over which it says where it stands.

Over the same link it is asked for its metrics, whether it lives, and to obey what admins ordered; and it has the others
asked what it was asked itself.
"""

import os
import queue
import threading
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
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
from forwardpass_server.errors import Overloaded, StartFailed, Stopping
from forwardpass_server.link import Link

VARIABLE = "FORWARDPASS_SUPERVISOR"
"""In the environment of a process that a supervisor started: its number, the descriptor of its end of the link, and
`again` if it is started in place of another."""
AGAIN = "again"

LOADED, SERVING = b"loaded ", b"serving"
"""Notes of a process: its models are loaded, and what is in force there; its port is open."""
LISTEN = b"listen"
"""A note to a process: open the port."""
METRICS, BEAT = b"metrics", b"beat"
"""Questions to a process: its metrics page; whether it lives, to which the answer is empty."""
OBEY, ADOPT = b"obey ", b"adopt "
"""Questions to a process: an order, answered by its reply; what is in force elsewhere, answered when it is here too."""

ASKED_MAX = 256
"""Control rpcs that may wait for the answers of all processes."""
RETRY_AFTER_S = 1.0

Take = Callable[[Sequence[Reply] | Exception], None]
"""Takes the replies of all processes, or why there are none; on any thread."""


@dataclass(frozen=True)
class Place:
    """Of this process among those of its supervisor.

    Args:
        number: its own.
        descriptor: of its end of the link.
        again: it is started in place of another, and will be told what to load.
    """

    number: int
    descriptor: int
    again: bool = False

    def __str__(self) -> str:
        """As it stands in the environment."""
        return f"{self.number}:{self.descriptor}" + (f":{AGAIN}" if self.again else "")


def place_in(environment: MutableMapping[str, str]) -> Place | None:
    """This process's place, None if no supervisor started it. It is taken out, so that no child of ours finds it.

    Raises:
        StartFailed: somebody else has written there.
    """
    text = environment.pop(VARIABLE, None)
    if text is None:
        return None
    number, _, rest = text.partition(":")
    descriptor, colon, again = rest.partition(":")
    if not (number.isdecimal() and descriptor.isdecimal() and again == (AGAIN if colon else "")):
        raise StartFailed(f"{VARIABLE} is for processes that a supervisor starts, and says {text!r}; unset it")
    # The supervisor passed it on through exec; trial loads and the like are not to inherit it.
    os.set_inheritable(int(descriptor), False)
    return Place(int(number), int(descriptor), bool(again))


class Occupant(Protocol):
    """Who sits there: an `app.Server`. Called on threads of the link."""

    def metrics_text(self) -> bytes: ...
    def in_force(self) -> InForce: ...
    def obey(self, order: Order) -> Reply: ...
    def adopt(self, in_force: InForce) -> None: ...
    def beat(self) -> None: ...
    def ask_to_stop(self) -> None: ...


class Seat:
    """This process's end of the link. `sit` is called once, before anything is asked.

    Args:
        place: where it sits.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        # A SimpleQueue, since a signal handler may put while the same thread is inside `get`.
        self._may_listen: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._waiting = threading.Semaphore(ASKED_MAX)

    def sit(self, occupant: Occupant) -> None:
        """Answer for this process from now on."""
        self._occupant = occupant
        self._link = Link(
            Connection(self._place.descriptor),
            on_note=lambda note: self._may_listen.put(note == LISTEN),
            answer=self._answer,
            on_end=self._orphaned,
        )
        self._link.start()

    def wait_to_listen(self) -> bool:
        """The models are loaded: wait until those of the others are. False when `give_up` came first."""
        self._link.tell(LOADED + pack_in_force(self._occupant.in_force()))
        return self._may_listen.get()

    def serving(self) -> None:
        """The port is open."""
        self._link.tell(SERVING)

    def give_up(self) -> None:
        """Let `wait_to_listen` return. Any thread, and signal handlers."""
        self._may_listen.put(False)

    def ask_all(self, order: Order, take: Take) -> None:
        """Have all processes asked, this one too. Any thread; does not block.

        Raises:
            Overloaded: too many wait for answers already.
        """
        if not self._waiting.acquire(blocking=False):
            raise Overloaded(
                f"{ASKED_MAX} control rpcs wait for all processes already; retry in {RETRY_AFTER_S:g} s",
                retry_after_s=RETRY_AFTER_S,
            )
        self._link.ask(pack_order(order)).add_done_callback(lambda future: self._heard(future, take))

    def _heard(self, future: "Future[bytes]", take: Take) -> None:
        self._waiting.release()
        error = future.exception()
        if error is None:
            take(unpack_replies(future.result()))
        else:
            take(Stopping(f"the processes of this server cannot be asked: {error}"))

    def _answer(self, question: bytes) -> bytes:
        if question == METRICS:
            return self._occupant.metrics_text()
        if question == BEAT:
            self._occupant.beat()
        elif question.startswith(OBEY):
            reply = self._occupant.obey(unpack_order(question.removeprefix(OBEY)))
            return pack_replies([replace(reply, process=self._place.number)])
        elif question.startswith(ADOPT):
            self._occupant.adopt(unpack_in_force(question.removeprefix(ADOPT)))
        return b""

    def _orphaned(self) -> None:
        self._occupant.ask_to_stop()
        self.give_up()
