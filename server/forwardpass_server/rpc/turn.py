"""One request of a stream, seen as a call that may be answered several times.

Turns speak in the order of their requests, each when those before it have ended; but one that steps out of the line
speaks at once, and keeps nobody waiting: a text that takes a minute, between requests that take a millisecond.
"""

from collections.abc import Callable
from typing import Protocol

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.rpc.parameters import EMPTY_FINAL_RESPONSE
from forwardpass_server.rpc.status import Status
from forwardpass_server.tensors import scan
from forwardpass_server.tensors.infer_request import InferRequest
from forwardpass_server.transport.call import Metadata, StreamCall

FINAL = "triton_final_response"
INFER_RESPONSE = 2
"""Field number of `infer_response` in ModelStreamInferResponse."""
AHEAD = 2
"""Messages that may be under way to the caller of a turn: the one that is being written, and the next."""


class TurnTaker(Protocol):
    """The stream that a turn belongs to; a `stream.InferStream`."""

    call: StreamCall

    @property
    def over(self) -> bool: ...
    @property
    def open_turns(self) -> int: ...
    def step_out(self, turn: "Turn") -> None: ...
    def hold(self, turn: "Turn", message: bytes | None, *, error: Status | None = None, ends: bool) -> bool: ...


class Turn:
    """One request of a stream, seen as a call: an `answer.Caller` that may also answer several times, or not at all.

    `send` any number of times and then `end`; or `reply` once; or `fail`. Any thread, one at a time.
    """

    __slots__ = ("_callbacks", "_request", "_stream", "ended", "error", "held", "received_ns")

    def __init__(self, stream: TurnTaker) -> None:
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

    @property
    def behind(self) -> bool:
        """Its caller has not yet taken what was sent: of each open turn of the stream `AHEAD` messages, or more."""
        return self._stream.call.backlog >= AHEAD * self._stream.open_turns

    def when_taken(self, callback: Callable[[], None]) -> None:
        """Run `callback` once, on the loop thread, when everything was taken; not if the stream ends before. Any
        thread."""
        self._stream.call.when_written(callback)

    def step_out(self) -> None:
        """Speak out of the line from now on. Loop thread, before anything was said."""
        self._stream.step_out(self)

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


def _flag(final: bool) -> bytes:
    """The fields of a ModelInferResponse that say whether it is the last."""
    given = pb.ModelInferResponse()
    given.parameters[FINAL].bool_param = final
    return given.SerializeToString()


_FLAGS = {final: _flag(final) for final in (False, True)}


def _response(body: bytes, parameters: Metadata, *, final: bool) -> bytes:
    """A ModelStreamInferResponse round a ModelInferResponse, which is given parameters by writing them behind it."""
    body += _FLAGS[final]
    if parameters:
        given = pb.ModelInferResponse()
        for name, text in parameters:
            given.parameters[name].string_param = str(text)
        body += given.SerializeToString()
    return scan.prefix(INFER_RESPONSE, len(body)) + body
