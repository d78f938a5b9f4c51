"""A text that a server is writing, read piece by piece by an asyncio client."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from forwardpass.errors import ForwardpassError
from forwardpass.generation import Generated
from forwardpass.text import OnError


class AsyncText(Generated, AsyncIterator[str]):
    """`Text` for asyncio: `async for piece in client.generate(…)`. Cancelling the task that reads it stops it too."""

    def __init__(self, call: Any, on_error: OnError) -> None:
        super().__init__()
        self._call = call
        self._on_error = on_error

    async def __anext__(self) -> str:
        """See `Text.__next__`."""
        try:
            while (reply := await self._call.read()) is not grpc.aio.EOF:
                if piece := self._take(reply):
                    return piece
            self._ended()
        except (grpc.aio.AioRpcError, ForwardpassError) as failed:
            self._call.cancel()
            raise self._on_error(failed) from failed
        except asyncio.CancelledError as stopped:
            self._call.cancel()
            # a call that `close` or its client ended raises the same as a task that was cancelled
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._on_error(stopped) from stopped
        raise StopAsyncIteration

    async def close(self) -> None:
        """See `Text.close`."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
