"""Where the fields of a protobuf message lie, found by reading tags and lengths alone: nothing is copied or built.

Only as much of the encoding as that takes: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple

from forwardpass_server.errors import InvalidRequest

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types. Groups (3, 4) are not accepted: no field of the protocol has ever been one."""


class Field(NamedTuple):
    """One field of a message, as offsets into its bytes."""

    number: int
    wire_type: int
    at: int
    """Where its tag begins."""
    start: int
    """Where its value begins; for LENGTH, after the length."""
    stop: int
    """Where its value ends, and the next field begins."""


def varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends.

    Raises:
        InvalidRequest: it passes `stop`, or has more than ten bytes.
    """
    value = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise InvalidRequest(f"malformed message: a number at byte {at - shift // 7} has no end")


def fields(data: bytes, at: int, stop: int) -> Iterator[Field]:
    """The fields of the message in `data[at:stop]`, in order.

    Raises:
        InvalidRequest: not a protobuf message, at the first place where that shows.
    """
    while at < stop:
        tag, start = varint(data, at, stop)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == LENGTH:
            length, start = varint(data, start, stop)
            end = start + length
        elif wire_type == VARINT:
            _, end = varint(data, start, stop)
        elif wire_type == FIXED32:
            end = start + 4
        elif wire_type == FIXED64:
            end = start + 8
        else:
            raise InvalidRequest(f"malformed message: wire type {wire_type} at byte {at}")
        if number == 0:
            raise InvalidRequest(f"malformed message: field number 0 at byte {at}")
        if end > stop:
            raise InvalidRequest(f"malformed message: field {number} at byte {at} is {end - stop} bytes short")
        yield Field(number, wire_type, at, start, end)
        at = end


def prefix(number: int, length: int) -> bytes:
    """The tag and length that come before a LENGTH field's value; for field numbers below 16."""
    encoded = bytearray((number << 3 | LENGTH,))
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
