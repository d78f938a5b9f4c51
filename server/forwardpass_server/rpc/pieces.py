"""How a text is said: in pieces on a stream, whole to a unary call.

On a stream the tokens of one run become one response, none of them empty; the last one may be, and says how many tokens
there were, why they ended, and the seed. A unary call is answered with the whole text and the same parameters.
"""

from collections.abc import Callable, Sequence

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle.leases import Lease
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.observe.tracing import Trace
from forwardpass_server.rpc import status, timing
from forwardpass_server.rpc.answer import Caller
from forwardpass_server.rpc.status import Code
from forwardpass_server.rpc.turn import Turn
from forwardpass_server.tensors import scan
from forwardpass_server.tensors.generator import ON_WIRE
from forwardpass_server.tensors.stop_strings import StopStrings
from forwardpass_server.tensors.vocabulary import Vocabulary
from forwardpass_server.tensors.wire import RAW_OUTPUT
from forwardpass_server.transport.call import Metadata

(TEXT,) = ON_WIRE.outputs


class Words:
    """What of one text has been written and not yet been sent, as text; and the responses that carry it.

    Args:
        version: that writes it.
        request_id: the caller's name for its request.
        seed: to be told at the end.
        vocabulary: of the tokens.
        stops: where the text is to end.
    """

    __slots__ = ("_head", "_seed", "_stops", "_vocabulary", "reason", "text", "tokens")

    def __init__(
        self, version: LoadedVersion, request_id: str, seed: int, vocabulary: Vocabulary, stops: StopStrings
    ) -> None:
        head = pb.ModelInferResponse(model_name=version.model, model_version=str(version.number), id=request_id)
        head.outputs.add(name=TEXT.name, datatype=TEXT.dtype.wire, shape=[1])
        self._head = head.SerializeToString()
        self._seed = seed
        self._vocabulary = vocabulary
        self._stops = stops
        self.text = ""
        """What is to be said next."""
        self.tokens = 0
        """Written so far, up to the end of the string that stopped them."""
        self.reason = ""
        """Why the text is over; empty while it goes on."""

    def take(self, tokens: Sequence[int], *, last: bool) -> int | None:
        """See `scheduling.text.Reader.take`."""
        text, read = self._stops.feed(self._vocabulary.write(tokens))
        self.text += text
        if read is not None:
            tokens = self._vocabulary.covering(tokens, read)
            self.reason = "stop"
        elif last:
            self.text += self._stops.rest()
            self.reason = "length"
        self.tokens += len(tokens)
        return None if read is None else len(tokens)

    def response(self) -> bytes:
        """A ModelInferResponse with the text so far, which then begins anew; complete, if it is the last."""
        encoded = self.text.encode()
        self.text = ""
        raw = len(encoded).to_bytes(4, "little") + encoded
        body = self._head + scan.prefix(RAW_OUTPUT, len(raw)) + raw
        if not self.reason:
            return body
        about = pb.ModelInferResponse()
        about.parameters["generated_tokens"].int64_param = self.tokens
        about.parameters["finish_reason"].string_param = self.reason
        about.parameters["seed"].int64_param = self._seed
        return body + about.SerializeToString()


class Whole:
    """Keeps a text until it is over, and then answers a unary call. A `scheduling.text.Reader`.

    Args:
        caller: who waits.
        lease: of the version that writes; given back with the answer.
        words: of the text.
        timeline: its stamps.
        trace: hears of the end, where the request is traced.
    """

    def __init__(
        self, caller: Caller, lease: Lease[LoadedVersion], words: Words, timeline: Timeline, trace: Trace | None = None
    ) -> None:
        self._caller = caller
        self._lease = lease
        self._words = words
        self._timeline = timeline
        self._trace = trace
        self.take = words.take

    @property
    def cancelled(self) -> bool:
        return self._caller.cancelled

    @property
    def behind(self) -> bool:
        return False  # nothing is sent before the end

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._caller.on_cancel(callback)

    def when_taken(self, callback: Callable[[], None]) -> None:
        callback()

    def say(self) -> None:
        if self._words.reason:
            self._timeline.encoded_ns = self._timeline.run_end_ns
            if self._trace is not None:
                self._trace.end(Code.OK)
            self._caller.reply(self._words.response(), self._timing())
            self._lease.release()

    def fail(self, error: Exception) -> None:
        found = status.of(error)
        if self._trace is not None:
            self._trace.end(found.code)
        try:
            self._caller.fail(*found)
        finally:
            self._lease.release()

    def _timing(self) -> Metadata:
        asked = timing.ASKED in self._caller.metadata
        return timing.trailer(self._timeline, self._lease.version) if asked else ()


class Pieces(Whole):
    """Says a text on a stream as it is written, out of the line of its other requests."""

    def __init__(
        self, caller: Turn, lease: Lease[LoadedVersion], words: Words, timeline: Timeline, trace: Trace | None = None
    ) -> None:
        super().__init__(caller, lease, words, timeline, trace)
        self._turn = caller
        caller.step_out()

    @property
    def behind(self) -> bool:
        return self._turn.behind

    def when_taken(self, callback: Callable[[], None]) -> None:
        self._turn.when_taken(callback)

    def say(self) -> None:
        if self._words.text and not self._words.reason:
            self._turn.send(self._words.response())
        else:
            super().say()
