"""The client's table of tensor element types.

NOTE: the server has its own table, since neither imports the other; `tests/contract` compares the two.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from forwardpass.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type of the wire."""

    wire: str
    """Its name in messages: "FP32"."""
    numpy: np.dtype[Any]
    """What its raw bytes are, little-endian. BF16: uint16 bit patterns. BYTES: object, elements of `bytes`."""
    itemsize: int
    """Bytes of one element in a raw tensor; 0 for BYTES, whose elements carry their own length."""
    contents: str | None
    """The typed field of `InferTensorContents` that can hold it; None for raw only."""


def _row(wire: str, numpy: str, contents: str | None) -> Dtype:
    dtype = np.dtype(numpy)
    return Dtype(wire, dtype, 0 if dtype.hasobject else dtype.itemsize, contents)


DTYPES: dict[str, Dtype] = {
    row.wire: row
    for row in (
        _row("BOOL", "?", "bool_contents"),
        _row("UINT8", "u1", "uint_contents"),
        _row("UINT16", "<u2", "uint_contents"),
        _row("UINT32", "<u4", "uint_contents"),
        _row("UINT64", "<u8", "uint64_contents"),
        _row("INT8", "i1", "int_contents"),
        _row("INT16", "<i2", "int_contents"),
        _row("INT32", "<i4", "int_contents"),
        _row("INT64", "<i8", "int64_contents"),
        _row("FP16", "<f2", None),
        _row("BF16", "<u2", None),
        _row("FP32", "<f4", "fp32_contents"),
        _row("FP64", "<f8", "fp64_contents"),
        _row("BYTES", "O", "bytes_contents"),
    )
}
"""By wire name."""


def by_wire(name: str) -> Dtype:
    """The row of a wire name.

    Raises:
        InvalidRequest: no such name.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise InvalidRequest(f"unknown datatype '{name}'; the protocol has {', '.join(DTYPES)}") from None
