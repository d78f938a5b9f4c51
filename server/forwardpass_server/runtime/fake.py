"""A session without ONNX Runtime: programmable, observable, and as deaf to time as its test wants it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from forwardpass_server.errors import RunFailed
from forwardpass_server.scheduling.termination import Termination


@dataclass(frozen=True)
class FakeRun:
    """One call of `FakeSession.run`."""

    rows: int
    inputs: tuple[np.ndarray | None, ...]
    outputs: tuple[int, ...]
    thread: str


class FakeSession:
    """Has the same `run` and `close` as `Session`; remembers every run.

    Args:
        compute: all outputs from the inputs; by default one output, twice the first input.
        poison: a value that makes any run that holds it fail.
        error: what such a run raises.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[np.ndarray | None]], Sequence[np.ndarray]] | None = None,
        *,
        poison: float | None = None,
        error: Exception | None = None,
    ) -> None:
        self.provider = "FakeExecutionProvider"
        self.metadata: dict[str, str] = {}
        self.runs: list[FakeRun] = []
        self.fail_next: list[Exception] = []
        """Raised by the next runs, one each."""
        self.closed = False
        self._compute = compute or _double
        self._poison = poison
        self._error = error or RunFailed("poisoned")
        self._held = False
        self._changed = threading.Condition()

    def run(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[int], termination: Termination | None = None
    ) -> list[np.ndarray]:
        """Record the run, wait while held, and compute or fail as programmed."""
        present = [array for array in inputs if array is not None]
        rows = present[0].shape[0] if present and present[0].ndim else 1
        # Copies: the scheduler may use the memory of a batch again.
        seen = tuple(None if array is None else array.copy() for array in inputs)
        with self._changed:
            self.runs.append(FakeRun(rows, seen, tuple(outputs), threading.current_thread().name))
            self._changed.notify_all()
        terminated = threading.Event()
        if termination is not None:
            termination.arm(lambda: self._wake(terminated))
        with self._changed:
            self._changed.wait_for(lambda: not self._held or terminated.is_set())
        if terminated.is_set():
            raise RunFailed("terminated")
        if self.closed:
            raise RunFailed("the session was closed")
        if self.fail_next:
            raise self.fail_next.pop(0)
        if self._poison is not None and any(np.any(array == self._poison) for array in present):
            raise self._error
        computed = self._compute(inputs)
        return [computed[index] for index in outputs]

    def hold(self) -> None:
        """Let runs begin but not end."""
        self._held = True

    def release(self) -> None:
        """Let held and further runs end."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def wait_runs(self, count: int, timeout_s: float = 10.0) -> bool:
        """Block until so many runs have begun; False when that took longer than `timeout_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.runs) >= count, timeout_s)

    def close(self) -> None:
        """As `Session.close`."""
        self.closed = True

    def _wake(self, terminated: threading.Event) -> None:
        terminated.set()
        with self._changed:
            self._changed.notify_all()


def _double(inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    first = inputs[0]
    assert first is not None
    return [first * 2]
