"""Who wants to know what becomes of versions: the metrics, and tests."""

from typing import Protocol

from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.states import State


class LifecycleObserver(Protocol):
    """Its methods are called on the repository thread and must not block."""

    def state_changed(self, model: str, version: int, state: State) -> None:
        """The version is in this state now."""

    def loaded(self, version: LoadedVersion, seconds: float) -> None:
        """The version is READY, `seconds` after its load began."""

    def load_failed(self, model: str, version: int) -> None:
        """A load failed."""

    def forgotten(self, model: str, version: int) -> None:
        """The version is not known any more: neither served nor in the repository."""
