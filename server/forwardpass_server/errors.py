"""Everything that can go wrong, as one small tree. Core code raises these; `rpc.status` alone makes them gRPC codes.

    ForwardpassError
    ├── CallerError               the caller can mend it
    │   ├── InvalidRequest          malformed, or not what the model takes
    │   ├── TooLarge                beyond a stated limit of size
    │   ├── NotFound                no such model or version
    │   ├── AlreadyExists           the name is taken
    │   ├── NotImplementedHere      an rpc or feature that this server does not have
    │   ├── Unauthenticated         no credentials, or wrong ones
    │   ├── PermissionDenied        good credentials, forbidden rpc
    │   ├── DeadlineExpired         too late, or certain to be
    │   └── CallCancelled           the caller left
    ├── Busy                      right request, wrong moment
    │   ├── Overloaded              full, or behind a queue that cannot clear in time; says when to retry
    │   ├── NotReady                the model is known and not serving
    │   └── Stopping                the server is going away
    └── ServerFault               ours
        ├── RunFailed               the model raised while running
        │   └── OutOfMemory           it found no memory; callers are told, since a smaller request may pass
        ├── LoadFailed              a version could not be loaded, warmed or proved
        ├── StartFailed             the process cannot serve at all: bad setting, port in use
        └── IllegalTransition       a state machine was asked for a step it does not have

This module imports nothing. The text of a `ServerFault` goes to the log, never to a caller, save that of `OutOfMemory`.
"""


class ForwardpassError(Exception):
    """Base of all. `str(error)` says what happened, with the values, and the way out."""


class CallerError(ForwardpassError):
    """The caller can mend it; its text is sent to the caller."""


class InvalidRequest(CallerError):
    """Malformed, or not what the model takes."""


class TooLarge(CallerError):
    """Beyond a stated limit of size."""


class NotFound(CallerError):
    """No such model or version."""


class AlreadyExists(CallerError):
    """The name is taken."""


class NotImplementedHere(CallerError):
    """An rpc or feature that this server does not have."""


class Unauthenticated(CallerError):
    """No credentials, or wrong ones."""


class PermissionDenied(CallerError):
    """Good credentials, forbidden rpc."""


class DeadlineExpired(CallerError):
    """Too late, or certain to be."""


class CallCancelled(CallerError):
    """The caller left before its answer."""


class Busy(ForwardpassError):
    """Right request, wrong moment; its text is sent to the caller."""


class Overloaded(Busy):
    """Full, or behind a queue that cannot clear in time.

    Args:
        message: what is full, with its size.
        retry_after_s: when a retry may succeed, in seconds; sent as `grpc-retry-pushback-ms`.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(Busy):
    """The model is known and not serving."""


class Stopping(Busy):
    """The server is going away; another replica will answer."""


class ServerFault(ForwardpassError):
    """Ours. Callers get an id; the text is logged beside it."""


class RunFailed(ServerFault):
    """The model raised while running."""


class OutOfMemory(RunFailed):
    """There was no memory for a run, on the machine or on its device; its text is sent to the caller."""


class LoadFailed(ServerFault):
    """A version could not be loaded, warmed or proved; `str(error)` is the reason shown in the repository index."""


class StartFailed(ServerFault):
    """The process cannot serve at all: a bad setting, a port in use."""


class IllegalTransition(ServerFault):
    """A state machine was asked for a step it does not have."""
