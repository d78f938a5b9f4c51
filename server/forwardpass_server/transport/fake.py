"""The transport without a network: the same handlers, the same rules, in one process and on the calling thread.

For tests of everything above the transport. The calling thread plays the loop thread: handlers, `on_idle` and what was
given to `call_soon` run on it, while answers may come from any thread. `tests/server/transport/test_fake_is_real.py`
runs one suite over this and over sockets, so that the two cannot drift apart.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from forwardpass_server.transport.answer import checked_code, checked_metadata, status_message
from forwardpass_server.transport.call import (
    AlreadyAnswered,
    Metadata,
    OnAnswer,
    OnError,
    StreamFactory,
    StreamHandler,
    UnaryHandler,
)

CANCELLED = 1
UNIMPLEMENTED = 12
HIGH_WATER = 64
LOW_WATER = 16
HIGH_WATER_BYTES = 8 << 20
LOW_WATER_BYTES = 2 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FakeResult:
    """What the caller saw."""

    code: int
    """gRPC status; 0 is OK."""
    message: str
    body: bytes | None
    """None unless the code is 0; always None for a stream."""
    trailers: Metadata = ()
    metadata: Metadata = ()
    """Initial metadata."""


class FakeServer:
    """Handlers called directly. See `completion_queue.CompletionQueueServer`, whose place it takes."""

    def __init__(
        self,
        unary: Mapping[str, UnaryHandler],
        streams: Mapping[str, StreamFactory] | None = None,
        on_error: OnError = lambda error: (13, f"{type(error).__name__}: {error}"),
    ) -> None:
        self._unary = dict(unary)
        self._streams = dict(streams or {})
        self._on_error = on_error
        self._soon: deque[Callable[[], None]] = deque()
        self.changed = threading.Condition(threading.RLock())
        self.on_idle: Callable[[], bool] | None = None

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` on the thread that waits for a result. Any thread."""
        with self.changed:
            self._soon.append(function)
            self.changed.notify_all()

    def unary(
        self,
        method: str,
        body: bytes,
        metadata: Metadata = (),
        deadline_s: float | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> FakeResult:
        """Call and wait for the answer; raises TimeoutError when nobody answers in `timeout_s`."""
        return self.begin(method, body, metadata, deadline_s).result(timeout_s)

    def begin(
        self, method: str, body: bytes, metadata: Metadata = (), deadline_s: float | None = None
    ) -> "FakeUnaryCall":
        """Call and return at once; then `result`, or `cancel`."""
        call = FakeUnaryCall(self, method, metadata, deadline_s)
        handler = self._unary.get(method)
        if handler is None:
            call.fail(UNIMPLEMENTED, f"this server has no method {method}")
            return call
        try:
            handler(call, body)
        except Exception as error:
            if call.answered:
                logger.exception("the handler of %s raised after answering", method)
            else:
                call.fail(*self._on_error(error))
        return call

    def stream(self, method: str, metadata: Metadata = (), deadline_s: float | None = None) -> "FakeStream":
        """Begin a stream; the caller's side is on the object returned."""
        stream = FakeStream(self, method, metadata, deadline_s, self._on_error)
        factory = self._streams.get(method)
        if factory is None:
            stream.fail(UNIMPLEMENTED, f"this server has no method {method}")
        else:
            stream.begin(factory)
        return stream

    def run_until(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Play the loop until `done()`; raises TimeoutError after `timeout_s`."""
        until = time.monotonic() + timeout_s
        while not done():
            worked = self.on_idle is not None and self.on_idle()
            while self._soon:
                self._soon.popleft()()
                worked = True
            with self.changed:
                if worked or done() or self._soon:
                    continue
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"nothing happened for {timeout_s} s")
                self.changed.wait(min(left, 0.05))


class _FakeCall:
    """What unary calls and streams share."""

    def __init__(self, server: FakeServer, method: str, metadata: Metadata, deadline_s: float | None) -> None:
        self._server = server
        self.method = method
        self.metadata = checked_metadata(metadata)
        self.peer = "fake:caller"
        self.deadline = math.inf if deadline_s is None else time.monotonic() + deadline_s
        self.received_ns = time.monotonic_ns()
        self.auth_context: dict[str, tuple[bytes, ...]] = {}
        """What `identity` returns; a test may fill it."""
        self._left = False
        self._result: FakeResult | None = None

    @property
    def cancelled(self) -> bool:
        return self._left or time.monotonic() >= self.deadline

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        return self.auth_context

    @property
    def answered(self) -> bool:
        """Whether the caller has its status."""
        return self._result is not None

    def result(self, timeout_s: float = 10.0) -> FakeResult:
        """Wait for the status; raises TimeoutError when none comes."""
        self._server.run_until(lambda: self._result is not None, timeout_s)
        assert self._result is not None
        return self._result


class FakeUnaryCall(_FakeCall):
    """`call.Call`, and the caller's side of it: `result`, `cancel`."""

    def __init__(self, server: FakeServer, method: str, metadata: Metadata, deadline_s: float | None) -> None:
        super().__init__(server, method, metadata, deadline_s)
        self._answered = False
        self._callbacks: list[Callable[[], None]] = []

    on_answer: OnAnswer | None = None

    def on_cancel(self, callback: Callable[[], None]) -> None:
        with self._server.changed:
            if not self._left:
                self._callbacks.append(callback)
                return
        callback()

    def reply(self, body: bytes, trailers: Metadata = (), *, metadata: Metadata = ()) -> bool:
        if not isinstance(body, bytes):
            raise TypeError(f"a message must be bytes, got {type(body).__name__}")
        return self._answer(FakeResult(0, "", body, checked_metadata(trailers), checked_metadata(metadata)))

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        text = status_message(message).decode()
        return self._answer(FakeResult(checked_code(code), text, None, checked_metadata(trailers)))

    def cancel(self) -> None:
        """The caller leaves: its result is CANCELLED, unless it was answered before."""
        with self._server.changed:
            if self._left or self._answered:
                return
            self._left = True
            self._result = FakeResult(CANCELLED, "cancelled by the caller", None)
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _answer(self, result: FakeResult) -> bool:
        if self.on_answer is not None and not self._answered:
            self.on_answer(self, result.code)
        with self._server.changed:
            if self._answered:
                raise AlreadyAnswered(f"{self.method} was answered twice")
            self._answered = True
            self._callbacks = []
            if self._left:
                return False
            self._result = result
            self._server.changed.notify_all()
        return True


class FakeStream(_FakeCall):
    """`call.StreamCall`, and the caller's side: `say`, `half_close`, `cancel`, `heard`, `result`, `stall`, `take`."""

    def __init__(
        self, server: FakeServer, method: str, metadata: Metadata, deadline_s: float | None, on_error: OnError
    ) -> None:
        super().__init__(server, method, metadata, deadline_s)
        self.heard: list[bytes] = []
        """Messages the caller has read, in order."""
        self._on_error = on_error
        self._handler: StreamHandler | None = None
        self._said: deque[bytes | None] = deque()  # None: half-closed
        self._out: deque[bytes] = deque()
        self._status: FakeResult | None = None
        self._on_writable: Callable[[], None] | None = None
        self._when_written: list[Callable[[], None]] = []
        self._stalled = False
        self._paused = False
        self._full = False
        self._delivering = False

    def begin(self, factory: StreamFactory) -> None:
        """Make the handler. Used by `FakeServer.stream`."""
        try:
            self._handler = factory(self)
        except Exception as error:  # noqa: BLE001 -- whatever a handler raises is answered
            self._failed(error)

    # The handler's side.

    @property
    def backlog(self) -> int:
        return len(self._out)

    def send(self, body: bytes) -> bool:
        if not isinstance(body, bytes):
            raise TypeError(f"a message must be bytes, got {type(body).__name__}")
        with self._server.changed:
            if self._left:
                return False
            if self._status is not None:
                raise AlreadyAnswered(f"{self.method} was sent a message after its status")
            self._out.append(body)
            self._full = self._full or len(self._out) >= HIGH_WATER or self._backlog_bytes() >= HIGH_WATER_BYTES
            self._flush()
        return True

    def finish(self, code: int = 0, message: str = "", trailers: Metadata = ()) -> None:
        self._finish(FakeResult(code and checked_code(code), message, None, checked_metadata(trailers)))

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        return self._finish(FakeResult(checked_code(code), message, None, checked_metadata(trailers)))

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._deliver()

    def on_writable(self, callback: Callable[[], None]) -> None:
        self._on_writable = callback

    def when_written(self, callback: Callable[[], None]) -> None:
        with self._server.changed:
            if self._left or self._status is not None:
                return
            self._when_written.append(callback)
            if not self._out:
                self._server.call_soon(self._tell_written)

    # The caller's side.

    def say(self, *bodies: bytes) -> None:
        """Send messages; those the handler is not ready for wait."""
        self._said.extend(bodies)
        self._deliver()

    def half_close(self) -> None:
        """Say that nothing more will be said."""
        self._said.append(None)
        self._deliver()

    def cancel(self) -> None:
        """Leave: the result is CANCELLED, unless the stream had ended before."""
        with self._server.changed:
            if self._left or self._result is not None:
                return
            self._left = True
            self._out.clear()
            self._result = FakeResult(CANCELLED, "cancelled by the caller", None)
            told = self._status is None and self._handler is not None
        if told and self._handler is not None:
            self._handler.on_cancel()

    def stall(self) -> None:
        """Stop reading: what the handler sends gathers in its backlog."""
        self._stalled = True

    def _backlog_bytes(self) -> int:
        return sum(map(len, self._out))

    def take(self, count: int | None = None) -> None:
        """Read `count` messages of the backlog, or (None) all of it and go on reading."""
        writable = False
        with self._server.changed:
            for _ in range(len(self._out) if count is None else min(count, len(self._out))):
                self.heard.append(self._out.popleft())
            if count is None:
                self._stalled = False
            self._flush()
            if self._full and len(self._out) <= LOW_WATER and self._backlog_bytes() <= LOW_WATER_BYTES:
                self._full, writable = False, True
            written = not self._out
        if written:
            self._tell_written()
        if writable:
            self._deliver()
            if self._on_writable is not None:
                self._on_writable()

    def _tell_written(self) -> None:
        with self._server.changed:
            if self._out or self._left or self._status is not None:
                return
            callbacks, self._when_written = self._when_written, []
        for callback in callbacks:
            callback()

    def _finish(self, status: FakeResult) -> bool:
        with self._server.changed:
            if self._left:
                return False
            if self._status is not None:
                raise AlreadyAnswered(f"{self.method} was finished twice")
            self._status = status
            self._flush()
        return True

    def _flush(self) -> None:
        if not self._stalled:
            self.heard.extend(self._out)
            self._out.clear()
            self._full = False
        if self._status is not None and not self._out:
            self._result = self._status
        self._server.changed.notify_all()

    def _deliver(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._said and not (self._paused or self._full or self._left or self._status is not None):
                body = self._said.popleft()
                self.received_ns = time.monotonic_ns()
                if self._handler is None:
                    return
                try:
                    if body is None:
                        self._handler.on_half_close()
                    else:
                        self._handler.on_message(body)
                except Exception as error:  # noqa: BLE001 -- whatever a handler raises is answered
                    self._failed(error)
        finally:
            self._delivering = False

    def _failed(self, error: Exception) -> None:
        self._finish(FakeResult(*self._on_error(error), None))
        self._left = True
        if self._handler is not None:
            self._handler.on_cancel()
