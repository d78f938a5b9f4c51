"""The blocking client. What it says is in `conversation`; here it is carried out."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
import numpy.typing as npt

from forwardpass import conversation
from forwardpass.conversation import Answer, Ask, Conversation, Pause
from forwardpass.errors import CallCancelled, ForwardpassError
from forwardpass.results import Health, InferResult, ModelMetadata, ModelStatus, Parameter, ServerMetadata
from forwardpass.session import Headers, Session, Stubs, Terms

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
