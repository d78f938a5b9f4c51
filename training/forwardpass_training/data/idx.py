"""The idx format of MNIST's files: two zero bytes, a type, a rank, the sizes (big-endian uint32), then the values."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forwardpass_training.errors import DataError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzip-compressed idx file of unsigned bytes into an array of the shape that its head states.

    Raises:
        DataError: not gzip, not idx, another type of value, or not as long as its head says.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise DataError(f"{path} is not a whole gzip file ({exc}); delete it so that it is fetched again") from exc
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(f"{path} is not an idx file: it starts with {data[:4].hex()!r}, not with two zero bytes")
    type_code, rank = data[2], data[3]
    if type_code != UNSIGNED_BYTE:
        raise DataError(f"{path} holds values of idx type {type_code:#04x}; only unsigned bytes (0x08) are read")
    head_bytes = 4 + 4 * rank
    if len(data) < head_bytes:
        raise DataError(f"{path} ends inside its head: {len(data)} of {head_bytes} bytes")
    shape = struct.unpack(f">{rank}I", data[4:head_bytes])
    if len(data) - head_bytes != math.prod(shape):
        raise DataError(f"{path} states shape {shape} but holds {len(data) - head_bytes} values")
    return np.frombuffer(data, np.uint8, offset=head_bytes).reshape(shape).copy()
