"""Unary ModelInfer: decode, lease, check, submit; and, when the model has run: encode, reply."""

import time
from collections.abc import Callable, Sequence

from forwardpass_server.errors import CallerError
from forwardpass_server.lifecycle.leases import Lease
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.rpc import parameters, status
from forwardpass_server.scheduling.request import Array, Request
from forwardpass_server.tensors.infer_request import InferRequest
from forwardpass_server.tensors.wire import Decoder, Encoder
from forwardpass_server.transport.call import Call


class Infer:
    """The handler of ModelInfer. Loop thread.

    Args:
        models: who leases versions.
        decoder, encoder: with their memories of what recurs.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self, models: ModelManager, decoder: Decoder, encoder: Encoder, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._models = models
        self._decoder = decoder
        self._encoder = encoder
        self._clock_ns = clock_ns

    def __call__(self, call: Call, body: bytes) -> None:
        """Admit one request; its `Answer` replies later. Raises what refuses it, and has then let go of everything."""
        timeline = Timeline(call.received_ns)
        decoded = self._decoder.decode(body)
        timeline.decoded_ns = self._clock_ns()
        lease = self._models.lease(decoded.model_name, decoded.model_version)
        try:
            answer = Answer(call, lease, decoded.id, self._encoder, self._clock_ns)
            lease.version.scheduler.submit(_checked(call, decoded, lease.version, answer, timeline))
        except BaseException:
            lease.release()
            raise


def _checked(
    call: Call, decoded: InferRequest, version: LoadedVersion, answer: "Answer", timeline: Timeline
) -> Request:
    """The request as the scheduler takes it; one that does not fit the model is counted as the model's."""
    try:
        hints = parameters.read(decoded.head)
        checked = version.signature.check(decoded)
    except CallerError as error:
        version.scheduler.statistics.refused(error, call.received_ns)
        raise
    return Request(
        checked.inputs,
        rows=checked.rows,
        nbytes=checked.nbytes,
        outputs=checked.outputs,
        responder=answer,
        timeline=timeline,
        deadline=min(call.deadline, call.received_ns * 1e-9 + hints.timeout_s),
        priority=hints.priority,
    )


class Answer:
    """Answers one call, once, and gives its lease back. A `scheduling.request.Responder`."""

    __slots__ = ("_call", "_clock_ns", "_encoder", "_lease", "_request_id")

    def __init__(
        self, call: Call, lease: Lease[LoadedVersion], request_id: str, encoder: Encoder, clock_ns: Callable[[], int]
    ) -> None:
        self._call = call
        self._lease = lease
        self._request_id = request_id
        self._encoder = encoder
        self._clock_ns = clock_ns

    @property
    def cancelled(self) -> bool:
        return self._call.cancelled

    def succeed(self, outputs: Sequence[Array], request: Request) -> None:
        version = self._lease.version
        specs = version.signature.outputs
        body = self._encoder.encode(
            model_name=version.model,
            model_version=str(version.number),
            request_id=self._request_id,
            outputs=[
                (specs[index].name, specs[index].dtype, array)
                for index, array in zip(request.outputs, outputs, strict=True)
            ],
        )
        request.timeline.encoded_ns = self._clock_ns()
        self._call.reply(body)  # False: the caller has left, and nobody is left to tell
        self._lease.release()

    def fail(self, error: Exception) -> None:
        self._call.fail(*status.of(error))
        self._lease.release()
