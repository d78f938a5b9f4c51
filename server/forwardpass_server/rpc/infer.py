"""ModelInfer: decode, lease, check, submit; and, when the model has run, `answer`: encode, reply."""

import time
from collections.abc import Callable, Mapping
from functools import partial

from forwardpass_server.errors import CallerError, InvalidRequest
from forwardpass_server.lifecycle.leases import Lease
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.observe.tracing import Trace, Tracer
from forwardpass_server.rpc import generate, outputs, parameters, response_cache, status, timing
from forwardpass_server.rpc.answer import Answer, Caller
from forwardpass_server.rpc.parameters import SEQUENCE_ID, SEQUENCE_START, Place
from forwardpass_server.rpc.response_cache import ResponseCache
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.scheduling.lifeline import Lifeline
from forwardpass_server.scheduling.request import Request
from forwardpass_server.scheduling.sequence_scheduler import Withdrawn
from forwardpass_server.tensors.infer_request import InferRequest
from forwardpass_server.tensors.shared_memory import Part, SharedMemory
from forwardpass_server.tensors.wire import Decoder, Encoder
from forwardpass_server.transport.call import Call


class Infer:
    """The handler of ModelInfer. Loop thread.

    Args:
        models: who leases versions.
        decoder, encoder: with their memories of what recurs.
        memory: the regions of shared memory; None where there is none.
        cache: answers of models that want theirs kept; None keeps none.
        tracer: chooses the requests that are traced; None traces none.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        models: ModelManager,
        decoder: Decoder,
        encoder: Encoder,
        memory: SharedMemory | None = None,
        cache: ResponseCache | None = None,
        tracer: Tracer | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._models = models
        self._decoder = decoder
        self._encoder = encoder
        self._memory = memory
        self._cache = cache
        self._tracer = tracer
        self._clock_ns = clock_ns

    def __call__(self, call: Call, body: bytes) -> None:
        """Admit the request of a unary call; its `Answer` replies later. Raises what refuses it."""
        self.admit(call, self.decode(body))

    def decode(self, body: bytes) -> InferRequest:
        """The request in a message. Raises InvalidRequest."""
        return self._decoder.decode(body)

    def admit(self, caller: Caller, decoded: InferRequest, lifeline: Lifeline | None = None) -> None:
        """Let a request wait for its turn. Raises what refuses it, and has then let go of everything.

        Args:
            caller: who waits.
            decoded: the request.
            lifeline: of the stream that it came by; None for a unary one.
        """
        timeline = Timeline(caller.received_ns)
        timeline.decoded_ns = self._clock_ns()
        trace = None if self._tracer is None else self._tracer.begin(caller.metadata, caller.received_ns)
        if trace is None:
            self._admit(caller, decoded, timeline, None, lifeline)
            return
        trace.asks(decoded.model_name, decoded.model_version, decoded.id, timeline)
        try:
            self._admit(caller, decoded, timeline, trace, lifeline)
        except Exception as error:
            trace.end(status.code_of(error))
            raise

    def _admit(
        self, caller: Caller, decoded: InferRequest, timeline: Timeline, trace: Trace | None, lifeline: Lifeline | None
    ) -> None:
        given = decoded.parameters
        lease = self._models.lease(
            decoded.model_name,
            decoded.model_version,
            given.get(SEQUENCE_ID),
            starts=given.get(SEQUENCE_START) is True,
        )
        try:
            scheduler = lease.version.scheduler
            if isinstance(scheduler, GenerationScheduler):
                self._begin_text(caller, decoded, lease, scheduler, timeline, trace)
                return
            timed = timing.ASKED in caller.metadata
            answer = Answer(caller, lease, decoded.id, self._encoder, self._clock_ns, timed=timed)
            answer.trace = trace
            request = self._checked(caller, decoded, lease.version, answer, timeline)
            request.lifeline = lifeline
            if not (lease.version.cached and self._answered_before(lease.version, request, answer)):
                scheduler.submit(request)
        except Withdrawn:  # since it was leased; what serves now takes it, or says why not
            lease.release()
            self._admit(caller, decoded, timeline, trace, lifeline)
        except BaseException:
            lease.release()
            raise

    def _checked(
        self, caller: Caller, decoded: InferRequest, version: LoadedVersion, answer: Answer, timeline: Timeline
    ) -> Request:
        """The request as the scheduler takes it; one that does not fit the model is counted as the model's."""
        try:
            hints = parameters.read(decoded.head)
            if hints.position is not None and version.sequences is None:
                raise InvalidRequest(
                    f"parameter '{SEQUENCE_ID}' is given, but model '{version.model}' keeps no sequences: its "
                    "configuration has no sequence_batching"
                )
            if hints.sources:
                decoded.elsewhere = self._sources(hints.sources)
            checked = version.signature.check(decoded)
            answer.forms = outputs.forms(hints, version, checked.outputs, self._memory)
        except CallerError as error:
            version.scheduler.statistics.refused(error, caller.received_ns)
            raise
        return Request(
            checked.inputs,
            rows=checked.rows,
            nbytes=checked.nbytes,
            outputs=checked.outputs,
            responder=answer,
            timeline=timeline,
            deadline=caller.deadline,
            timeout_s=hints.timeout_s,
            priority=hints.priority,
            position=hints.position,
        )

    def _begin_text(
        self,
        caller: Caller,
        decoded: InferRequest,
        lease: Lease[LoadedVersion],
        scheduler: GenerationScheduler,
        timeline: Timeline,
        trace: Trace | None,
    ) -> None:
        """Let a text begin; its reader gives the lease back."""
        try:
            text = generate.text_of(caller, lease, scheduler.generator, decoded, timeline, trace)
        except CallerError as error:
            scheduler.statistics.refused(error, caller.received_ns)
            raise
        scheduler.begin(text)

    def _answered_before(self, version: LoadedVersion, request: Request, answer: Answer) -> bool:
        """Answer from the cache; or, where that has no answer, let it keep the one that will be given."""
        if self._cache is None or answer.forms.parts:
            return False
        began_ns = self._clock_ns()
        key = response_cache.key(version, request.inputs, request.outputs, answer.forms.classes)
        body = self._cache.get(key)
        looked_ns = self._clock_ns() - began_ns
        if body is None:
            version.scheduler.statistics.missed(looked_ns)
            answer.keep = partial(self._cache.put, key)
            return False
        version.scheduler.statistics.found(request.rows, request.timeline.received_ns, looked_ns)
        answer.repeat(body, request.timeline)
        return True

    def _sources(self, places: Mapping[int, Place]) -> Mapping[int, Part]:
        """Where the inputs are that are not in the message."""
        regions = outputs.regions(self._memory)
        return {
            index: regions.part(place.region, place.offset, place.nbytes, f"input {index}")
            for index, place in places.items()
        }
