"""The way to end one run from outside it: for callers who all left, and for runs past every limit."""

import threading
from collections.abc import Callable


class Termination:
    """Ends the run it was given to, and no other. Every method may be called on any thread, in any order.

    Whoever runs a model gives it one, and the model arms it with what ends it; asking before that is not lost.
    """

    __slots__ = ("_asked", "_end", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._end: Callable[[], None] | None = None

    def arm(self, end: Callable[[], None]) -> None:
        """The run has begun; `end` makes it fail soon, and does nothing once it is over."""
        with self._lock:
            self._end = end
            if self._asked:
                end()

    def ask(self) -> None:
        """End the run."""
        with self._lock:
            self._asked = True
            if self._end is not None:
                self._end()
