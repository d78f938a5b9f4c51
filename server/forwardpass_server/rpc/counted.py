"""Every call counted, by method and status.

An answer is counted before it leaves, so that a caller who has it finds itself counted; one that the caller no longer
waits for is counted as what became of it, CANCELLED or DEADLINE_EXCEEDED.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from forwardpass_server.rpc import status
from forwardpass_server.rpc.status import Code
from forwardpass_server.transport.call import (
    Call,
    Metadata,
    StreamCall,
    StreamFactory,
    StreamHandler,
    UnaryHandler,
)

CODE_NAMES = {int(code): code.name for code in Code}
INTERNAL = Code.INTERNAL.name


class Account(Protocol):
    """The figures of one method; an `observe.metrics.CallMetrics`. Any thread."""

    def started(self) -> None:
        """A call arrived."""

    def handled(self, code: str, took_ns: int) -> None:
        """It was answered, so many nanoseconds after its message had arrived."""


def counted(handle: UnaryHandler, account: Account) -> UnaryHandler:
    """`handle`, with its calls counted."""
    started = account.started

    def count(call: Call, code: int) -> None:
        now_ns = time.monotonic_ns()
        name = CODE_NAMES.get(code, "UNKNOWN")
        if call.cancelled:
            name = "DEADLINE_EXCEEDED" if now_ns * 1e-9 >= call.deadline else "CANCELLED"
        account.handled(name, now_ns - call.received_ns)

    def handle_counted(call: Call, body: bytes) -> None:
        started()
        call.on_answer = count
        handle(call, body)

    return handle_counted


def counted_stream(make: StreamFactory, account: Account) -> StreamFactory:
    """`make`, with its streams counted; a stream takes from its beginning to its end."""

    def make_counted(call: StreamCall) -> StreamHandler:
        account.started()
        outer = CountedStream(call, account)
        try:
            return CountedHandler(make(outer), outer)
        except Exception:
            outer.ended(INTERNAL)
            raise

    return make_counted


class CountedStream:
    """A `transport.call.StreamCall`, counted once, when it ends."""

    def __init__(self, call: StreamCall, account: Account) -> None:
        self._call = call
        self._account: Account | None = account
        self._began_ns = time.monotonic_ns()

    @property
    def method(self) -> str:
        return self._call.method

    @property
    def metadata(self) -> Metadata:
        return self._call.metadata

    @property
    def peer(self) -> str:
        return self._call.peer

    @property
    def deadline(self) -> float:
        return self._call.deadline

    @property
    def received_ns(self) -> int:
        return self._call.received_ns

    @property
    def cancelled(self) -> bool:
        return self._call.cancelled

    @property
    def backlog(self) -> int:
        return self._call.backlog

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        return self._call.identity()

    def send(self, body: bytes) -> bool:
        return self._call.send(body)

    def finish(self, code: int = 0, message: str = "", trailers: Metadata = ()) -> None:
        self.ended(CODE_NAMES.get(code, "UNKNOWN"))
        self._call.finish(code, message, trailers)

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        self.ended(CODE_NAMES.get(code, "UNKNOWN"))
        return self._call.fail(code, message, trailers)

    def pause_reading(self) -> None:
        self._call.pause_reading()

    def resume_reading(self) -> None:
        self._call.resume_reading()

    def on_writable(self, callback: Callable[[], None]) -> None:
        self._call.on_writable(callback)

    def when_written(self, callback: Callable[[], None]) -> None:
        self._call.when_written(callback)

    def ended(self, code: str) -> None:
        """Count it, the first time."""
        account, self._account = self._account, None
        if account is not None:
            account.handled(code, time.monotonic_ns() - self._began_ns)


class CountedHandler:
    """A `transport.call.StreamHandler` whose errors become the status of its stream."""

    def __init__(self, handler: StreamHandler, call: CountedStream) -> None:
        self._handler = handler
        self._call = call

    def on_message(self, body: bytes) -> None:
        try:
            self._handler.on_message(body)
        except Exception as error:  # noqa: BLE001 - the edge: status.of logs what is ours
            self._failed(error)

    def on_half_close(self) -> None:
        try:
            self._handler.on_half_close()
        except Exception as error:  # noqa: BLE001 - likewise
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """End the stream with the error's status; for the handler that is as if the caller had left."""
        self._call.fail(*status.of(error))
        self._handler.on_cancel()

    def on_cancel(self) -> None:
        self._call.ended("CANCELLED")
        self._handler.on_cancel()
