"""`name=value` of the command line, as tensors: JSON, text, and files."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forwardpass import images
from forwardpass.errors import ClientMisused, InvalidRequest
from forwardpass.fit import fit
from forwardpass.results import ModelMetadata, TensorMetadata

FORMS = (
    "JSON (3, [1, 2], [[0.5]]), text for BYTES, @file.npy, @file.json, @picture.png, or - for JSON on standard input"
)


def read(
    arguments: Sequence[str], metadata: ModelMetadata, *, invert: bool
) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Inputs by name, and every choice made on the way, in words.

    Args:
        arguments: "name=value" each; a model with one input also takes the value alone.
        metadata: of the model.
        invert: exchange light and dark of pictures.

    Raises:
        ClientMisused: an argument that cannot be read.
        InvalidRequest: an input that the model does not have.
    """
    tensors = {tensor.name: tensor for tensor in metadata.inputs}
    inputs: dict[str, npt.NDArray[Any]] = {}
    choices: list[str] = []
    for argument in arguments:
        name, text = _split(argument, tensors)
        if name in inputs:
            raise ClientMisused(f"input '{name}' is given twice")
        inputs[name], remarks = _value(text, tensors[name], invert=invert)
        choices += [f"{name}: {remark}" for remark in remarks]
    return inputs, choices


def _split(argument: str, tensors: dict[str, TensorMetadata]) -> tuple[str, str]:
    name, equals, text = argument.partition("=")
    if equals and name in tensors:
        return name, text
    if len(tensors) == 1 and (not equals or argument[0] in "@[{"):
        return next(iter(tensors)), argument
    takes = "; ".join(str(tensor) for tensor in tensors.values())
    if equals:
        raise InvalidRequest(f"there is no input '{name}'; the model takes {takes}")
    raise ClientMisused(f"'{argument}' names no input; write name=value. The model takes {takes}")


def _value(text: str, tensor: TensorMetadata, *, invert: bool) -> tuple[npt.NDArray[Any], list[str]]:
    path = Path(text[1:]) if text.startswith("@") else None
    if path is not None and path.suffix.lower() in images.SUFFIXES:
        return images.load(path, tensor, invert=invert)
    array = _array(text, path, tensor)
    shape = fit(array.shape, tensor.shape)
    if shape is None:
        return array, []
    return array.reshape(shape), [f"shape {list(array.shape)} taken as {list(shape)}"]


def _array(text: str, path: Path | None, tensor: TensorMetadata) -> npt.NDArray[Any]:
    if path is not None and path.suffix.lower() == ".npy":
        try:
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as unreadable:
            raise ClientMisused(f"'{path}' cannot be read as .npy: {unreadable}") from unreadable
        return array
    if path is not None and path.suffix.lower() != ".json":
        raise ClientMisused(f"'{path}' ends in none of .npy, .json, {', '.join(sorted(images.SUFFIXES))}")
    if path is not None:
        source, where = _read_text(path), f"'{path}'"
    elif text == "-":
        source, where = sys.stdin.read(), "standard input"
    else:
        source, where = text, f"'{text:.60}'"
        if tensor.datatype == "BYTES" and not text.startswith(("[", '"')):
            return np.array(text, dtype=object)
    try:
        value = json.loads(source)
    except ValueError as wrong:
        raise ClientMisused(f"input '{tensor.name}': {where} is no JSON ({wrong}); values are {FORMS}") from wrong
    try:
        return np.asarray(value, dtype=object if tensor.datatype == "BYTES" else None)
    except ValueError as ragged:
        raise InvalidRequest(f"input '{tensor.name}' is not rectangular: {ragged}") from ragged


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ClientMisused(f"'{path}' cannot be read: {unreadable}") from unreadable
