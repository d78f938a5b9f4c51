"""The gate, put before every handler whose rpc is not open to everybody."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message

from forwardpass_server.access.gate import Gate
from forwardpass_server.access.levels import Level, level_of
from forwardpass_server.rpc import status
from forwardpass_server.rpc.messages import parse
from forwardpass_server.rpc.refused import RefusedStream
from forwardpass_server.transport.call import Call, StreamCall, StreamFactory, StreamHandler, UnaryHandler

H = TypeVar("H")


def guarded(handle: UnaryHandler, gate: Gate, level: Level) -> UnaryHandler:
    """`handle`, for callers who pass the gate."""

    def handle_guarded(call: Call, body: bytes) -> None:
        try:
            gate.check(call, level)
        except Exception as error:  # noqa: BLE001 - the edge: status.of logs what is ours
            call.fail(*status.of(error))
        else:
            handle(call, body)

    return handle_guarded


def guarded_change(handle: UnaryHandler, gate: Gate, kind: type[Message]) -> UnaryHandler:
    """`handle`, whose messages of this kind only ask, unless they have `settings`: those are for admins."""
    for_admins = guarded(handle, gate, Level.ADMIN)

    def handle_guarded(call: Call, body: bytes) -> None:
        try:
            changes = len(getattr(parse(kind, body), "settings")) > 0  # noqa: B009 - not every message has it
        except Exception as error:  # noqa: BLE001 - likewise
            call.fail(*status.of(error))
        else:
            (for_admins if changes else handle)(call, body)

    return handle_guarded


def guarded_stream(make: StreamFactory, gate: Gate, level: Level) -> StreamFactory:
    """`make`, for callers who pass the gate; it is asked once, when the stream begins."""

    def make_guarded(call: StreamCall) -> StreamHandler:
        try:
            gate.check(call, level)
        except Exception as error:  # noqa: BLE001 - likewise
            return RefusedStream(call, error)
        return make(call)

    return make_guarded


def guard(handlers: dict[str, H], gate: Gate, wrap: Callable[[H, Gate, Level], H]) -> None:
    """Put the gate before each of `handlers`, by method, whose rpc is not open."""
    for method, handler in handlers.items():
        level = level_of(method)
        if not gate.is_open(level):
            handlers[method] = wrap(handler, gate, level)
