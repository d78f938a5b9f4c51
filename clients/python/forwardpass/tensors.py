"""Python values ⇄ raw tensor bytes: `encode` and `decode`.

`encode` takes whatever stands for a tensor (an array of any dtype, nested lists, a number, strings) and the datatype
that the model takes, and converts where no value changes beyond floating-point rounding. The rules:

    bool        → every number
    integers    → integers that hold every value; floating point, rounded to nearest
    floats      → floating point, rounded to nearest; a finite value must not become an infinity
    0 and 1     → BOOL
    str, bytes  → BYTES (str as UTF-8)

Everything else is refused with the values and the way out. Floats never become integers by themselves: a picture
scaled to 0..1 would silently become black.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from forwardpass import bfloat16
from forwardpass.dtypes import Dtype
from forwardpass.errors import InvalidRequest, MalformedReply

Array = npt.NDArray[Any]


def encode(value: npt.ArrayLike, dtype: Dtype, name: str) -> tuple[tuple[int, ...], bytes]:
    """Shape and raw bytes of one input.

    Args:
        value: an array, nested lists, a number or text.
        dtype: what the model takes.
        name: the input's name, for error messages.

    Raises:
        InvalidRequest: not rectangular, or not convertible by the rules above.
    """
    array = _as_array(value, dtype, name)
    if dtype.wire == "BYTES":
        return array.shape, _encode_bytes(array, name)
    return array.shape, _convert(array, dtype, name).tobytes()


def decode(raw: bytes | memoryview, dtype: Dtype, shape: tuple[int, ...], name: str) -> Array:
    """The array of one output, without a copy (so read-only) for every datatype but BF16 and BYTES.

    BF16 comes back as float32, BYTES as an object array of `bytes`.

    Raises:
        MalformedReply: the bytes do not hold what the shape says.
    """
    count = 1
    for dim in shape:
        if dim < 0:
            raise MalformedReply(f"output '{name}' has shape {list(shape)}, with a negative dimension")
        count *= dim
    if dtype.wire == "BYTES":
        return _decode_bytes(memoryview(raw), count, name).reshape(shape)
    if len(raw) != count * dtype.itemsize:
        raise MalformedReply(
            f"output '{name}' of {dtype.wire} {list(shape)} takes {count * dtype.itemsize} bytes, got {len(raw)}"
        )
    array = np.frombuffer(raw, dtype.numpy).reshape(shape)
    return bfloat16.to_float32(array) if dtype.wire == "BF16" else array


def _as_array(value: npt.ArrayLike, dtype: Dtype, name: str) -> Array:
    if isinstance(value, np.ndarray):
        return value
    try:
        # NOTE: numpy's own text types drop trailing NUL characters, so text stays as objects.
        return np.asarray(value, dtype=object if dtype.wire == "BYTES" else None)
    except ValueError as ragged:
        raise InvalidRequest(
            f"input '{name}' is not rectangular: {ragged}; every list on one level needs the same length"
        ) from ragged
    except (OverflowError, TypeError) as odd:
        raise InvalidRequest(f"input '{name}' is no array: {odd}") from odd


def _convert(array: Array, dtype: Dtype, name: str) -> Array:
    """`array` with the elements of `dtype`, little-endian."""
    if dtype.wire == "BF16":
        return _convert_bf16(array, dtype, name)
    if array.dtype == dtype.numpy:
        return array
    given, taken = array.dtype.kind, dtype.numpy.kind
    if given == "b" or (given in "iu" and taken == "f"):
        return array.astype(dtype.numpy)
    if given in "iu" and taken in "iub":
        return _within(array, dtype, name)
    if given == "f" and taken == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            rounded: Array = array.astype(dtype.numpy)
        _refuse_overflow(array, rounded, float(np.finfo(dtype.numpy).max), dtype, name)
        return rounded
    if array.size == 0 and given == "f":  # numpy's type for an empty list
        return array.astype(dtype.numpy)
    raise InvalidRequest(_refusal(array, dtype, name))


def _convert_bf16(array: Array, dtype: Dtype, name: str) -> Array:
    # ml_dtypes' bfloat16 is recognised by name, so that nobody has to install it.
    if array.dtype.name == "bfloat16":
        return np.asarray(array, order="C").view(dtype.numpy)
    if array.dtype.kind not in "biuf":
        raise InvalidRequest(_refusal(array, dtype, name))
    with np.errstate(over="ignore", invalid="ignore"):
        patterns = bfloat16.from_float32(array.astype("<f4"))
    _refuse_overflow(array, bfloat16.to_float32(patterns), bfloat16.LARGEST, dtype, name)
    return patterns


def _within(array: Array, dtype: Dtype, name: str) -> Array:
    low, high = 0, 1
    if dtype.wire != "BOOL":
        limits = np.iinfo(dtype.numpy)
        low, high = int(limits.min), int(limits.max)
    if array.size:
        smallest, largest = int(array.min()), int(array.max())
        if smallest < low or largest > high:
            culprit = smallest if smallest < low else largest
            raise InvalidRequest(f"input '{name}' takes {dtype.wire}, from {low} to {high}; it has the value {culprit}")
    return array.astype(dtype.numpy)


def _refuse_overflow(before: Array, after: Array, largest: float, dtype: Dtype, name: str) -> None:
    overflowed = np.isinf(after) & np.isfinite(before)
    if overflowed.any():
        raise InvalidRequest(
            f"input '{name}' takes {dtype.wire}, up to {largest:.6g}; "
            f"it has the value {float(before[overflowed].flat[0]):.6g}, which would become infinite"
        )


def _refusal(array: Array, dtype: Dtype, name: str) -> str:
    if array.dtype.kind in "US":
        return f"input '{name}' takes {dtype.wire}, got text ({str(array.flat[0])!r:.40}); give numbers"
    what = f"input '{name}' takes {dtype.wire}, got {array.dtype}"
    if array.dtype.kind == "f":
        return f"{what}: round and cast it yourself, for instance array.round().astype('{dtype.numpy.name}')"
    if array.dtype.kind == "O":
        return f"{what} (its first element is {str(array.flat[0])!r:.40}); give numbers within 64 bits"
    return f"{what}; give numbers"


def _encode_bytes(array: Array, name: str) -> bytes:
    parts: list[bytes] = []
    for item in array.flat:
        data = item.encode() if isinstance(item, str) else item
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRequest(f"input '{name}' takes BYTES, got {item!r} ({type(item).__name__}); give str or bytes")
        parts.append(struct.pack("<I", len(data)))
        parts.append(bytes(data))
    return b"".join(parts)


def _decode_bytes(raw: memoryview, count: int, name: str) -> Array:
    # Every element takes at least its length, so a count beyond that is a lie, found before allocating for it.
    if count * 4 > len(raw):
        raise MalformedReply(f"output '{name}' says {count} BYTES elements, but only {len(raw)} bytes came")
    elements = np.empty(count, dtype=object)
    offset = 0
    for index in range(count):
        end = offset + 4
        length = struct.unpack_from("<I", raw, offset)[0] if end <= len(raw) else None
        if length is None or end + length > len(raw):
            raise MalformedReply(f"output '{name}' ends inside element {index} of {count}")
        elements[index] = bytes(raw[end : end + length])
        offset = end + length
    if offset != len(raw):
        raise MalformedReply(f"output '{name}' has {len(raw) - offset} bytes beyond its {count} elements")
    return elements
