"""The one table from gRPC status to error, pure: codes come in by name."""

from collections.abc import Iterable

from forwardpass import errors

_KINDS: dict[str, type[errors.ForwardpassError]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "FAILED_PRECONDITION": errors.InvalidRequest,  # MLServer answers bad input with it
    "OUT_OF_RANGE": errors.InvalidRequest,
    "NOT_FOUND": errors.ModelNotFound,
    "UNIMPLEMENTED": errors.Unsupported,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "UNAVAILABLE": errors.ServerUnavailable,
    "RESOURCE_EXHAUSTED": errors.Overloaded,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "CANCELLED": errors.CallCancelled,
    # every other code (INTERNAL, UNKNOWN, DATA_LOSS, ABORTED, ALREADY_EXISTS) is the server's failure
}

_WITHOUT_NUMBER = ("", "Deadline Exceeded", "Stream removed (Deadline Exceeded)")
"""gRPC's own words for a deadline that passed."""

PUSHBACK = "grpc-retry-pushback-ms"


def error_of(
    code: str,
    details: str,
    trailers: Iterable[tuple[str, str | bytes]],
    *,
    model: str,
    address: str,
    deadline_s: float,
) -> errors.ForwardpassError:
    """The error of one failed call.

    Args:
        code: name of the gRPC status code.
        details: the server's words, or gRPC's own.
        trailers: trailing metadata of the call.
        model, address: for the error's text.
        deadline_s: what the call was given, in seconds, for the text of `DeadlineExceeded`.
    """
    kind = _KINDS.get(code, errors.ServerFault)
    reason = details or f"the server gave no reason for {code}"
    if kind is errors.Overloaded:
        pushback_s = _pushback_s(trailers)
        # One code for two things. Our server forbids the retry of what is too large; gRPC's core, which answers a
        # message beyond its limit before any server sees it, differs from an overload in words alone.
        if (pushback_s is not None and pushback_s < 0) or "larger than max" in details:
            return errors.TooLarge(reason, code=code, model=model, address=address)
        return errors.Overloaded(reason, code=code, model=model, address=address, retry_after_s=pushback_s)
    if kind is errors.DeadlineExceeded and details in _WITHOUT_NUMBER:
        reason = f"no answer within {deadline_s:.4g} s; give a longer deadline_s, or see the server's load"
    return kind(reason, code=code, model=model, address=address)


def _pushback_s(trailers: Iterable[tuple[str, str | bytes]]) -> float | None:
    for key, value in trailers:
        if key == PUSHBACK:
            try:
                return int(value) / 1000
            except ValueError:  # another implementation's server; a number is all the protocol allows
                return None
    return None
