"""What the rest of the server sees of a call: bytes in; reply, fail or stream out. Imports no gRPC.

One rule: every unary call is answered exactly once, by `reply` or `fail`, on whichever thread; a second answer raises
`AlreadyAnswered`. A caller that left needs no answer, but answering it is harmless and returns False.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

Metadata = tuple[tuple[str, str | bytes], ...]
"""Pairs of lower-case key and value; a value is `bytes` when its key ends in `-bin`, else printable ASCII text."""

# Initial metadata that asks the transport to compress the answer, where the caller said that it can read it.
GZIP: Metadata = (("grpc-internal-encoding-request", "gzip"),)
DEFLATE: Metadata = (("grpc-internal-encoding-request", "deflate"),)


class AlreadyAnswered(RuntimeError):
    """A second `reply`, `fail` or `finish`: a mistake of the handler, never of the caller."""


class Call(Protocol):
    """One unary call whose message has arrived. Attributes may be read on any thread."""

    on_answer: "OnAnswer | None"
    """Told of the answer just before it leaves, on the thread that gives it; set by the handler, on the loop thread."""

    @property
    def method(self) -> str:
        """The full name, e.g. `/inference.GRPCInferenceService/ModelInfer`."""

    @property
    def metadata(self) -> Metadata:
        """What the caller sent, in its order; keys are lower case and may repeat."""

    @property
    def peer(self) -> str:
        """The caller's address in gRPC's spelling, e.g. `ipv4:127.0.0.1:53412`."""

    @property
    def deadline(self) -> float:
        """`time.monotonic()` seconds after which nobody waits; `math.inf` when the caller set none.

        It is counted from when the call was read, less the longest that it may have lain unread.
        """

    @property
    def received_ns(self) -> int:
        """`time.monotonic_ns()` when the message had arrived."""

    @property
    def cancelled(self) -> bool:
        """The caller left, or its deadline passed."""

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        """The TLS auth context, e.g. `x509_common_name`; empty in plaintext."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop thread if the caller leaves before its answer; at once, here, if it has left.

        May be called on any thread and several times; callbacks run once, in order, and never after the answer.
        """

    def reply(self, body: bytes, trailers: Metadata = (), *, metadata: Metadata = ()) -> bool:
        """Answer OK with `body`. Any thread.

        Args:
            body: the serialised response.
            trailers: trailing metadata.
            metadata: initial metadata; `GZIP` or `DEFLATE` here compresses the answer (else done only where
                `TransportOptions.compression` says so).

        Returns:
            False when the caller had already left.

        Raises:
            AlreadyAnswered: the call has its answer.
            ValueError: metadata that gRPC cannot carry; the call is still unanswered.
        """

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        """Answer with a gRPC status `code` (1 to 16) and `message`, cut to what a caller's header limit takes.

        Otherwise as `reply`.
        """


class StreamCall(Protocol):
    """One call with many messages each way. `send`, `finish` and `fail` may be called on any thread.

    Reading is bounded: the next message is read only after `on_message` has returned, reading is not paused, and the
    backlog is below its high-water mark. What the caller sends meanwhile is held back by HTTP/2 flow control.
    """

    @property
    def method(self) -> str:
        """As `Call.method`."""

    @property
    def metadata(self) -> Metadata:
        """As `Call.metadata`."""

    @property
    def peer(self) -> str:
        """As `Call.peer`."""

    @property
    def deadline(self) -> float:
        """As `Call.deadline`, for the whole stream."""

    @property
    def received_ns(self) -> int:
        """`time.monotonic_ns()` when the latest message had arrived."""

    @property
    def cancelled(self) -> bool:
        """The caller left, or its deadline passed."""

    @property
    def backlog(self) -> int:
        """Messages sent here and not yet taken by flow control."""

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        """As `Call.identity`."""

    def send(self, body: bytes) -> bool:
        """Queue one message; messages leave in the order of their `send`.

        Returns:
            False when the caller has left. A caller too slow for the bounded backlog is failed with RESOURCE_EXHAUSTED,
            and from then on counts as gone.

        Raises:
            AlreadyAnswered: the stream is finished.
        """

    def finish(self, code: int = 0, message: str = "", trailers: Metadata = ()) -> None:
        """End the stream after what was sent. A caller that left needs no status: then this does nothing.

        Raises:
            AlreadyAnswered: the stream is finished already.
            ValueError: metadata that gRPC cannot carry.
        """

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        """`finish` with an error; returns False when the caller has left."""

    def pause_reading(self) -> None:
        """Read no further message until `resume_reading`; at most one more may arrive. Any thread."""

    def resume_reading(self) -> None:
        """Undo `pause_reading`. Any thread."""

    def on_writable(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop thread each time a backlog that was full falls below its low-water mark."""

    def when_written(self, callback: Callable[[], None]) -> None:
        """Run `callback` on the loop thread once, when nothing is left of the backlog; soon, if nothing is.

        Any thread. It does not run any more when the caller leaves or the stream is finished before.
        """


class StreamHandler(Protocol):
    """One object a stream, made by a `StreamFactory`. Its methods run on the loop thread and must not block."""

    def on_message(self, body: bytes) -> None:
        """One message from the caller."""

    def on_half_close(self) -> None:
        """The caller has said all it will say; it still listens, unless `on_cancel` follows at once."""

    def on_cancel(self) -> None:
        """The caller left before the stream was finished; nothing more arrives and nothing more can be sent."""


UnaryHandler = Callable[[Call, bytes], None]
"""Runs on the loop thread and must not block; it, or somebody later, answers the call exactly once."""

StreamFactory = Callable[[StreamCall], StreamHandler]
"""Runs on the loop thread when a stream begins, before its first message."""

OnAnswer = Callable[[Call, int], None]
"""Hears which gRPC code (0 for OK) a call is about to be answered with. Any thread; must not block or raise."""

OnError = Callable[[BaseException], tuple[int, str]]
"""Turns an exception out of a handler into (gRPC code 1 to 16, message); runs on the loop thread."""
