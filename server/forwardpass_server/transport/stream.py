"""One call with many messages each way: at most one read and one write outstanding, and a bounded backlog between.

The hard part is that three things end a stream and may cross: the handler finishes it, the caller leaves it, the caller
half-closes it. `_gone` (nobody listens) and `_finishing` (a status is queued) settle every crossing, under the lock.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from forwardpass_server.transport import core
from forwardpass_server.transport.answer import checked_code, checked_metadata, status_message
from forwardpass_server.transport.call import AlreadyAnswered, Metadata, OnError, StreamFactory, StreamHandler
from forwardpass_server.transport.loop import Loop
from forwardpass_server.transport.unary import INTERNAL, monotonic_deadline

RESOURCE_EXHAUSTED = 8
HIGH_WATER = 64  # messages in the backlog at which reading stops
LOW_WATER = 16  # messages in the backlog at which it goes on
HIGH_WATER_BYTES = 8 << 20  # likewise, whatever their number
LOW_WATER_BYTES = 2 << 20

logger = logging.getLogger(__name__)

Status = tuple[int, bytes, Metadata]


class BidiCall:
    """See `call.StreamCall`, which it is. Server streams and client streams are bidirectional ones used one way."""

    __slots__ = (
        "_backlog_bytes",
        "_closed",
        "_finishing",
        "_full",
        "_gone",
        "_half_closed",
        "_half_closing",
        "_handler",
        "_loop",
        "_max_backlog_bytes",
        "_on_error",
        "_on_writable",
        "_opened",
        "_out",
        "_paused",
        "_raw",
        "_reading",
        "_request",
        "_status",
        "_status_if_ok",
        "_when_written",
        "_writing",
        "deadline",
        "received_ns",
    )

    def __init__(
        self,
        loop: Loop,
        request: core.CallEvent,
        factory: StreamFactory,
        on_error: OnError,
        max_backlog_bytes: int,
    ) -> None:
        self._loop = loop
        self._request = request
        self._on_error = on_error
        self._max_backlog_bytes = max_backlog_bytes
        self._raw = request.call
        self._out: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._status: Status | None = None
        self._status_if_ok: Status | None = None  # the server stops: what a handler's OK becomes
        self._on_writable: Callable[[], None] | None = None
        self._when_written: list[Callable[[], None]] = []
        self._handler: StreamHandler | None = None
        self._opened = False  # initial metadata sent
        self._reading = False  # a read is with the core
        self._writing = False  # a write is with the core
        self._paused = False  # the handler wants no more for now
        self._half_closing = False  # no further message will be read
        self._half_closed = False  # and the handler has been told so
        self._finishing = False  # a status is queued or sent
        self._full = False  # the backlog reached high water and has not yet fallen to low water
        self._gone = False  # the caller left
        self._closed = False  # the core has said how the call ended
        self.received_ns = 0
        self.deadline = monotonic_deadline(request.call_details.deadline)
        loop.stats.calls_started += 1
        loop.streams.add(self)
        self._start((core.ReceiveClose(core.NO_FLAGS),), self._on_close)
        try:
            self._handler = factory(self)
        except Exception as error:  # noqa: BLE001 -- whatever a handler raises is answered
            self._failed(error)
        self._read()

    @property
    def method(self) -> str:
        return self._request.call_details.method.decode("ascii", "backslashreplace")

    @property
    def metadata(self) -> Metadata:
        return self._request.invocation_metadata

    @property
    def peer(self) -> str:
        return unquote(self._raw.peer().decode("ascii", "backslashreplace"))

    @property
    def cancelled(self) -> bool:
        return self._gone or time.monotonic() >= self.deadline

    @property
    def backlog(self) -> int:
        return len(self._out) + self._writing

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        return core.auth_context(self._raw)

    def send(self, body: bytes) -> bool:
        if not isinstance(body, bytes):
            raise TypeError(f"a message must be bytes, got {type(body).__name__}")
        with self._loop.lock:
            if self._gone or self._loop.closed:
                return False
            if self._finishing:
                raise AlreadyAnswered(f"{self.method} was sent a message after its status")
            if self._backlog_bytes + len(body) > self._max_backlog_bytes and self._out:
                self._give_up()
                return False
            self._out.append(body)
            self._backlog_bytes += len(body)
            if len(self._out) >= HIGH_WATER or self._backlog_bytes >= HIGH_WATER_BYTES:
                self._full = True
            self._write()
        return True

    def finish(self, code: int = 0, message: str = "", trailers: Metadata = ()) -> None:
        self._finish((code and checked_code(code), status_message(message), checked_metadata(trailers)))

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        return self._finish((checked_code(code), status_message(message), checked_metadata(trailers)))

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._read()

    def on_writable(self, callback: Callable[[], None]) -> None:
        self._on_writable = callback

    def when_written(self, callback: Callable[[], None]) -> None:
        with self._loop.lock:
            if self._gone or self._finishing or self._loop.closed:
                return
            self._when_written.append(callback)
            if not self._out and not self._writing:
                self._loop.call_soon(self._tell_written)

    def end_reading(self, code: int, message: str) -> None:
        """The server is stopping: read no more, let the handler answer what it has, then end with `code`.

        The handler sees a half-close. A caller that half-closed itself gets the handler's own status. Loop thread.
        """
        with self._loop.lock:
            if self._half_closed or self._half_closing:
                return
            self._half_closing = True
            self._status_if_ok = (code, status_message(message), ())
        self._deliver_half_close()

    def abandon(self, code: int, message: str) -> None:
        """The server's time is over: end with this status, whatever the handler still has to say. Loop thread."""
        with self._loop.lock:
            if self._gone or self._finishing or self._loop.closed:
                return
            self._finish((code, status_message(message), ()))
            self._leave()

    def _finish(self, status: Status) -> bool:
        with self._loop.lock:
            if self._gone or self._loop.closed:
                self._finishing = True
                return False
            if self._finishing:
                raise AlreadyAnswered(f"{self.method} was finished twice")
            self._finishing = True
            self._status = status if status[0] else self._status_if_ok or status
            self._write()
        return True

    def _give_up(self) -> None:
        """Fail a caller that does not read; for the handler it has left. Under the lock."""
        waiting, size = len(self._out), self._backlog_bytes
        self._out.clear()
        self._backlog_bytes = 0
        self._finish(
            (
                RESOURCE_EXHAUSTED,
                status_message(
                    f"{waiting} responses ({size} bytes) wait for a caller that does not read them; "
                    f"the limit is {self._max_backlog_bytes} bytes"
                ),
                (),
            )
        )
        self._leave()

    def _leave(self) -> None:
        """From now on the caller counts as gone; the handler hears of it once, on the loop thread. Under the lock."""
        self._gone = True
        if self._handler is not None:
            self._loop.call_soon(self._handler.on_cancel)

    def _start(self, operations: core.Operations, tag: core.Tag) -> None:
        code = self._raw.start_server_batch(operations, tag)
        if code != core.OK:
            raise RuntimeError(f"the core refused a batch of {self.method} (error {code})")

    def _read(self) -> None:
        with self._loop.lock:
            if self._reading or self._paused or self._full or self._half_closing or self._finishing or self._gone:
                return
            if self._loop.closed:
                return
            self._reading = True
            self._start((core.ReceiveMessage(core.NO_FLAGS),), self._on_message)

    def _write(self) -> None:
        """Give the core the next message, and the status with the last one. Under the lock."""
        if self._writing or self._closed:
            return
        operations: core.Operations = ()
        if self._out:
            body = self._out.popleft()
            self._backlog_bytes -= len(body)
            operations = (core.SendMessage(body, core.NO_FLAGS),)
        if self._status is not None and not self._out:
            code, details, trailers = self._status
            self._status = None
            operations += (core.SendStatus(trailers, code, details, core.NO_FLAGS),)
        if not operations:
            return
        if not self._opened:
            self._opened = True
            operations = (core.SendInitialMetadata((), core.NO_FLAGS), *operations)
        self._writing = True
        self._start(operations, self._on_written)

    def _on_message(self, event: core.BatchEvent) -> None:
        self._reading = False
        body = event.batch_operations[0].message()
        if body is None:
            # NOTE: the core says None for a half-close and for a caller that left; in the second case the close
            # follows, nearly always within the round. No success: too large a message, and the caller is gone.
            if event.success and not self._loop.closed and not self._half_closing:
                self._half_closing = True
                self._loop.call_soon(self._deliver_half_close)
            return
        if self._gone or self._finishing or self._handler is None or self._loop.closed:
            return
        self.received_ns = time.monotonic_ns()
        try:
            self._handler.on_message(body)
        except Exception as error:  # noqa: BLE001 -- whatever a handler raises is answered
            self._failed(error)
        self._read()

    def _on_written(self, event: core.BatchEvent) -> None:
        with self._loop.lock:
            self._writing = False
            if event.success:
                self._write()
            ended = self._closed and not self._writing
            written = bool(self._when_written) and event.success and not self._writing
            writable = self._full and len(self._out) <= LOW_WATER and self._backlog_bytes <= LOW_WATER_BYTES
            if writable:
                self._full = False
        if written:
            self._tell_written()
        if ended:
            self._complete()
        elif writable and not self._gone:
            self._read()
            if self._on_writable is not None:
                self._deliver(self._on_writable)

    def _on_close(self, event: core.BatchEvent) -> None:
        with self._loop.lock:
            self._closed = True
            left = event.batch_operations[0].cancelled() and not self._gone and not self._finishing
            self._gone = True
            self._out.clear()
            self._backlog_bytes = 0
            self._status = None
            ended = not self._writing
        if left:
            self._loop.stats.calls_cancelled += 1
            if self._handler is not None:
                try:
                    self._handler.on_cancel()
                except Exception:
                    logger.exception("on_cancel of %s raised", self.method)
        if ended:
            self._complete()

    def _tell_written(self) -> None:
        with self._loop.lock:
            if self._out or self._writing or self._gone or self._finishing:  # it has gone on meanwhile, or is over
                return
            callbacks, self._when_written = self._when_written, []
        for callback in callbacks:
            self._deliver(callback)

    def _deliver_half_close(self) -> None:
        if self._gone or self._finishing or self._half_closed or self._handler is None:
            return
        self._half_closed = True
        self._deliver(self._handler.on_half_close)

    def _deliver(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # noqa: BLE001 -- whatever a handler raises is answered
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """The handler raised: the caller gets a status, and the handler counts as left alone."""
        with self._loop.lock:
            if self._finishing or self._gone or self._loop.closed:
                logger.error("the handler of %s raised after its stream had ended", self.method, exc_info=error)
                return
            try:
                code, message = self._on_error(error)
                self.fail(code, message)
            except Exception:
                logger.exception("on_error failed for %s; the caller gets INTERNAL", self.method)
                self.fail(INTERNAL, "internal error")
            self._leave()

    def _complete(self) -> None:
        """Nothing is with the core any more save perhaps a read that will bring nothing."""
        if self in self._loop.streams:
            self._loop.streams.remove(self)
            self._loop.stats.calls_completed += 1
        self._handler = None  # it refers to us
        self._on_writable = None
        self._when_written.clear()
