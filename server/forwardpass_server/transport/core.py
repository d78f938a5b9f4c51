"""The fence: all that this server uses of grpcio's private module `grpc._cython.cygrpc`; the only file that names it.

Nothing here adds behaviour; names are taken over and typed. `tests/contract/test_cygrpc_contract.py` asserts each of
them, so that a new grpcio fails there first. What bites, learnt from the stock server and by trial:

- `start_server_batch` returns an error code and does not raise; a refused batch leaks its tag. `OK` must be checked.
- Operations serve one batch only. A batch's event carries its tag; our tags are callables taking the event.
- `poll(deadline)` takes wall-clock seconds: 0.0 does not wait, None waits without end. It gives the GIL away.
- At shutdown every posted `request_call` comes back with `success == False`, and must not be looked at further.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from grpc._cython import cygrpc

from forwardpass_server.transport.call import Metadata

Operation: TypeAlias = Any
Operations: TypeAlias = tuple[Operation, ...]
Tag: TypeAlias = Callable[[Any], None]


class RawCall(Protocol):
    """A call inside the core; it lives while a batch of it is pending or this object is held."""

    def start_server_batch(self, operations: Operations, tag: Tag) -> int:
        """Begin `operations`; their event comes to the call's queue. Any thread. Returns `OK` or an error code."""

    def peer(self) -> bytes:
        """The caller's address, percent-encoded."""


class RawCallDetails(Protocol):
    """What the caller asked for."""

    method: bytes
    host: bytes
    deadline: float
    """Wall-clock seconds; about 9.2e18 when the caller set none."""


class Event(Protocol):
    """What `poll` returns. `tag` is None when nothing was ready, and when the queue has shut down."""

    completion_type: int
    success: bool
    tag: Tag | None


class CallEvent(Event, Protocol):
    """A new call, or (`success == False`) a posted request that shutdown returned."""

    call: RawCall
    call_details: RawCallDetails
    invocation_metadata: Metadata


class BatchEvent(Event, Protocol):
    """A finished batch, with its operations in their order."""

    batch_operations: Sequence[Operation]


class Queue(Protocol):
    """The completion queue."""

    def poll(self, deadline: float | None) -> Event:
        """The next event; waits until `deadline`. One thread."""

    def shutdown(self) -> None:
        """No new batch may start from now on; poll drains what is pending, then reports `QUEUE_SHUTDOWN` for ever."""


class RawServer(Protocol):
    """The listening server."""

    def register_completion_queue(self, queue: Queue) -> None:
        """Before `start`."""

    def add_http2_port(self, address: bytes, credentials: Any = None) -> int:
        """The bound port; 0 or RuntimeError when that fails."""

    def start(self) -> None:
        """Begin to accept."""

    def request_call(self, call_queue: Queue, server_queue: Queue, tag: Tag) -> int:
        """Post one request for a call; raises ValueError after `shutdown`."""

    def shutdown(self, queue: Queue, tag: Tag) -> None:
        """Stop; the event of `tag` comes when no connection is left."""

    def cancel_all_calls(self) -> None:
        """Only after `shutdown`."""

    def destroy(self) -> None:
        """Only after the event of `shutdown`."""


OK = 0
NO_FLAGS = 0
QUEUE_SHUTDOWN: int = cygrpc.CompletionType.queue_shutdown

ReceiveMessage = cygrpc.ReceiveMessageOperation
"""(flags); then `.message()`: bytes, or None when no message will come."""
ReceiveClose = cygrpc.ReceiveCloseOnServerOperation
"""(flags); then `.cancelled()`: the caller left, or its deadline passed."""
SendInitialMetadata = cygrpc.SendInitialMetadataOperation
"""(metadata, flags)."""
SendMessage = cygrpc.SendMessageOperation
"""(bytes, flags)."""
SendStatus = cygrpc.SendStatusFromServerOperation
"""(trailing metadata, code, details, flags)."""


def queue() -> Queue:
    """A new completion queue."""
    made: Queue = cygrpc.CompletionQueue()
    return made


def server(arguments: tuple[tuple[str, int], ...], served_by: Queue) -> RawServer:
    """A new server whose calls and events arrive at `served_by`; it listens nowhere yet."""
    made: RawServer = cygrpc.Server(arguments, False)
    made.register_completion_queue(served_by)
    return made


def listen(on: RawServer, address: str, credentials: Any) -> int:
    """Bind `address`; returns the port, or 0 when that failed. `credentials`: a `grpc.ServerCredentials`, or None."""
    try:
        if credentials is None:
            return on.add_http2_port(address.encode())
        return on.add_http2_port(address.encode(), credentials._credentials)
    except RuntimeError:  # some versions raise where others return 0; neither says why
        return 0


def auth_context(call: RawCall) -> dict[str, tuple[bytes, ...]]:
    """Names and values that the TLS handshake established about the caller; {} in plaintext."""
    context = {_text(name): tuple(values) for name, values in cygrpc.auth_context(call).items()}
    return {} if context.get("transport_security_type") == (b"insecure",) else context


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
