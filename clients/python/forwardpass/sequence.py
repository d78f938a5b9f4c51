"""A sequence: requests of which a model remembers those before, over one stream to one server.

One stream, because the state lies on the server that has it: calls of their own would go round every address of the
name, and a retried one would be counted twice. When the stream ends, so does the sequence.
"""

import secrets
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import grpc
import numpy.typing as npt

from forwardpass import stream_reply
from forwardpass.errors import ClientMisused, ForwardpassError, MalformedReply
from forwardpass.results import InferResult, Parameter
from forwardpass.text import OnError
from forwardpass_proto import grpc_service_pb2 as pb

Build = Callable[[Mapping[str, npt.ArrayLike], Mapping[str, Parameter]], Any]
"""Inputs and parameters to a request (of an asyncio client: to an awaitable of one)."""


class Numbered:
    """What both kinds of sequence know: their id, and which request is the first and which the last."""

    def __init__(self, sequence_id: int | str | None) -> None:
        self.id = secrets.randbits(62) + 1 if sequence_id is None else sequence_id
        """Of the sequence, as the server knows it."""
        self._started = False
        self._over = False

    def _parameters(self, *, end: bool, parameters: Mapping[str, Parameter] | None) -> dict[str, Parameter]:
        if self._over:
            raise ClientMisused(f"sequence {self.id} is over; begin another")
        return {
            **(parameters or {}),
            "sequence_id": self.id,
            "sequence_start": not self._started,
            "sequence_end": end,
        }


class ModelSequence(Numbered):
    """Requests that belong together, in order; use it as a context manager. One thread at a time.

    Leaving it ends the sequence on the server; a last request with `end=True` says so to the model too.
    """

    def __init__(
        self,
        sequence_id: int | str | None,
        build: Build,
        open_stream: Callable[[Any], Any],
        on_error: OnError,
    ) -> None:
        super().__init__(sequence_id)
        self._build = build
        self._open_stream = open_stream
        self._on_error = on_error
        self._requests: SimpleQueue[pb.ModelInferRequest | None] = SimpleQueue()
        self._call: Any = None

    def infer(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        end: bool = False,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """Predict with the next request; its answer knows of those before.

        Args:
            inputs: as in `Client.infer`.
            end: it is the last one.
            parameters: further request parameters.

        Raises:
            ForwardpassError: the sequence is over.
        """
        request = self._build(inputs, self._parameters(end=end, parameters=parameters))
        try:
            if self._call is None:
                self._call = self._open_stream(iter(self._requests.get, None))
            self._requests.put(request)
            reply = next(self._call, None)
            if reply is None:
                raise MalformedReply("the stream ended before the answer came")
            result = stream_reply.result(reply)
        except (grpc.RpcError, ForwardpassError) as failed:
            self.close()
            raise self._on_error(failed) from failed
        self._started = True
        if end:
            self.close()
        return result

    def close(self) -> None:
        """End the sequence. A second time does nothing."""
        self._over = True
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # else the thread that sends would wait for the next request for ever
