"""What an answer may carry: checks and cuts made before the core sees it. Pure.

The core refuses bad metadata with a bare error code; and a caller whose own header limit (8 KiB unless it asked for
more) is passed sees RESOURCE_EXHAUSTED instead of our status. So both are settled here.
"""

import re
from urllib.parse import quote

from forwardpass_server.transport.call import Metadata

MAX_MESSAGE_BYTES = 4096
"""Longest status message, percent-encoded: half of a caller's default header limit; trailers are the rest."""

_CUT = " … (cut)"
_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")


def checked_code(code: int) -> int:
    """`code`, a gRPC status other than OK.

    Raises:
        ValueError: it is not 1 to 16.
    """
    if not 1 <= code <= 16:
        raise ValueError(f"a failure needs a gRPC status code from 1 to 16, got {code}")
    return int(code)


def checked_metadata(metadata: Metadata) -> Metadata:
    """`metadata`, fit to be sent.

    Raises:
        ValueError: a key or value that HTTP/2 cannot carry, named.
    """
    for key, value in metadata:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"metadata key {key!r} must consist of 0-9, a-z, '_', '.' and '-'")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"metadata {key!r} ends in -bin: its value must be bytes, got {type(value).__name__}")
        elif not isinstance(value, str) or not _TEXT.fullmatch(value):
            raise ValueError(f"metadata {key!r} must be printable ASCII text, got {value!r}; use a key ending in -bin")
    return metadata


def status_message(message: str) -> bytes:
    """UTF-8 of `message`, cut so that its percent-encoded form stays within `MAX_MESSAGE_BYTES`.

    The core does the percent-encoding, so tabs, line ends and every Unicode character arrive intact.
    """
    if len(message) * 12 <= MAX_MESSAGE_BYTES:  # 4 bytes of UTF-8 a character, 3 of percent-encoding a byte
        return message.encode("utf-8", "replace")
    left = MAX_MESSAGE_BYTES - _wire_bytes(_CUT)
    if _wire_bytes(message[: MAX_MESSAGE_BYTES + 1]) <= MAX_MESSAGE_BYTES:
        return message.encode("utf-8", "replace")
    kept = 0
    for character in message:
        left -= _wire_bytes(character)
        if left < 0:
            break
        kept += 1
    return (message[:kept] + _CUT).encode("utf-8", "replace")


def shown(name: str, limit: int = 100) -> str:
    """`name` as it may stand in a message or a log line: escaped to printable ASCII and cut."""
    text = name if len(name) <= limit else name[:limit] + "…"
    return text.encode("unicode_escape").decode("ascii") if not text.isascii() or not text.isprintable() else text


def _wire_bytes(text: str) -> int:
    """Length of `text` percent-encoded as gRPC does it: printable ASCII save `%` stands for itself."""
    return len(quote(text, safe=_UNQUOTED, errors="replace"))


_UNQUOTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
