"""From an input as it came to a numpy array: raw bytes in place, typed contents by copy. Sizes are checked first.

All arithmetic on shapes is done with Python's integers, which do not overflow, and before anything is allocated.
"""

import math

import numpy as np

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.tensors import strings
from forwardpass_server.tensors.dtypes import BOOL, BYTES, Dtype
from forwardpass_server.tensors.infer_request import InputTensor

EXTENT_MAX = 2**31 - 1
"""The most bytes that a shape may span when its zero dimensions are left out. An empty tensor carries no data that
would bound its other dimensions, yet a model may allocate by them."""

_AS_SENT = {"int_contents": np.dtype("<i4"), "uint_contents": np.dtype("<u4")}
"""The fields that carry narrower integers too."""


def elements_of(shape: tuple[int, ...], name: str) -> int:
    """How many elements a shape holds.

    Raises:
        InvalidRequest: a negative dimension, or an empty shape that spans more than `EXTENT_MAX`.
    """
    if any(dim < 0 for dim in shape):
        raise InvalidRequest(f"input '{name}': shape {list(shape)} has a negative dimension; send the real size")
    elements = math.prod(shape)
    if elements == 0 and math.prod(dim for dim in shape if dim) > EXTENT_MAX:
        raise InvalidRequest(f"input '{name}': shape {list(shape)} is empty, and too large in its other dimensions")
    return elements


def to_array(tensor: InputTensor, dtype: Dtype) -> np.ndarray:
    """The data of an input.

    Args:
        tensor: as decoded.
        dtype: what its `datatype` names.

    Returns:
        Shape and dtype as stated. Raw tensors of fixed-size elements are read-only views into the message, which may
        lie at any alignment; others are copies.

    Raises:
        InvalidRequest: the data are not as many as the shape says, or not what the datatype can hold.
    """
    elements = elements_of(tensor.shape, tensor.name)
    if tensor.raw is None:
        return _from_contents(tensor, dtype, elements)
    if dtype is BYTES:
        return _objects(strings.decode(tensor.raw, elements, tensor.name), tensor.shape)
    expected = elements * dtype.itemsize
    if len(tensor.raw) != expected:
        raise wrong_size(tensor.name, dtype, tensor.shape, expected, len(tensor.raw))
    array: np.ndarray = np.ndarray(tensor.shape, dtype.numpy, tensor.raw)
    if dtype is BOOL:
        require_booleans(array, tensor.name)
    return array


def wrong_size(name: str, dtype: Dtype, shape: tuple[int, ...], expected: int, got: int) -> InvalidRequest:
    """The error for raw data that are not as long as datatype and shape say."""
    return InvalidRequest(f"input '{name}': expected {expected} bytes for {dtype.wire} {list(shape)}, got {got}")


def require_booleans(array: np.ndarray, name: str) -> None:
    """Refuse BOOL data with bytes other than 0 and 1, which are undefined behaviour for whoever computes with them.

    Raises:
        InvalidRequest: with the first such byte.
    """
    codes = array.view(np.uint8)
    if codes.size and codes.max() > 1:
        raise InvalidRequest(f"input '{name}': BOOL elements are bytes 0 or 1, got {codes[codes > 1][0]}")


def _from_contents(tensor: InputTensor, dtype: Dtype, elements: int) -> np.ndarray:
    sent = {} if tensor.contents is None else {field.name: values for field, values in tensor.contents.ListFields()}
    if dtype.contents is None:
        if sent or elements:
            raise InvalidRequest(f"input '{tensor.name}': {dtype.wire} comes in raw_input_contents only")
        return np.empty(tensor.shape, dtype.numpy)
    strangers = [field for field in sent if field != dtype.contents]
    if strangers:
        raise InvalidRequest(f"input '{tensor.name}': {dtype.wire} comes in {dtype.contents}, got {strangers[0]}")
    values = sent.get(dtype.contents, ())
    if len(values) != elements:
        raise InvalidRequest(
            f"input '{tensor.name}': expected {elements} elements for {list(tensor.shape)}, got {len(values)}"
        )
    if dtype is BYTES:
        return _objects(_texts(values, tensor.name), tensor.shape)
    sent_as = np.array(list(values), _AS_SENT.get(dtype.contents, dtype.numpy))
    array = sent_as.astype(dtype.numpy, copy=False)
    if array is not sent_as and (array != sent_as).any():
        value = sent_as[array != sent_as][0]
        raise InvalidRequest(f"input '{tensor.name}': {value} is out of range for {dtype.wire}")
    return array.reshape(tensor.shape)


def _texts(values: list[bytes], name: str) -> list[str]:
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input '{name}': an element is not UTF-8 text ({error.reason})") from error


def _objects(elements: list[str], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)
