"""One unary call: receive a message, hand it over, answer once.

Three events a call: the call itself, its message, the completion of its answer. A fourth, that the caller left, is
asked for only when the call is still unanswered at the end of its round: models that run inline never pay it.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from forwardpass_server.transport import core
from forwardpass_server.transport.answer import checked_code, checked_metadata, status_message
from forwardpass_server.transport.call import AlreadyAnswered, Metadata, OnAnswer, OnError, UnaryHandler
from forwardpass_server.transport.core import (  # by name: the hot path looks each up once
    ReceiveClose,
    ReceiveMessage,
    SendInitialMetadata,
    SendMessage,
    SendStatus,
)
from forwardpass_server.transport.loop import Loop

UNIMPLEMENTED = 12
INTERNAL = 13
NO_DEADLINE = 1e18  # the core's "never" is about 9.2e18 seconds

logger = logging.getLogger(__name__)


def monotonic_deadline(wall_s: float) -> float:
    """The core's wall-clock deadline on the monotonic clock, where it stays put when the wall clock is set."""
    return math.inf if wall_s > NO_DEADLINE else time.monotonic() + (wall_s - time.time())


class UnaryCall:
    """See `call.Call`, which it is."""

    __slots__ = (
        "_answered",
        "_callbacks",
        "_gone",
        "_handler",
        "_loop",
        "_on_error",
        "_raw",
        "_request",
        "_watched",
        "deadline",
        "on_answer",
        "received_ns",
    )

    def __init__(self, loop: Loop, request: core.CallEvent, handler: UnaryHandler, on_error: OnError) -> None:
        self._loop = loop
        self._request = request
        self._handler = handler
        self._on_error = on_error
        self._raw = raw = request.call
        self._answered = False
        self._watched = False
        self._gone = False
        self._callbacks: list[Callable[[], None]] | None = None
        self.received_ns = 0
        self.on_answer: OnAnswer | None = None
        self.deadline = monotonic_deadline(request.call_details.deadline) - loop.behind_s
        loop.stats.calls_started += 1
        loop.in_flight += 1
        error = raw.start_server_batch((ReceiveMessage(0),), self._on_message)
        if error:
            raise RuntimeError(f"the core refused to receive a message (error {error})")

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

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        return core.auth_context(self._raw)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        with self._loop.lock:
            if not self._gone:
                if not self._answered:
                    self._callbacks = [*(self._callbacks or ()), callback]
                    self.watch()
                return
        callback()

    def reply(self, body: bytes, trailers: Metadata = (), *, metadata: Metadata = ()) -> bool:
        if type(body) is not bytes:
            raise TypeError(f"a message must be bytes, got {type(body).__name__}")
        if trailers:
            checked_metadata(trailers)
        if metadata:
            checked_metadata(metadata)
        operations = (SendInitialMetadata(metadata, 0), SendMessage(body, 0), SendStatus(trailers, 0, b"", 0))
        return self._answer(0, operations)

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        status = SendStatus(checked_metadata(trailers), checked_code(code), status_message(message), 0)
        return self._answer(code, (SendInitialMetadata((), 0), status))

    def watch(self) -> None:
        """Ask the core to say when the caller leaves, unless the answer is on its way (it asks as well). Any thread."""
        if self._answered:  # as most are at the end of their round
            return
        with self._loop.lock:
            if self._answered or self._watched or self._loop.closed:
                return
            self._watched = True
            self._raw.start_server_batch((ReceiveClose(0),), self._on_close)

    def _answer(self, code: int, operations: core.Operations) -> bool:
        if self.on_answer is not None and not self._answered:
            self.on_answer(self, code)
        with self._loop.lock:
            if self._answered:
                raise AlreadyAnswered(f"{self.method} was answered twice")
            if self._gone or self._loop.closed:
                self._answered = True
                return False
            self._answered = True
            if self._loop.in_flight > 1:
                self._loop.send_soon(self, operations)
            else:
                self.send(operations)
        return True

    def send(self, operations: core.Operations) -> None:
        """See `loop.Writer`; any thread may, while its call is alone."""
        if not self._watched:
            operations += (ReceiveClose(0),)
        error = self._raw.start_server_batch(operations, self._on_answered)
        if error:
            self._loop.stats.calls_completed += 1
            self._loop.in_flight -= 1
            logger.error("the core refused the answer to %s (error %d)", self.method, error)

    def _on_message(self, event: core.BatchEvent) -> None:
        body = event.batch_operations[0].message()
        if body is None:
            self._no_message()
            return
        self.received_ns = time.monotonic_ns()
        if self._loop.in_flight > 1:
            self._loop.arrived.append((self, body))
        else:
            self.hand_over(body)

    def hand_over(self, body: bytes) -> None:
        """See `loop.Reader`."""
        try:
            self._handler(self, body)
        except Exception as error:  # noqa: BLE001 -- whatever a handler raises is answered
            self._failed(error)
        if not self._answered:
            self._loop.unwatched.append(self)

    def _no_message(self) -> None:
        """The caller left, or sent too much (the core has told it so), or half-closed without a message.

        All three get a status: the core drops it where the caller has one already.
        """
        self._loop.stats.calls_refused += 1
        self.fail(UNIMPLEMENTED, f"{self.method} takes exactly one request message, got none")

    def _failed(self, error: Exception) -> None:
        if self._answered:
            logger.error("the handler of %s raised after answering", self.method, exc_info=error)
            return
        try:
            code, message = self._on_error(error)
            self.fail(code, message)
        except Exception:
            logger.exception("on_error failed for %s; the caller gets INTERNAL", self.method)
            self.fail(INTERNAL, "internal error")

    def _on_answered(self, event: core.BatchEvent) -> None:
        stats = self._loop.stats
        stats.calls_completed += 1
        self._loop.in_flight -= 1
        if not event.success:
            stats.calls_cancelled += 1
        self._callbacks = None  # they may refer to us

    def _on_close(self, event: core.BatchEvent) -> None:
        with self._loop.lock:
            if self._answered or not event.batch_operations[0].cancelled():
                return  # the completion of the answer is what counts
            self._gone = True
            callbacks, self._callbacks = self._callbacks, None
        stats = self._loop.stats
        stats.calls_completed += 1
        stats.calls_cancelled += 1
        self._loop.in_flight -= 1
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                logger.exception("an on_cancel callback of %s raised", self.method)
