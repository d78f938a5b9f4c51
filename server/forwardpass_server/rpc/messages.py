"""From bytes to a message of ours."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from forwardpass_server.errors import InvalidRequest

M = TypeVar("M", bound=Message)


def parse(kind: type[M], body: bytes) -> M:
    """The message in `body`.

    Raises:
        InvalidRequest: it is not one of this kind.
    """
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"malformed message: not a {kind.__name__}, or text in it is not UTF-8") from error
