"""The parameters of a request: what we honour, what we refuse by name, and what is nobody's business but the model's.

A feature that would change an answer is refused when we do not have it; a hint, or a key of the caller's own, is not.
What was read is noted in the head, which recurs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.scheduling.sequence import Position
from forwardpass_server.tensors.heads import REGION, Head, Parameters

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
CLASSIFICATION = "classification"
_BYTE_SIZE, _OFFSET = "shared_memory_byte_size", "shared_memory_offset"
SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END = "sequence_id", "sequence_start", "sequence_end"
_ID_BYTES_MAX = 128


class Place(NamedTuple):
    """Where in shared memory a tensor is, or is to be."""

    region: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Hints:
    """How a caller wants its request treated."""

    priority: int = 0
    """As sent; 0 for the model's own."""
    timeout_s: float = math.inf
    """The longest it may take from its arrival, in seconds."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """How many of the largest values are wanted instead of an output, by its name."""
    sources: Mapping[int, Place] = field(default_factory=dict)
    """Where inputs are, by their place in the request."""
    targets: Mapping[str, Place] = field(default_factory=dict)
    """Where outputs are to be written, by name."""
    position: Position | None = None
    """Where the request stands in its sequence; None for one of its own."""


NONE = Hints()


def read(head: Head) -> Hints:
    """The hints in a request's parameters.

    Raises:
        InvalidRequest: a known key with a value it cannot have, or a `triton_` key that is not known.
        NotImplementedHere: a feature that this server does not have.
    """
    if not head.has_parameters:
        return NONE
    hints: Hints | None = head.hints
    if hints is None:
        hints = head.hints = _read(head)
    return hints


def _read(head: Head) -> Hints:
    given = head.parameters
    for key in given:
        if key.startswith("triton_") and key != EMPTY_FINAL_RESPONSE:
            raise InvalidRequest(f"unknown parameter '{key}': names that begin with 'triton_' are reserved")
    if not isinstance(given.get(EMPTY_FINAL_RESPONSE, False), bool):
        raise InvalidRequest(f"parameter '{EMPTY_FINAL_RESPONSE}' is a bool, got {given[EMPTY_FINAL_RESPONSE]!r}")
    timeout_us = _count(given, "timeout")
    sources = {
        index: place
        for index, tensor in enumerate(head.inputs)
        if (place := _place(tensor.parameters, f"input '{tensor.name}'"))
    }
    classes, targets = {}, {}
    for output in head.outputs:
        where = f"output '{output.name}'"
        if place := _place(output.parameters, where):
            targets[output.name] = place
        if CLASSIFICATION in output.parameters:
            classes[output.name] = _count(output.parameters, CLASSIFICATION, where, least=1)
            if place:
                raise InvalidRequest(f"{where}: '{CLASSIFICATION}' does not go together with shared memory")
    timeout_s = timeout_us / 1e6 if timeout_us else math.inf
    return Hints(_count(given, "priority"), timeout_s, classes, sources, targets, _position(given))


def _position(given: Parameters) -> Position | None:
    """Where a request stands in its sequence, if it says so."""
    for key in (SEQUENCE_START, SEQUENCE_END):
        if not isinstance(given.get(key, False), bool):
            raise InvalidRequest(f"parameter '{key}' is a bool, got {given[key]!r}")
    name = given.get(SEQUENCE_ID, 0)
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise InvalidRequest(f"parameter '{SEQUENCE_ID}' is an integer or a string, got {name!r}")
    if isinstance(name, str) and len(name.encode()) > _ID_BYTES_MAX:
        raise InvalidRequest(f"parameter '{SEQUENCE_ID}' is {len(name.encode())} bytes long; at most {_ID_BYTES_MAX}")
    starts, ends = bool(given.get(SEQUENCE_START)), bool(given.get(SEQUENCE_END))
    if name:
        return Position(name, starts, ends)
    if starts or ends:
        key = SEQUENCE_START if starts else SEQUENCE_END
        raise InvalidRequest(f"parameter '{key}' without '{SEQUENCE_ID}', or with 0 or '', which stand for none")
    return None


def _place(parameters: Parameters, where: str) -> Place | None:
    """Where a tensor is, if it is in shared memory."""
    if REGION not in parameters:
        for key in (_BYTE_SIZE, _OFFSET):
            if key in parameters:
                raise InvalidRequest(f"{where}: parameter '{key}' without '{REGION}'")
        return None
    region = parameters[REGION]
    if not isinstance(region, str) or not region:
        raise InvalidRequest(f"{where}: parameter '{REGION}' is the name of a region, got {region!r}")
    if _BYTE_SIZE not in parameters:
        raise InvalidRequest(f"{where}: parameter '{REGION}' needs '{_BYTE_SIZE}'")
    return Place(region, _count(parameters, _OFFSET, where), _count(parameters, _BYTE_SIZE, where))


def _count(parameters: Parameters, key: str, where: str = "", least: int = 0) -> int:
    value = parameters.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidRequest(
            f"{where}{': ' * bool(where)}parameter '{key}' is an integer from {least} up, got {value!r}"
        )
    return value
