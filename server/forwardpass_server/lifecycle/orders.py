"""What admins ask of the repository thread: load this model, unload that one; kept in order, answered once.

Orders about one model are obeyed one after the other, in the order in which they came, so the last one is what counts.
Orders about different models do not wait for each other's drains.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

from forwardpass_server.errors import InvalidRequest, Overloaded
from forwardpass_server.lifecycle.model_settings import ModelSettings

ORDERS_MAX = 256
"""Orders that may wait."""
RETRY_AFTER_S = 1.0

Answer = Callable[[Exception | None], None]
"""Takes the outcome of an order, once, on any thread; must not block."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(eq=False)
class Order:
    """One order.

    Args:
        model: which.
        loads: load it; otherwise unload it.
        answer: takes the outcome.
        settings: in place of its config.pbtxt; None for that.
        with_steps: unload the models of an ensemble's steps too.
        begun: the repository thread has taken it in hand.
    """

    model: str
    loads: bool
    answer: Answer
    settings: ModelSettings | None = None
    with_steps: bool = False
    begun: bool = False


class Orders:
    """Those that are not answered yet. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Order] = []
        self._closed: Exception | None = None

    def put(self, order: Order) -> None:
        """Let an order wait for its turn.

        Raises:
            Overloaded: too many wait.
            Exception: what `close` was given.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if len(self._waiting) >= ORDERS_MAX:
                raise Overloaded(
                    f"{ORDERS_MAX} loads and unloads wait already; retry in {RETRY_AFTER_S:g} s",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._waiting.append(order)

    def heads(self) -> list[Order]:
        """The first order of each model, in order."""
        with self._lock:
            first: dict[str, Order] = {}
            for order in self._waiting:
                first.setdefault(order.model, order)
            return [*first.values()]

    def done(self, order: Order, error: Exception | None) -> None:
        """Answer an order, unless `close` has."""
        with self._lock:
            if order not in self._waiting:
                return
            self._waiting.remove(order)
        order.answer(error)

    def close(self, error: Exception) -> None:
        """Answer every order with `error`, and take no more."""
        with self._lock:
            self._closed = error
            waiting, self._waiting = self._waiting, []
        for order in waiting:
            order.answer(error)


def check_name(name: str) -> None:
    """Refuse what can be no name of a folder in a repository.

    Names are looked up among those that were found, never joined to a path; this is for the error, and the second lock.

    Raises:
        InvalidRequest: a path, or characters that no model name has.
    """
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidRequest(
            f"{name!r:.160} is no model name: those are 1 to 128 letters, digits, '_', '.', '-', and no path"
        )
