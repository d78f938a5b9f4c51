"""The one table from errors to gRPC status. No other file names a code for an error.

The text of a caller's error, or of one about the moment or about memory, goes to the caller. Anything else becomes
INTERNAL with an id; its text and traceback go to the log beside that id.
"""

import logging
import math
import uuid
from enum import IntEnum
from typing import NamedTuple

from forwardpass_server import errors

log = logging.getLogger(__name__)

PUSHBACK = "grpc-retry-pushback-ms"
"""Trailer that tells a client's retry policy when to try again; negative for never (gRPC proposal A6)."""


NEVER_RETRY = (PUSHBACK, "-1")


class Code(IntEnum):
    """gRPC's status codes, those that we send."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Status(NamedTuple):
    """What a failed call ends with."""

    code: int
    message: str
    trailers: tuple[tuple[str, str], ...] = ()


CODES: dict[type[errors.ForwardpassError], Code] = {
    errors.InvalidRequest: Code.INVALID_ARGUMENT,
    errors.TooLarge: Code.RESOURCE_EXHAUSTED,
    errors.NotFound: Code.NOT_FOUND,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.NotImplementedHere: Code.UNIMPLEMENTED,
    errors.Unauthenticated: Code.UNAUTHENTICATED,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.DeadlineExpired: Code.DEADLINE_EXCEEDED,
    errors.CallCancelled: Code.CANCELLED,
    errors.Overloaded: Code.RESOURCE_EXHAUSTED,
    errors.OutOfMemory: Code.RESOURCE_EXHAUSTED,
    errors.NotReady: Code.UNAVAILABLE,
    errors.Stopping: Code.UNAVAILABLE,
}


def of(error: BaseException) -> Status:
    """The status for an error; logs those that are ours. Any thread."""
    code = code_of(error)
    if code is not Code.INTERNAL:
        return Status(code, wire_text(str(error)), _trailers(error))
    number = uuid.uuid4().hex
    log.error("internal error, id=%s: %s", number, error, exc_info=error)
    return Status(Code.INTERNAL, f"internal error, id={number}; the server's log says more")


def code_of(error: BaseException) -> Code:
    """The code of an error; INTERNAL for those that are ours."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), Code.INTERNAL)


def wire_text(text: str) -> str:
    """`text` without what drives a terminal: control characters and lone surrogates are escaped.

    Tabs and line ends stay, since gRPC carries them. The transport cuts what is too long.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\t\r\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _trailers(error: BaseException) -> tuple[tuple[str, str], ...]:
    if isinstance(error, errors.Overloaded):
        return ((PUSHBACK, str(max(1, math.ceil(error.retry_after_s * 1000)))),)
    if isinstance(error, errors.TooLarge):
        return (NEVER_RETRY,)  # a retry would be as large
    return ()
