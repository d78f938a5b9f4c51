"""What the client says and how it goes on from each answer: the meaning shared by `Client` and `AsyncClient`. Pure.

A conversation is a generator: it yields an `Ask` or a `Pause`, is sent the `Answer` (or has the call's error thrown
into it), and returns its result. The two clients only carry it out, one by blocking and one by awaiting, under one
deadline for the whole conversation.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt
from google.protobuf.message import Message

from forwardpass import messages, methods
from forwardpass.errors import DeadlineExceeded, ForwardpassError, InvalidRequest, ModelNotFound, TryAgain
from forwardpass.results import Health, InferResult, ModelMetadata, ModelStatus, Parameter, ServerMetadata
from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

T = TypeVar("T")

POLL_INTERVAL_S = 0.1
"""Between two looks of `wait_until_ready`."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Call an rpc."""

    method: methods.Method[Any, Any]
    request: Message
    model: str = ""
    """For the text of errors: the model, with its version where one was named."""
    about_health: bool = False
    """A question for servers that are not SERVING too: it goes round the health checks, and is asked once."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, or until the deadline if that is nearer."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What an `Ask` brought."""

    reply: Any
    trailers: tuple[tuple[str, str | bytes], ...]


Conversation = Generator[Ask | Pause, Any, T]
Signatures = dict[tuple[str, str], ModelMetadata]
"""Metadata by model and version asked for, kept by the client."""


def label(model: str, version: str) -> str:
    """How errors name a model: "mnist_cnn", or "mnist_cnn/3"."""
    return f"{model}/{version}" if version else model


def infer(
    known: Signatures,
    model: str,
    inputs: Mapping[str, npt.ArrayLike],
    *,
    version: str,
    outputs: str | Sequence[str] | None,
    parameters: Mapping[str, Parameter] | None,
    request_id: str,
    max_message_bytes: int,
) -> Conversation[InferResult]:
    """Convert the inputs as the model's metadata says, and predict.

    The metadata is asked for once. When a request built from remembered metadata is refused, the model may have been
    swapped for one with other datatypes: look again, and if they did change, try once more.
    """
    wanted = [outputs] if isinstance(outputs, str) else list(outputs or ())
    signature = known.get((model, version))
    fresh = signature is None
    try:
        if signature is None:
            signature = yield from metadata(known, model, version)
        while True:
            try:
                request = messages.infer_request(
                    signature,
                    inputs,
                    model=model,
                    version=version,
                    outputs=wanted,
                    parameters=parameters or {},
                    request_id=request_id,
                    max_message_bytes=max_message_bytes,
                )
                answer = yield Ask(methods.INFER, request, label(model, version))
                return messages.infer_result(answer.reply, answer.trailers)
            except InvalidRequest:
                if fresh:
                    raise
                renewed = yield from metadata(known, model, version)
                if renewed.inputs == signature.inputs:
                    raise
                signature, fresh = renewed, True
    except ForwardpassError as error:
        error.model = error.model or label(model, version)  # found here, before sending or in the reply
        raise


def sequence_step(
    known: Signatures,
    model: str,
    inputs: Mapping[str, npt.ArrayLike],
    parameters: Mapping[str, Parameter],
    *,
    version: str,
    max_message_bytes: int,
) -> Conversation[pb.ModelInferRequest]:
    """Convert the inputs of one request of a sequence as the model's metadata says; whoever has the stream sends it."""
    try:
        signature = known.get((model, version)) or (yield from metadata(known, model, version))
        return messages.infer_request(
            signature,
            inputs,
            model=model,
            version=version,
            outputs=(),
            parameters=parameters,
            request_id="",
            max_message_bytes=max_message_bytes,
        )
    except ForwardpassError as error:
        error.model = error.model or label(model, version)
        raise


def metadata(known: Signatures, model: str, version: str) -> Conversation[ModelMetadata]:
    """Ask for a model's metadata, and remember it."""
    request = pb.ModelMetadataRequest(name=model, version=version)
    answer = yield Ask(methods.METADATA, request, label(model, version))
    known[model, version] = messages.model_metadata(answer.reply)
    return known[model, version]


def model_ready(model: str, version: str, about_health: bool = True) -> Conversation[bool]:
    """Ask whether a model answers."""
    request = pb.ModelReadyRequest(name=model, version=version)
    answer = yield Ask(methods.MODEL_READY, request, label(model, version), about_health)
    return bool(answer.reply.ready)


def models(only_ready: bool) -> Conversation[tuple[ModelStatus, ...]]:
    """Ask for the repository's index."""
    answer = yield Ask(methods.INDEX, pb.RepositoryIndexRequest(ready=only_ready), about_health=True)
    return messages.index(answer.reply)


def server_metadata() -> Conversation[ServerMetadata]:
    """Ask who answers."""
    answer = yield Ask(methods.SERVER_METADATA, pb.ServerMetadataRequest(), about_health=True)
    return messages.server_metadata(answer.reply)


def live() -> Conversation[bool]:
    """Ask whether the server lives."""
    answer = yield Ask(methods.LIVE, pb.ServerLiveRequest(), about_health=True)
    return bool(answer.reply.live)


def ready(about_health: bool = True) -> Conversation[bool]:
    """Ask whether the server takes calls."""
    answer = yield Ask(methods.READY, pb.ServerReadyRequest(), about_health=about_health)
    return bool(answer.reply.ready)


def health(service: str) -> Conversation[Health]:
    """Ask grpc.health.v1; a service that it does not know is SERVICE_UNKNOWN."""
    try:
        answer = yield Ask(methods.HEALTH, health_pb2.HealthCheckRequest(service=service), about_health=True)
    except ModelNotFound:
        return Health.SERVICE_UNKNOWN
    return messages.health(answer.reply)


def wait_until_ready(model: str, version: str) -> Conversation[None]:
    """Ask until the server, or the model, says yes; the deadline ends it, with the last reason.

    A yes about health is confirmed on the connection that serves, so that the next call finds it ready too.
    """
    about_health = True
    reason = "no answer yet"
    while True:
        try:
            asking = model_ready(model, version, about_health) if model else ready(about_health)
            if (yield from asking):
                if not about_health:
                    return
                about_health = False
                continue
            reason = "it answers that it is not"
        except DeadlineExceeded as late:
            raise DeadlineExceeded(
                f"not ready in the time given; last seen: {reason}",
                code=late.code,
                model=late.model,
                address=late.address,
            ) from late
        except (TryAgain, ModelNotFound) as not_yet:
            reason = not_yet.reason
        yield Pause(POLL_INTERVAL_S)
