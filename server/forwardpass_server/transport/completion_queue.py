"""The gRPC server: binds a port, admits or refuses each call itself, and hands the admitted ones to their handlers.

The stock servers leave a call that finds no handler waiting inside the core, where a burst or a shutdown turns it into
CANCELLED. Here enough `request_call`s are posted at all times: every call reaches `_on_call` and gets a status from us.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from forwardpass_server.errors import StartFailed
from forwardpass_server.transport import core, sockets
from forwardpass_server.transport.answer import shown, status_message
from forwardpass_server.transport.call import Metadata, OnError, StreamFactory, UnaryHandler
from forwardpass_server.transport.loop import Loop
from forwardpass_server.transport.options import TransportOptions, channel_args
from forwardpass_server.transport.stats import Stats
from forwardpass_server.transport.stop import STOPPING, UNAVAILABLE, Stop, StopReport
from forwardpass_server.transport.stream import BidiCall
from forwardpass_server.transport.unary import UNIMPLEMENTED, UnaryCall

RESOURCE_EXHAUSTED = 8
UNREAD_SHARE = 0.25
"""Of the time that a call has left, how much of it may have passed before it was read. A deadline counts from when the
call is read, so a server that reads too slowly works for callers who have gone: a CNN offered twice what it can do
answered 7 % of its best in time. Refusing here, before the message is read, leaves 52 % (1.5 times: 12 and 74 %; 1/10
and 1/30 did no better)."""
RETRY_WHEN_FULL: Metadata = (("grpc-retry-pushback-ms", "50"),)

logger = logging.getLogger(__name__)

Refusal = tuple[int, str, Metadata]
Unknown = Callable[[str], tuple[int, str]]


def unknown_method(method: str) -> tuple[int, str]:
    """The answer to a method that nobody registered: UNIMPLEMENTED, with its name escaped and cut."""
    return UNIMPLEMENTED, f"this server has no method {shown(method)}"


class CompletionQueueServer:
    """One port, one loop. `bind`, then `run` on the thread that becomes the loop thread, then `stop` from another.

    Args:
        options: where to listen, and limits.
        unary: handlers by full method name.
        streams: factories of stream handlers by full method name.
        on_error: the status for an exception out of a handler.
        unknown: the status for a method in neither mapping.
    """

    def __init__(
        self,
        options: TransportOptions,
        unary: Mapping[str, UnaryHandler],
        streams: Mapping[str, StreamFactory],
        *,
        on_error: OnError,
        unknown: Unknown = unknown_method,
    ) -> None:
        self.options = options
        self._loop = Loop()
        self._unary = {method.encode(): handler for method, handler in unary.items()}
        self._streams = {method.encode(): factory for method, factory in streams.items()}
        self._on_error = on_error
        self._unknown = unknown
        self._refusal: Refusal | None = None
        self._raw: core.RawServer | None = None
        self._post: Callable[[], object] = _not_running
        self._shut_down = False
        self._running = False
        self._ended = threading.Event()
        self._stop: Stop | None = None
        self.port = 0
        """The bound port; 0 before `bind`."""
        self.listeners: frozenset[int] = frozenset()
        """Inodes of the listening sockets."""
        self.on_refusing: Callable[[], None] | None = None
        """Runs on the loop thread when a stop begins to refuse: the moment to finish streams that would never end."""

    @property
    def stats(self) -> Stats:
        """Counts since the start; any thread."""
        return self._loop.stats

    @property
    def on_idle(self) -> Callable[[], bool] | None:
        """Runs on the loop thread when every ready event has been handled, before it blocks.

        It returns whether it did work: then the loop looks for events again without blocking. It must not block.
        """
        return self._loop.on_idle

    @on_idle.setter
    def on_idle(self, work: Callable[[], bool] | None) -> None:
        self._loop.on_idle = work

    def bind(self) -> int:
        """Bind the port, exclusively unless `reuse_port`; connections wait until `run`. Once.

        Returns:
            The real port.

        Raises:
            StartFailed: the port is in use, or the address cannot be bound; names host and port.
        """
        options = self.options
        # The core is content with one free address of a name that has several, and does not say why it failed.
        why = sockets.why_not_bindable(options.host, options.port, reuse_port=options.reuse_port)
        before = sockets.listening()
        raw = core.server(channel_args(options), self._loop.queue)
        port = 0 if why else core.listen(raw, options.address, options.credentials)
        if not port:
            raise StartFailed(
                f"cannot listen on {options.address}: {why or 'the core refused the address or the TLS credentials'}; "
                "choose another --grpc-port or --host, or stop what is listening there"
            )
        after = sockets.listening()
        self.listeners = frozenset(inode for inode, at in after.items() if at == port and inode not in before)
        self._raw = raw
        self.port = port
        return port

    def run(self) -> None:
        """Serve until stopped. The calling thread is the loop thread from now on.

        Raises:
            RuntimeError: not bound, or run before.
        """
        with self._loop.lock:
            if self._raw is None or self._running or self._ended.is_set():
                raise RuntimeError("bind() comes before run(), and run() comes once")
            self._running = True
        raw = self._raw
        self._post = partial(raw.request_call, self._loop.queue, self._loop.queue, self._on_call)
        raw.start()
        for _ in range(self.options.posted_calls):
            self._post()
        try:
            self._loop.run()
        except BaseException:
            self._abandon()
            raise
        finally:
            self._ended.set()
            raw.destroy()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` on the loop thread, waking it if it sleeps. Any thread.

        Raises:
            RuntimeError: the loop has ended.
        """
        self._loop.call_soon(function)

    def refuse_new(self, code: int, message: str) -> None:
        """From now on answer every new call with this status. Any thread."""
        self._refusal = (code, message, ())

    def stop(self, *, drain_s: float, grace_s: float) -> StopReport:
        """Stop without losing a call: see `stop.Stop`. Any thread but the loop's; blocks until the loop has ended.

        Args:
            drain_s: how long to go on serving with the port closed to new connections, while clients leave.
            grace_s: how long admitted calls may take after that, before they are cancelled.

        A second `stop`, from another thread, hurries the first: it ends the drain at once, and the wait for admitted
        calls after its own `grace_s`.
        """
        if self._loop.is_this_thread():
            raise RuntimeError("stop() on the loop thread would wait for itself; call it from another thread")
        if not self.port:
            raise RuntimeError("stop() before bind(): there is nothing to stop")
        with self._loop.lock:
            first = self._stop is None
            if self._stop is None:
                self._stop = Stop(self._loop, self, self._ended)
            stop = self._stop
            if not self._running:  # bound only: there is no loop to stop, and none will start
                self._ended.set()
                self._loop.close()
                self._raw = None
        if not first:
            return stop.hurry(grace_s)
        return stop.run(drain_s, grace_s)

    def _abandon(self) -> None:
        """Something that is no `Exception` came out of a handler: cancel everything, so that the process can end."""
        if not self._shut_down:
            self.refuse_new(UNAVAILABLE, STOPPING)
            self.shut_down(self._loop.close)
            self.cancel_all()
        self._loop.run()

    # What `Stop` needs of us, on the loop thread.

    def end_streams(self, code: int, message: str) -> None:
        """Ask every stream to end with what it has read so far."""
        if self.on_refusing is not None:
            self.on_refusing()
        for stream in tuple(self._loop.streams):
            stream.end_reading(code, message)

    def abandon_streams(self, code: int, message: str) -> None:
        """End every stream with this status, whatever its handler still has to say."""
        for stream in tuple(self._loop.streams):
            stream.abandon(code, message)

    def shut_down(self, then: Callable[[], None]) -> None:
        """Shut the core's server down; `then` runs on the loop thread when no connection is left."""
        assert self._raw is not None
        self._shut_down = True
        self._raw.shutdown(self._loop.queue, lambda _event: then())

    def cancel_all(self) -> None:
        """Cancel what is still in flight; only after `shut_down`."""
        assert self._raw is not None
        self._raw.cancel_all_calls()

    # The calls.

    def _on_call(self, event: core.CallEvent) -> None:
        if not event.success:
            return  # a posted request that came back at shutdown
        loop = self._loop
        loop.bell.latest_call = event.call
        if not self._shut_down:
            self._post()
        stats = loop.stats
        if self._refusal is not None:
            self._refuse(event.call, self._refusal)
        elif loop.behind_s and loop.behind_s > UNREAD_SHARE * (event.call_details.deadline - time.time()):
            self._refuse(event.call, _unread(loop.behind_s))
        elif stats.calls_started - stats.calls_completed >= self.options.max_calls_in_flight:
            self._refuse(
                event.call,
                (
                    RESOURCE_EXHAUSTED,
                    f"{self.options.max_calls_in_flight} calls are in flight, which is the limit; retry later",
                    RETRY_WHEN_FULL,
                ),
            )
        else:
            method = event.call_details.method
            handler = self._unary.get(method)
            if handler is not None:
                UnaryCall(loop, event, handler, self._on_error)
                return
            factory = self._streams.get(method)
            if factory is not None:
                BidiCall(loop, event, factory, self._on_error, self.options.max_stream_backlog_bytes)
                return
            self._refuse(event.call, (*self._unknown(method.decode("ascii", "backslashreplace")), ()))

    def _refuse(self, call: core.RawCall, refusal: Refusal) -> None:
        code, message, trailers = refusal
        self._loop.stats.calls_refused += 1
        error = call.start_server_batch(
            (
                core.SendInitialMetadata((), core.NO_FLAGS),
                core.SendStatus(trailers, code, status_message(message), core.NO_FLAGS),
                core.ReceiveClose(core.NO_FLAGS),
            ),
            _refused,
        )
        if error != core.OK:
            logger.error("the core refused to refuse a call (error %d)", error)


def _unread(behind_s: float) -> Refusal:
    behind_ms = round(behind_s * 1e3)
    return (
        RESOURCE_EXHAUSTED,
        f"the server reads calls up to {behind_ms} ms late, too much for this one's deadline; retry later",
        (("grpc-retry-pushback-ms", str(behind_ms)),),
    )


def _not_running() -> None:
    raise RuntimeError("calls are posted by run()")


def _refused(_event: core.BatchEvent) -> None:
    """A refusal has been taken by the core; nothing was admitted, so nothing is released."""
