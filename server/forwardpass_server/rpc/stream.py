"""ModelStreamInfer: many requests and many answers on one stream.

Each message is a request like any other and takes the same road; what differs is how its answers go out. A request has
a `Turn`: the turns of a stream speak in the order in which they came, so a turn that is answered early holds its
responses until those before it have ended. What goes wrong with a request is said inside the stream, which goes on;
unless the caller asked, by metadata `triton_grpc_error: true`, that it end the stream as its status.

Threads: messages arrive on the loop thread; turns are answered on any. One lock a stream guards the line of turns.
"""

import threading
from collections import deque
from collections.abc import Callable

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.rpc import status
from forwardpass_server.rpc.infer import Infer
from forwardpass_server.rpc.parameters import EMPTY_FINAL_RESPONSE
from forwardpass_server.rpc.status import Status
from forwardpass_server.tensors import scan
from forwardpass_server.tensors.infer_request import InferRequest
from forwardpass_server.transport.call import Metadata, StreamCall

TURNS_MAX = 256
"""Requests of one stream that may be unanswered; at so many, no further message is read until half have ended. What the
caller sends meanwhile is held back by flow control. Bytes are bounded by the models' queues."""

ERROR_ENDS_STREAM = ("triton_grpc_error", "true")
"""The pair of metadata that asks for errors as the status of the stream."""

FINAL = "triton_final_response"
INFER_RESPONSE = 2
"""Field number of `infer_response` in ModelStreamInferResponse."""


class InferStream:
    """One stream. A `transport.call.StreamHandler`.

    Args:
        infer: admits the requests.
        call: the stream.
    """

    def __init__(self, infer: Infer, call: StreamCall) -> None:
        self._infer = infer
        self.call = call
        self._error_ends_stream = ERROR_ENDS_STREAM in call.metadata
        self._lock = threading.Lock()
        self._line: deque[Turn] = deque()
        self._half_closed = False
        self._over = False
        self._paused = False

    @property
    def over(self) -> bool:
        """Nobody listens any more: the caller has left, or the status is sent."""
        return self._over or self.call.cancelled

    def on_message(self, body: bytes) -> None:
        turn = Turn(self)
        with self._lock:
            self._line.append(turn)
            if len(self._line) >= TURNS_MAX:
                self._paused = True
                self.call.pause_reading()
        try:
            request = self._infer.decode(body)
            turn.asks(request)
            self._infer.admit(turn, request)
        except Exception as error:  # noqa: BLE001 - the edge: status.of logs what is ours
            turn.fail(*status.of(error))

    def on_half_close(self) -> None:
        with self._lock:
            self._half_closed = True
        self.advance()

    def on_cancel(self) -> None:
        with self._lock:
            self._over = True
            turns = [*self._line]
            self._line.clear()
        for turn in turns:
            turn.leave()

    def hold(self, turn: "Turn", message: bytes | None, *, error: Status | None = None, ends: bool) -> bool:
        """Let a turn say something, now or when those before it have ended. Any thread.

        Args:
            turn: of this stream.
            message: a ModelStreamInferResponse; None for nothing.
            error: what `message` says, where that is an error.
            ends: it has nothing more to say.

        Returns:
            False when nobody listens.
        """
        with self._lock:
            if message is not None:
                turn.held.append(message)
            turn.error = error
            turn.ended = ends
        self.advance()
        return not self.over

    def advance(self) -> None:
        """Say what may be said. Any thread."""
        left: list[Turn] = []
        with self._lock:
            while self._line and not self._over:
                turn = self._line[0]
                if turn.error is not None and self._error_ends_stream:
                    self._over = True
                    self.call.fail(*turn.error)
                    left = [*self._line]
                    self._line.clear()
                    break
                for message in turn.held:
                    self.call.send(message)
                turn.held.clear()
                if not turn.ended:
                    break
                self._line.popleft()
            if self._half_closed and not self._line and not self._over:
                self._over = True
                self.call.finish()
            resume = self._paused and not self._over and len(self._line) <= TURNS_MAX // 2
            if resume:
                self._paused = False
        for turn in left:
            turn.leave()
        if resume:
            self.call.resume_reading()


class Turn:
    """One request of a stream, seen as a call: an `answer.Caller` that may also answer several times, or not at all.

    `send` any number of times and then `end`; or `reply` once; or `fail`. Any thread, one at a time.
    """

    __slots__ = ("_callbacks", "_request", "_stream", "ended", "error", "held", "received_ns")

    def __init__(self, stream: InferStream) -> None:
        self._stream = stream
        self._request: InferRequest | None = None
        self._callbacks: list[Callable[[], None]] = []
        self.received_ns = stream.call.received_ns
        self.held: list[bytes] = []
        """Messages that wait for the turns before. Under the stream's lock, as are the next two."""
        self.error: Status | None = None
        self.ended = False

    def asks(self, request: InferRequest) -> None:
        """What was decoded, so that errors can say whose they are."""
        self._request = request

    @property
    def metadata(self) -> Metadata:
        return self._stream.call.metadata

    @property
    def deadline(self) -> float:
        return self._stream.call.deadline

    @property
    def cancelled(self) -> bool:
        return self._stream.over

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """As `transport.call.Call.on_cancel`. Loop thread."""
        if self._stream.over:
            callback()
        else:
            self._callbacks.append(callback)

    def leave(self) -> None:
        """The stream is over before this turn."""
        callbacks, self._callbacks = self._callbacks, []
        if not self.ended:
            for callback in callbacks:
                callback()

    def send(self, body: bytes, trailers: Metadata = ()) -> bool:
        """One of several responses; others or `end` follow.

        Args:
            body: a ModelInferResponse.
            trailers: become parameters of the response, since a stream has trailers only at its end.

        Returns:
            False when nobody listens.
        """
        return self._stream.hold(self, _response(body, trailers, final=False), ends=False)

    def end(self) -> bool:
        """No further response. Those who asked for it get an empty one that says so."""
        asked = self._request is not None and self._request.parameters.get(EMPTY_FINAL_RESPONSE) is True
        return self._stream.hold(self, _response(self._head(), (), final=True) if asked else None, ends=True)

    def reply(self, body: bytes, trailers: Metadata = ()) -> bool:
        """The only or last response; otherwise as `send`."""
        return self._stream.hold(self, _response(body, trailers, final=True), ends=True)

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        """An error as the last response. Its code has no place in the protocol's message; trailers are as in `send`."""
        response = _response(self._head(), trailers, final=True)
        error_message = pb.ModelStreamInferResponse(error_message=message or f"status {code}").SerializeToString()
        return self._stream.hold(
            self,
            error_message + response,
            error=Status(code, message, tuple((name, str(text)) for name, text in trailers)),
            ends=True,
        )

    def _head(self) -> bytes:
        """A response without tensors."""
        request = self._request
        if request is None:
            return b""
        return pb.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version, id=request.id
        ).SerializeToString()


def _response(body: bytes, parameters: Metadata, *, final: bool) -> bytes:
    """A ModelStreamInferResponse round a ModelInferResponse, which is given parameters by writing them behind it."""
    given = pb.ModelInferResponse()
    given.parameters[FINAL].bool_param = final
    for name, text in parameters:
        given.parameters[name].string_param = str(text)
    body += given.SerializeToString()
    return scan.prefix(INFER_RESPONSE, len(body)) + body
