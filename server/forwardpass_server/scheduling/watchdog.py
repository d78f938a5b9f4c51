"""Ends runs that last longer than any run may: a loop without end, or a value that makes one.

Only instance threads are watched. What runs on the loop thread was measured in microseconds and has no loops.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from forwardpass_server.errors import DeadlineExpired

LOOKS = 10
"""A run is ended at most this fraction of the limit late."""


class Watched(Protocol):
    """What has runs; a `runner.Runner`."""

    @property
    def began_ns(self) -> int:
        """When the run in progress began; 0 when there is none."""

    def end(self, began_ns: int, error: Exception) -> None:
        """End the run that began then, if it still runs; its requests get `error`."""


class Watchdog:
    """One thread for all versions of a server; `watch` and `forget` may be called on any thread.

    Args:
        limit_s: how long one run may take, in seconds.
        clock_ns: the monotonic clock.
    """

    def __init__(self, limit_s: float, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._limit_s = limit_s
        self._clock_ns = clock_ns
        self.watched: frozenset[Watched] = frozenset()
        """Whose runs are looked at."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, runner: Watched) -> None:
        """Look at its runs from now on."""
        with self._lock:
            self.watched |= {runner}

    def forget(self, runner: Watched) -> None:
        """Look at it no more."""
        with self._lock:
            self.watched -= {runner}

    def look(self) -> None:
        """End the runs that are over the limit now."""
        limit_ns = round(self._limit_s * 1e9)
        for runner in self.watched:
            began_ns = runner.began_ns
            if began_ns and self._clock_ns() - began_ns > limit_ns:
                runner.end(began_ns, DeadlineExpired(f"the run was ended after {self._limit_s:g} s (--max-run-s)"))

    def _work(self) -> None:
        while not self._stopped.wait(self._limit_s / LOOKS):
            self.look()
