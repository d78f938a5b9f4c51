"""The asyncio client: `Client`, with `await`. What it says is in `conversation`; here it is carried out."""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
import numpy.typing as npt

from forwardpass import conversation, methods
from forwardpass.aio_sequence import AsyncModelSequence
from forwardpass.aio_text import AsyncText
from forwardpass.conversation import Answer, Ask, Conversation, Pause
from forwardpass.errors import CallCancelled, ClientMisused, ForwardpassError
from forwardpass.generation import generate_request
from forwardpass.results import Health, InferResult, ModelMetadata, ModelStatus, Parameter, ServerMetadata
from forwardpass.session import Headers, Session, Stubs, Terms
from forwardpass.stream_reply import ERRORS_END_STREAMS
from forwardpass_proto import grpc_service_pb2 as pb

T = TypeVar("T")


class AsyncClient(Session):
    """`Client` for asyncio: the same methods, awaited; the same settings, results and errors.

    It belongs to the event loop of its first call: any number of tasks there may share it, other loops and threads
    may not. Cancelling a task cancels its call, on the server too. Close it, or use it as an async context manager.
    """

    def _open(self) -> None:
        # The channels of grpc.aio are tied to the loop that is running when they are made, so that waits.
        self._opened: tuple[asyncio.AbstractEventLoop, Stubs] | None = None

    def _stubs(self) -> Stubs:
        loop = asyncio.get_running_loop()
        if self._opened is None:
            self._opened = loop, Stubs(self._channel(about_health=False), self._channel(about_health=True))
        owner, stubs = self._opened
        if owner is not loop:
            raise ClientMisused("an AsyncClient serves one event loop, that of its first call; make one for this loop")
        return stubs

    def _channel(self, *, about_health: bool) -> grpc.aio.Channel:
        options = self._channel_options(about_health=about_health)
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address.target, options, self._compression)
        return grpc.aio.secure_channel(self._address.target, self._credentials, options, self._compression)

    async def infer(
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
        """See `Client.infer`."""
        return await self._run(
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
    ) -> AsyncText:
        """See `Client.generate`: `async for piece in client.generate(…)`, which is not awaited itself."""
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
        return AsyncText(self._stream([request], ask, terms), lambda failed: self._stream_error(failed, ask, terms))

    def sequence(
        self,
        model: str,
        sequence_id: int | str | None = None,
        *,
        version: str | int = "",
        deadline_s: float | None = None,
        headers: Headers | None = None,
    ) -> AsyncModelSequence:
        """See `Client.sequence`: `async with client.sequence(…)`, which is not awaited itself."""
        ask = Ask(methods.STREAM_INFER, pb.ModelInferRequest(), conversation.label(model, str(version)))
        terms = self._begin(math.inf if deadline_s is None else deadline_s, headers)

        async def build(
            inputs: Mapping[str, npt.ArrayLike], parameters: Mapping[str, Parameter]
        ) -> pb.ModelInferRequest:
            step = conversation.sequence_step(
                self._known,
                model,
                inputs,
                parameters,
                version=str(version),
                max_message_bytes=self._max_message_bytes,
            )
            return await self._run(step, None)

        return AsyncModelSequence(
            sequence_id,
            build,
            lambda: self._stream(None, ask, terms),
            lambda failed: self._stream_error(failed, ask, terms),
        )

    async def metadata(self, model: str, version: str | int = "", *, deadline_s: float | None = None) -> ModelMetadata:
        """See `Client.metadata`."""
        return await self._run(conversation.metadata(self._known, model, str(version)), deadline_s)

    async def models(self, *, only_ready: bool = False, deadline_s: float | None = None) -> tuple[ModelStatus, ...]:
        """See `Client.models`."""
        return await self._run(conversation.models(only_ready), deadline_s)

    async def model_ready(self, model: str, version: str | int = "", *, deadline_s: float | None = None) -> bool:
        """See `Client.model_ready`."""
        return await self._run(conversation.model_ready(model, str(version)), deadline_s)

    async def ready(self, *, deadline_s: float | None = None) -> bool:
        """See `Client.ready`."""
        return await self._run(conversation.ready(), deadline_s)

    async def live(self, *, deadline_s: float | None = None) -> bool:
        """See `Client.live`."""
        return await self._run(conversation.live(), deadline_s)

    async def health(self, service: str = "", *, deadline_s: float | None = None) -> Health:
        """See `Client.health`."""
        return await self._run(conversation.health(service), deadline_s)

    async def server(self, *, deadline_s: float | None = None) -> ServerMetadata:
        """See `Client.server`."""
        return await self._run(conversation.server_metadata(), deadline_s)

    async def wait_until_ready(
        self, model: str = "", version: str | int = "", *, deadline_s: float | None = None
    ) -> None:
        """See `Client.wait_until_ready`."""
        await self._run(conversation.wait_until_ready(model, str(version)), deadline_s)

    async def close(self) -> None:
        """See `Client.close`."""
        self._closed = True
        opened, self._opened = self._opened, None
        if opened is not None:
            for channel in opened[1].channels:
                await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, talk: Conversation[T], deadline_s: float | None, headers: Headers | None = None) -> T:
        terms = self._begin(deadline_s, headers)
        stubs = self._stubs()
        try:
            step = next(talk)
            while True:
                try:
                    outcome = await self._carry_out(step, terms, stubs)
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

    async def _carry_out(self, step: Ask | Pause, terms: Terms, stubs: Stubs) -> Answer | None:
        if isinstance(step, Pause):
            await asyncio.sleep(terms.pause_s(step))
            return None
        try:
            call = stubs.of(step)(step.request, timeout=terms.timeout_s(step), metadata=terms.metadata)
            reply = await call
            return Answer(reply, tuple(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as failed:
            raise self._error(failed, step, terms) from failed
        except (grpc.aio.UsageError, asyncio.CancelledError) as stopped:
            # A closed channel cancels its calls in the same way as a cancelled task does.
            if not self._closed or _current_task_is_cancelled():
                raise
            raise CallCancelled("the client was closed", model=step.model, address=self.url) from stopped

    def _stream(self, requests: Iterable[pb.ModelInferRequest] | None, ask: Ask, terms: Terms) -> Any:
        """Open a stream; its errors come when it is read."""
        metadata = (*terms.metadata, ERRORS_END_STREAMS)
        return self._stubs().of(ask)(requests, timeout=terms.timeout_s(ask), metadata=metadata)


def _current_task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
