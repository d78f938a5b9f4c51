"""The status codes that Triton would send, for clients that were written against them (`--triton-status-codes`).

Triton has no RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, UNAUTHENTICATED or PERMISSION_DENIED of its own: what is full, late
or closed is UNAVAILABLE. The price: clients and meshes that retry UNAVAILABLE send more to a server that has too much.
What is too large for any queue keeps RESOURCE_EXHAUSTED, since no retry will help it.
"""

from typing import Any, cast

from forwardpass_server.rpc.status import NEVER_RETRY, Code
from forwardpass_server.transport.call import Call, Metadata, StreamCall, StreamFactory, StreamHandler, UnaryHandler

UNAVAILABLE_THERE = frozenset(
    {Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}
)


def translated(handle: UnaryHandler) -> UnaryHandler:
    """`handle`, whose failures end with Triton's codes."""
    return lambda call, body: handle(cast(Call, _Translating(call)), body)


def translated_stream(make: StreamFactory) -> StreamFactory:
    """`make`, whose streams end with Triton's codes."""

    def make_translated(call: StreamCall) -> StreamHandler:
        return make(cast(StreamCall, _Translating(call)))

    return make_translated


def code_there(code: int, trailers: Metadata) -> int:
    """What Triton would end such a call with."""
    if code in UNAVAILABLE_THERE and NEVER_RETRY not in trailers:
        return Code.UNAVAILABLE
    return code


class _Translating:
    """A call, save that its failures are translated."""

    __slots__ = ("_call",)

    def __init__(self, call: Call | StreamCall) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        return self._call.fail(code_there(code, trailers), message, trailers)
