"""The largest values of an output as text, for callers who ask for `classification`."""

import math
from collections.abc import Sequence

import numpy as np

from forwardpass_server.tensors.dtypes import BF16, Dtype


def top_k(array: np.ndarray, dtype: Dtype, k: int, *, batched: bool, labels: Sequence[str] = ()) -> np.ndarray:
    """The `k` largest elements of each row, largest first; of equal ones the earlier comes first, NaN comes last.

    Args:
        array: an output of any dtype but BYTES; its dimensions behind the rows count as one.
        dtype: of the output.
        k: at least 1; all elements of a row where it has fewer.
        batched: the first axis is rows; else the whole array is one.
        labels: the name of each class; a class beyond them has none.

    Returns:
        Objects of type `str`, "value:index" or "value:index:label", [rows, k] or, not batched, [k]. Floats have six
        decimals.
    """
    rows, dims = (array.shape[0], array.shape[1:]) if batched else (1, array.shape)
    values = _comparable(array, dtype).reshape(rows, math.prod(dims))
    k = min(k, values.shape[1])
    # Ascending and stable on the mirrored row, read backwards: descending, and equal ones in their own order.
    last = values.shape[1] - 1
    order = last - np.argsort(_without_nan(values)[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :k]
    form = "%f:%d" if values.dtype.kind == "f" else "%d:%d"
    texts = [
        (form % (value, index)) + (f":{labels[index]}" if index < len(labels) else "")
        for row, indices in zip(values, order, strict=True)
        for value, index in zip(row[indices].tolist(), indices.tolist(), strict=True)
    ]
    named = np.empty(len(texts), np.object_)
    named[:] = texts
    return named.reshape((rows, k) if batched else (k,))


def _comparable(array: np.ndarray, dtype: Dtype) -> np.ndarray:
    """The same values in a dtype that sorts and prints as they do."""
    if dtype is BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _without_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
