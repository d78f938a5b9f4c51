"""Who still uses a version: a count that says when the last user of a withdrawn version has gone.

A request takes a lease before it is queued and releases it when it has its answer. A version that was swapped out is
closed to new leases and torn down when the count reaches zero, so nothing in flight ever loses its session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from forwardpass_server.errors import IllegalTransition

V = TypeVar("V")


class Leases(Generic[V]):
    """The leases of one version. Every method may be called on any thread, and none blocks.

    Args:
        version: what is leased.
    """

    def __init__(self, version: V) -> None:
        self.version = version
        self._lock = threading.Lock()
        self._held = 0
        self._closed = False
        self._on_drained: Callable[[], None] | None = None

    @property
    def held(self) -> int:
        """Leases taken and not yet released."""
        return self._held

    def acquire(self) -> Lease[V] | None:
        """A new lease, or None when the version is closed to new ones."""
        with self._lock:
            if self._closed:
                return None
            self._held += 1
        return Lease(self)

    def close(self, on_drained: Callable[[], None]) -> None:
        """Grant no further lease, and call `on_drained` once, when none is held.

        Args:
            on_drained: runs on the thread that released the last lease, or here and now when none is held; must not
                block.

        Raises:
            IllegalTransition: closed already.
        """
        with self._lock:
            if self._closed:
                raise IllegalTransition(f"the leases of {self.version} are closed already")
            self._closed = True
            self._on_drained = on_drained
            drained = self._held == 0
        if drained:
            on_drained()

    def _release(self, lease: Lease[V]) -> None:
        with self._lock:
            if lease.released:
                raise IllegalTransition(f"a lease of {self.version} was released twice")
            lease.released = True
            self._held -= 1
            on_drained = self._on_drained if self._held == 0 else None
        if on_drained is not None:
            on_drained()


class Lease(Generic[V]):
    """The right to use `version`, until `release`. A context manager, too."""

    __slots__ = ("_leases", "released", "version")

    def __init__(self, leases: Leases[V]) -> None:
        self._leases = leases
        self.version = leases.version
        self.released = False

    def release(self) -> None:
        """Give it back, exactly once, on any thread.

        Raises:
            IllegalTransition: it was released before; whoever did that answered a request twice.
        """
        self._leases._release(self)

    def __enter__(self) -> Lease[V]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
