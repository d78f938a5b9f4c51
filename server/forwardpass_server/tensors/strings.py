"""BYTES tensors on the wire: for each element a length (uint32, little-endian), then that many bytes of UTF-8.

Both ways have a plain loop, and a shortcut for big tensors, which millions of elements would otherwise turn into
seconds. Figures: 10,485,760 one-byte elements, one EPYC core, `tests/benchmark/wire.py`.
"""

import struct
from collections.abc import Iterable
from itertools import chain

import numpy as np

from forwardpass_server.errors import InvalidRequest, RunFailed

_LENGTH = struct.Struct("<I")

MANY = 128
"""Elements from which encoding by numpy is quicker than by a loop."""


def decode(raw: memoryview, count: int, name: str) -> list[str]:
    """The elements of a BYTES tensor.

    Args:
        raw: the tensor as it came.
        count: elements that its shape says.
        name: of the input, for messages.

    Raises:
        InvalidRequest: another number of elements, a length that passes the end, or text that is not UTF-8.
    """
    data = bytes(raw)
    try:
        return _equal_lengths(data, count) or _one_by_one(data, count, name)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input '{name}': an element is not UTF-8 text ({error.reason})") from error


def encode(array: np.ndarray) -> bytes | np.ndarray:
    """The bytes of a BYTES tensor, as a buffer.

    Args:
        array: objects of type `str` or `bytes`, any shape.

    Raises:
        RunFailed: an element is neither, or not text that UTF-8 can carry.
    """
    elements = array.ravel().tolist()
    try:
        if len(elements) < MANY:
            encoded = map(_encoded, elements)
            return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in encoded))
        return _interleaved(elements)
    except (AttributeError, UnicodeEncodeError) as error:
        raise RunFailed(f"a BYTES output has an element that is no text: {error}") from error


def _equal_lengths(data: bytes, count: int) -> list[str] | None:
    """The elements if all are ASCII and have one length, else None. 0.3 s, the loop 3.8 s."""
    if count == 0 or len(data) % count or len(data) < 4 * count:
        return None
    size = len(data) // count - 4
    rows = np.frombuffer(data, np.uint8).reshape(count, 4 + size)
    if not (rows[:, :4] == np.frombuffer(_LENGTH.pack(size), np.uint8)).all():
        return None
    text = rows[:, 4:].tobytes()
    if not text.isascii():
        return None
    whole = text.decode("ascii")
    return list(whole) if size == 1 else [whole[at * size : (at + 1) * size] for at in range(count)]


def _one_by_one(data: bytes, count: int, name: str) -> list[str]:
    length_at, end = _LENGTH.unpack_from, len(data)
    # where lengths and text are all below 128, slices of one decoded string are half the price
    text = data.decode("ascii") if data.isascii() else None
    elements: list[str] = []
    at = got = 0
    while at < end:
        if end - at < 4:
            raise InvalidRequest(f"input '{name}': {end - at} bytes are left over after element {got}")
        (length,) = length_at(data, at)
        start = at + 4
        at = start + length
        if at > end:
            raise InvalidRequest(f"input '{name}': element {got} says {length} bytes, {end - start} are left")
        if got < count:
            elements.append(data[start:at].decode() if text is None else text[start:at])
        got += 1
    if got != count:
        raise InvalidRequest(f"input '{name}': expected {count} elements, got {got}")
    return elements


def _encoded(element: str | bytes) -> bytes:
    return element if isinstance(element, bytes) else element.encode()


def _interleaved(elements: list[str | bytes]) -> np.ndarray:
    """Lengths and data of many elements, scattered into one buffer. 1.0 s, the loop 6.5 s."""
    lengths, data = _joined(elements)
    starts = np.zeros(len(elements), np.int64)
    np.cumsum(lengths[:-1] + np.int64(4), out=starts[1:])
    interleaved = np.empty(4 * len(elements) + len(data), np.uint8)
    is_data = np.ones(len(interleaved), np.bool_)
    for byte in range(4):
        interleaved[starts + byte] = lengths.view(np.uint8)[byte::4]
        is_data[starts + byte] = False
    interleaved[is_data] = np.frombuffer(data, np.uint8)
    return interleaved


def _joined(elements: list[str | bytes]) -> tuple[np.ndarray, bytes]:
    """The length of each element (uint32), and all of them one after the other."""
    try:
        data = "".join(elements).encode("ascii")  # type: ignore[arg-type]  # a TypeError where there are bytes
        encoded: Iterable[str | bytes] = elements
    except (TypeError, UnicodeEncodeError):
        encoded = [_encoded(element) for element in elements]
        data = b"".join(encoded)  # type: ignore[arg-type]  # all are bytes now
    return np.fromiter(map(len, encoded), "<u4", len(elements)), data
