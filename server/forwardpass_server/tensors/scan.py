"""Where the fields of a protobuf message lie, found by reading tags and lengths alone: nothing is copied or built.

Only as much of the encoding as that takes: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple

from forwardpass_server.errors import InvalidRequest

VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32 = range(6)
"""Wire types. No field of the protocol is a group, but an unknown one may be, and is passed over as such."""
GROUP_DEPTH_MAX = 100
"""How deep groups may lie in groups; protobuf's own limit."""


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
        elif wire_type == GROUP:
            end = _group_end(data, start, stop, number)
        else:
            end = _value_end(data, at, start, stop, wire_type)
        if number == 0:
            raise InvalidRequest(f"malformed message: field number 0 at byte {at}")
        if end > stop:
            raise InvalidRequest(f"malformed message: field {number} at byte {at} is {end - stop} bytes short")
        yield Field(number, wire_type, at, start, end)
        at = end


def _value_end(data: bytes, at: int, start: int, stop: int, wire_type: int) -> int:
    """Where a value of fixed or varying width ends, perhaps past `stop`; its tag stands at `at`."""
    if wire_type == VARINT:
        return varint(data, start, stop)[1]
    if wire_type == FIXED32:
        return start + 4
    if wire_type == FIXED64:
        return start + 8
    raise InvalidRequest(f"malformed message: wire type {wire_type} at byte {at}")


def _group_end(data: bytes, at: int, stop: int, number: int) -> int:
    """Where the group of field `number` ends, whose first field begins at `at`."""
    open_groups = [number]
    while open_groups:
        if at >= stop:
            raise InvalidRequest(f"malformed message: group {open_groups[-1]} has no end")
        tag, start = varint(data, at, stop)
        wire_type = tag & 7
        if wire_type == GROUP:
            open_groups.append(tag >> 3)
            if len(open_groups) > GROUP_DEPTH_MAX:
                raise InvalidRequest(
                    f"malformed message: more than {GROUP_DEPTH_MAX} groups in each other at byte {at}"
                )
            at = start
        elif wire_type == GROUP_END:
            if tag >> 3 != open_groups.pop():
                raise InvalidRequest(f"malformed message: the end of group {tag >> 3} at byte {at} ends another")
            at = start
        elif wire_type == LENGTH:
            length, start = varint(data, start, stop)
            at = start + length
        else:
            at = _value_end(data, at, start, stop, wire_type)
    return at


def prefix(number: int, length: int) -> bytes:
    """The tag and length that come before a LENGTH field's value; for field numbers below 16."""
    encoded = bytearray((number << 3 | LENGTH,))
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
