"""What stands on both sides of scheduling in a test: a caller that remembers its answer, and a clock that jumps."""

import threading
from collections.abc import Callable, Sequence
from math import inf

from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.scheduling.request import Array, Inputs, Request


class FakeResponder:
    """Remembers the answer, and how often there was one."""

    def __init__(self) -> None:
        self.cancelled = False
        self.outputs: list[Array] | None = None
        self.error: Exception | None = None
        self.request: Request | None = None
        self.answers = 0
        self.thread = ""
        self._on_cancel: list[Callable[[], None]] = []
        self._done = threading.Event()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """As `Responder.on_cancel`."""
        if self.cancelled:
            callback()
        elif not self.answers:
            self._on_cancel.append(callback)

    def leave(self) -> None:
        """The caller leaves, and the transport says so."""
        self.cancelled = True
        callbacks, self._on_cancel = self._on_cancel, []
        for callback in callbacks:
            callback()

    def succeed(self, outputs: Sequence[Array], request: Request) -> None:
        """As `Responder.succeed`."""
        self.outputs = list(outputs)
        self.request = request
        self._answered()

    def fail(self, error: Exception) -> None:
        """As `Responder.fail`."""
        self.error = error
        self._answered()

    def wait(self, timeout_s: float = 10.0) -> "FakeResponder":
        """Block until there is an answer.

        Raises:
            TimeoutError: there was none within `timeout_s` seconds.
        """
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"no answer within {timeout_s} s")
        return self

    def _answered(self) -> None:
        self._on_cancel = []  # as the transport does: they refer to the request, and that to us
        self.answers += 1
        self.thread = threading.current_thread().name
        self._done.set()


class FakeClock:
    """A monotonic clock, in nanoseconds, that stands still until told to jump."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_ns = round(now_s * 1e9)

    def __call__(self) -> int:
        return self.now_ns

    @property
    def now_s(self) -> float:
        """The same in seconds, as deadlines are."""
        return self.now_ns * 1e-9

    def advance(self, seconds: float) -> None:
        """Jump forward."""
        self.now_ns += round(seconds * 1e9)


def make_request(
    inputs: Inputs,
    *,
    rows: int | None = None,
    outputs: tuple[int, ...] = (0,),
    deadline: float = inf,
    priority: int = 0,
    timeout_s: float = inf,
) -> tuple[Request, FakeResponder]:
    """A request and the caller behind it; `rows` from the first input unless given."""
    arrays = [array for array in inputs if array is not None]
    responder = FakeResponder()
    request = Request(
        inputs,
        rows=len(arrays[0]) if rows is None else rows,
        nbytes=sum(array.nbytes for array in arrays),
        outputs=outputs,
        responder=responder,
        timeline=Timeline(),
        deadline=deadline,
        priority=priority,
        timeout_s=timeout_s,
    )
    return request, responder
