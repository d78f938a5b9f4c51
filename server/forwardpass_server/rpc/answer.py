"""The answer to one inference request: encoded where its model ran, given once, and its lease given back."""

from collections.abc import Callable, Sequence
from typing import Protocol

from forwardpass_server.lifecycle.leases import Lease
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.observe.tracing import Trace
from forwardpass_server.rpc import outputs as forms
from forwardpass_server.rpc import status, timing
from forwardpass_server.rpc.status import Code
from forwardpass_server.scheduling.request import Array, Request
from forwardpass_server.tensors.wire import Encoder, with_id
from forwardpass_server.transport.call import Metadata


class Caller(Protocol):
    """Who waits for one answer: a unary `transport.call.Call`, or a `stream.Turn`. One of `reply` and `fail`, once."""

    @property
    def metadata(self) -> Metadata: ...
    @property
    def deadline(self) -> float: ...
    @property
    def received_ns(self) -> int: ...
    @property
    def cancelled(self) -> bool: ...
    def on_cancel(self, callback: Callable[[], None]) -> None: ...
    def reply(self, body: bytes, trailers: Metadata = ()) -> bool: ...
    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool: ...


class Answer:
    """Answers one caller and gives its lease back. A `scheduling.request.Responder`.

    Args:
        caller: who waits.
        lease: of the version that answers.
        request_id: the caller's name for its request.
        encoder: of replies.
        clock_ns: the monotonic clock.
        timed: the caller wants to know where its time went.
    """

    __slots__ = ("_caller", "_clock_ns", "_encoder", "_lease", "_request_id", "_timed", "forms", "keep", "trace")

    def __init__(
        self,
        caller: Caller,
        lease: Lease[LoadedVersion],
        request_id: str,
        encoder: Encoder,
        clock_ns: Callable[[], int],
        *,
        timed: bool = False,
    ) -> None:
        self._caller = caller
        self._lease = lease
        self._request_id = request_id
        self._encoder = encoder
        self._clock_ns = clock_ns
        self._timed = timed
        self.forms = forms.AS_THEY_ARE
        """How the outputs are wanted; set before the request is submitted."""
        self.keep: Callable[[bytes], None] | None = None
        """Takes the encoded answer, without the caller's id, for the response cache."""
        self.trace: Trace | None = None
        """Hears of the end, where the request is traced."""

    @property
    def cancelled(self) -> bool:
        return self._caller.cancelled

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._caller.on_cancel(callback)

    def succeed(self, outputs: Sequence[Array], request: Request) -> None:
        version = self._lease.version
        if self.forms is forms.AS_THEY_ARE and self.keep is None:
            self._reply(version.replies.encode(self._request_id, request.outputs, outputs), request.timeline)
            return
        specs = version.signature.outputs
        named = [
            (specs[index].name, specs[index].dtype, array)
            for index, array in zip(request.outputs, outputs, strict=True)
        ]
        request_id = self._request_id if self.keep is None else ""
        body = forms.encode(self._encoder, version, request_id, named, self.forms)
        if self.keep is not None:
            self.keep(body)
            body += with_id(self._request_id)
        self._reply(body, request.timeline)

    def repeat(self, body: bytes, timeline: Timeline) -> None:
        """Answer with what `keep` took. Nobody submits the request then."""
        self._reply(body + with_id(self._request_id), timeline)

    def _reply(self, body: bytes, timeline: Timeline) -> None:
        timeline.encoded_ns = self._clock_ns()
        if self.trace is not None:
            self.trace.end(Code.OK)
        # False would say that the caller has left, and that nobody is left to tell.
        self._caller.reply(body, timing.trailer(timeline, self._lease.version) if self._timed else ())
        self._lease.release()

    def fail(self, error: Exception) -> None:
        found = status.of(error)
        if self.trace is not None:
            self.trace.end(found.code)
        self._caller.fail(*found)
        self._lease.release()
