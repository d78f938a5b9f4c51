"""What a process of several knows of its supervisor: its number, and a link over which it says where it stands."""

import os
import queue
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

from forwardpass_server.errors import StartFailed
from forwardpass_server.link import Link

VARIABLE = "FORWARDPASS_SUPERVISOR"
"""In the environment of a process that a supervisor started: its number, and the descriptor of its end of the link."""

LOADED, SERVING = b"loaded", b"serving"
"""Notes of a process: its models are loaded; its port is open."""
LISTEN = b"listen"
"""A note to a process: open the port."""
METRICS = b"metrics"
"""A question to a process; the answer is its metrics page."""


@dataclass(frozen=True)
class Place:
    """Of this process among those of its supervisor: its number, and the descriptor of its end of the link."""

    number: int
    descriptor: int


def place_in(environment: MutableMapping[str, str]) -> Place | None:
    """This process's place, None if no supervisor started it. It is taken out, so that no child of ours finds it.

    Raises:
        StartFailed: somebody else has written there.
    """
    text = environment.pop(VARIABLE, None)
    if text is None:
        return None
    number, colon, descriptor = text.partition(":")
    if not (colon and number.isdecimal() and descriptor.isdecimal()):
        raise StartFailed(f"{VARIABLE} is for processes that a supervisor starts, and says {text!r}; unset it")
    # The supervisor passed it on through exec; trial loads and the like are not to inherit it.
    os.set_inheritable(int(descriptor), False)
    return Place(int(number), int(descriptor))


class Seat:
    """This process's end of the link.

    Args:
        place: where it sits.
        metrics: its metrics page. Any thread.
        on_orphaned: the supervisor is gone, and nobody would stop this process. The link's thread.
    """

    def __init__(self, place: Place, *, metrics: Callable[[], bytes], on_orphaned: Callable[[], None]) -> None:
        # A SimpleQueue, since a signal handler may put while the same thread is inside `get`.
        self._may_listen: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._on_orphaned = on_orphaned
        self._link = Link(
            Connection(place.descriptor),
            on_note=lambda note: self._may_listen.put(note == LISTEN),
            answer=lambda question: metrics() if question == METRICS else b"",
            on_end=self._orphaned,
        )
        self._link.start()

    def wait_to_listen(self) -> bool:
        """The models are loaded: wait until those of the others are. False when `give_up` came first."""
        self._link.tell(LOADED)
        return self._may_listen.get()

    def serving(self) -> None:
        """The port is open."""
        self._link.tell(SERVING)

    def give_up(self) -> None:
        """Let `wait_to_listen` return. Any thread, and signal handlers."""
        self._may_listen.put(False)

    def _orphaned(self) -> None:
        self._on_orphaned()
        self.give_up()
