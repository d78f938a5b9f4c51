"""A text that a server is writing, read piece by piece by a blocking client."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from forwardpass.errors import ForwardpassError
from forwardpass.generation import Generated

OnError = Callable[[Any], ForwardpassError]
"""What a failed stream raises, from gRPC's error or from one of ours."""


class Text(Generated, Iterator[str]):
    """The pieces of a text, as they are written.

    Leaving it, by `close`, at the end of a `with`, or by forgetting it (`for piece in client.generate(…): break`), ends
    the writing on the server too. What is read slowly is written slowly. One thread reads it.
    """

    def __init__(self, call: Any, on_error: OnError) -> None:
        super().__init__()
        self._call = call
        self._on_error = on_error

    def __next__(self) -> str:
        """The next piece, which is never empty.

        Raises:
            ForwardpassError: the text failed; what has arrived stays in `text`.
        """
        try:
            for reply in self._call:
                if piece := self._take(reply):
                    return piece
            self._ended()
        except (grpc.RpcError, ForwardpassError) as failed:
            self.close()
            raise self._on_error(failed) from failed
        raise StopIteration

    def close(self) -> None:
        """Stop the writing, if it is not at its end. A second time does nothing."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
