"""`ModelSequence` for asyncio."""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy.typing as npt

from forwardpass import stream_reply
from forwardpass.errors import ForwardpassError, MalformedReply
from forwardpass.results import InferResult, Parameter
from forwardpass.sequence import Build, Numbered
from forwardpass.text import OnError


class AsyncModelSequence(Numbered):
    """`ModelSequence`, awaited: one task at a time, as an async context manager."""

    def __init__(
        self,
        sequence_id: int | str | None,
        build: Build,
        open_stream: Callable[[], Any],
        on_error: OnError,
    ) -> None:
        super().__init__(sequence_id)
        self._build = build
        self._open_stream = open_stream
        self._on_error = on_error
        self._call: Any = None

    async def infer(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        end: bool = False,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """See `ModelSequence.infer`."""
        request = await self._build(inputs, self._parameters(end=end, parameters=parameters))
        try:
            if self._call is None:
                self._call = self._open_stream()
            await self._call.write(request)
            reply = await self._call.read()
            if reply is grpc.aio.EOF:
                raise MalformedReply("the stream ended before the answer came")
            result = stream_reply.result(reply)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, ForwardpassError) as failed:
            await self.close()
            raise self._on_error(failed) from failed
        except asyncio.CancelledError as stopped:
            await self.close()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._on_error(stopped) from stopped
        self._started = True
        if end:
            await self.close()
        return result

    async def close(self) -> None:
        """See `ModelSequence.close`."""
        self._over = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
