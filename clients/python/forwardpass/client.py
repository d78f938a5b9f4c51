"""The blocking client. What it says is in `conversation`; here it is carried out."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy.typing as npt

from forwardpass import conversation, methods
from forwardpass.conversation import Answer, Ask, Conversation, Pause
from forwardpass.errors import CallCancelled, ForwardpassError
from forwardpass.generation import generate_request
from forwardpass.results import Health, InferResult, ModelMetadata, ModelStatus, Parameter, ServerMetadata
from forwardpass.sequence import ModelSequence
from forwardpass.session import Headers, Session, Stubs, Terms
from forwardpass.stream_reply import ERRORS_END_STREAMS
from forwardpass.text import Text
from forwardpass_proto import grpc_service_pb2 as pb

T = TypeVar("T")


class Client(Session):
    """Calls a model server, and waits for the answer.

    Any number of threads may share one; each client holds one connection to each server (and a second one for
    questions about health, opened by the first such question). Close it, or use it as a context manager. It does not
    survive a fork: make it in the child. Settings: see `Session`.

    Every method takes `deadline_s`, in seconds, for all of its work (None: the client's own; `math.inf`: none), and
    raises the errors of `forwardpass.errors`.
    """

    def _open(self) -> None:
        self._stubs = Stubs(self._channel(about_health=False), self._channel(about_health=True))

    def _channel(self, *, about_health: bool) -> grpc.Channel:
        options = self._channel_options(about_health=about_health)
        if self._credentials is None:
            return grpc.insecure_channel(self._address.target, options, self._compression)
        return grpc.secure_channel(self._address.target, self._credentials, options, self._compression)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        outputs: str | Sequence[str] | None = None,
        *,
        version: str | int = "",
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
        headers: Headers | None = None,
    ) -> InferResult:
        """Predict.

        Args:
            model: its name.
            inputs: arrays, nested lists, numbers or strings by input name. Values are converted to what the model
                takes where nothing but floating-point rounding is lost (`forwardpass.tensors`); the batch dimension
                is the caller's to give.
            outputs: names wanted; None for all.
            version: "" for the server's choice.
            parameters: request parameters of the protocol.
            request_id: comes back as the result's `id`.
            deadline_s: see the class.
            headers: metadata of this call, beside the client's own.

        Returns:
            Arrays by output name.

        Raises:
            InvalidRequest: not what the model takes.
            ForwardpassError: any other of `forwardpass.errors`.
        """
        return self._run(
            conversation.infer(
                self._known,
                model,
                inputs,
                version=str(version),
                outputs=outputs,
                parameters=parameters,
                request_id=request_id,
                max_message_bytes=self._max_message_bytes,
            ),
            deadline_s,
            headers,
        )

    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        version: str | int = "",
        request_id: str = "",
        deadline_s: float | None = None,
        headers: Headers | None = None,
    ) -> Text:
        """Let a model go on with a text, and read it as it is written: `for piece in client.generate(…)`.

        Args:
            model: its name; one that generates.
            prompt: what the text goes on from; it is not repeated.
            max_tokens: where the text ends at the latest; None for the server's default.
            temperature: 0 takes the likeliest token every time; above 1 is more daring; None for 1.
            top_k: choose among so many of the likeliest tokens; None for all.
            top_p: choose among the likeliest tokens that together have this probability; None for all.
            seed: the same request with the same seed gets the same text; None for a new one, told at the end.
            stop: strings before which the text ends, at most 8.
            version: "" for the server's choice.
            request_id: comes back with every piece.
            deadline_s: for the whole text.
            headers: metadata of this call, beside the client's own.

        Returns:
            An iterator of pieces, which knows at its end why the text ended, with which seed, and the whole of it.

        Raises:
            InvalidRequest: a setting out of range, or a prompt that the model cannot read. Like every error of the
                server, it is raised where the pieces are read.
            ForwardpassError: any other of `forwardpass.errors`.
        """
        request = generate_request(
            model,
            prompt,
            version=str(version),
            request_id=request_id,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        ask = Ask(methods.STREAM_INFER, request, conversation.label(model, str(version)))
        terms = self._begin(deadline_s, headers)
        return Text(self._stream(iter([request]), ask, terms), lambda failed: self._stream_error(failed, ask, terms))

    def sequence(
        self,
        model: str,
        sequence_id: int | str | None = None,
        *,
        version: str | int = "",
        deadline_s: float | None = None,
        headers: Headers | None = None,
    ) -> ModelSequence:
        """Begin a sequence with a model that keeps state: `with client.sequence("counter") as sequence`.

        Args:
            model: its name.
            sequence_id: under which the server keeps the state; None for a random one.
            version: "" for the server's choice.
            deadline_s: for the whole sequence; None: none, other than in calls.
            headers: metadata of its stream, beside the client's own.
        """
        ask = Ask(methods.STREAM_INFER, pb.ModelInferRequest(), conversation.label(model, str(version)))
        terms = self._begin(math.inf if deadline_s is None else deadline_s, headers)

        def build(inputs: Mapping[str, npt.ArrayLike], parameters: Mapping[str, Parameter]) -> pb.ModelInferRequest:
            step = conversation.sequence_step(
                self._known,
                model,
                inputs,
                parameters,
                version=str(version),
                max_message_bytes=self._max_message_bytes,
            )
            return self._run(step, None)

        return ModelSequence(
            sequence_id,
            build,
            lambda requests: self._stream(requests, ask, terms),
            lambda failed: self._stream_error(failed, ask, terms),
        )

    def metadata(self, model: str, version: str | int = "", *, deadline_s: float | None = None) -> ModelMetadata:
        """What a model takes and gives, asked anew."""
        return self._run(conversation.metadata(self._known, model, str(version)), deadline_s)

    def models(self, *, only_ready: bool = False, deadline_s: float | None = None) -> tuple[ModelStatus, ...]:
        """Every version in the server's repository, with its state.

        Raises:
            Unsupported: the server does not list its models (RepositoryIndex is an extension of the protocol).
        """
        return self._run(conversation.models(only_ready), deadline_s)

    def model_ready(self, model: str, version: str | int = "", *, deadline_s: float | None = None) -> bool:
        """Whether a model answers.

        Raises:
            ModelNotFound: the server does not know it.
        """
        return self._run(conversation.model_ready(model, str(version)), deadline_s)

    def ready(self, *, deadline_s: float | None = None) -> bool:
        """Whether the server takes calls."""
        return self._run(conversation.ready(), deadline_s)

    def live(self, *, deadline_s: float | None = None) -> bool:
        """Whether the server lives."""
        return self._run(conversation.live(), deadline_s)

    def health(self, service: str = "", *, deadline_s: float | None = None) -> Health:
        """What grpc.health.v1 says of the server, or of one service."""
        return self._run(conversation.health(service), deadline_s)

    def server(self, *, deadline_s: float | None = None) -> ServerMetadata:
        """Name, version and protocol extensions of the server."""
        return self._run(conversation.server_metadata(), deadline_s)

    def wait_until_ready(self, model: str = "", version: str | int = "", *, deadline_s: float | None = None) -> None:
        """Wait for the server, or for one model, to take calls; a server that is not there yet is waited for too.

        Raises:
            DeadlineExceeded: not in time, with the last reason seen.
        """
        self._run(conversation.wait_until_ready(model, str(version)), deadline_s)

    def close(self) -> None:
        """Cancel what is in flight and disconnect. A second time does nothing."""
        self._closed = True
        for channel in self._stubs.channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, talk: Conversation[T], deadline_s: float | None, headers: Headers | None = None) -> T:
        terms = self._begin(deadline_s, headers)
        try:
            step = next(talk)
            while True:
                try:
                    outcome = self._carry_out(step, terms)
                except ForwardpassError as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        except ForwardpassError as error:
            error.address = error.address or self.url
            raise

    def _carry_out(self, step: Ask | Pause, terms: Terms) -> Answer | None:
        if isinstance(step, Pause):
            time.sleep(terms.pause_s(step))
            return None
        stub = self._stubs.of(step)
        try:
            reply, call = stub.with_call(step.request, timeout=terms.timeout_s(step), metadata=terms.metadata)
        except grpc.RpcError as failed:
            raise self._error(failed, step, terms) from failed
        except ValueError as closed:
            if not self._closed:
                raise
            raise CallCancelled("the client was closed", model=step.model, address=self.url) from closed
        return Answer(reply, call.trailing_metadata())

    def _stream(self, requests: Iterator[pb.ModelInferRequest], ask: Ask, terms: Terms) -> Any:
        """Open a stream; its errors come when it is read."""
        metadata = (*terms.metadata, ERRORS_END_STREAMS)
        return self._stubs.of(ask)(requests, timeout=terms.timeout_s(ask), metadata=metadata)
