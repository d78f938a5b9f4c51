"""The parameters of a request: what we honour, what we refuse by name, and what is nobody's business but the model's.

A feature that would change an answer is refused when we do not have it; a hint, or a key of the caller's own, is not.
"""

import math
from dataclasses import dataclass

from forwardpass_server.errors import InvalidRequest, NotImplementedHere
from forwardpass_server.tensors.heads import Head, Parameters

_SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"


@dataclass(frozen=True, slots=True)
class Hints:
    """How a caller wants its request treated."""

    priority: int = 0
    """As sent; 0 for the model's own."""
    timeout_s: float = math.inf
    """The longest it may take from its arrival, in seconds."""


NONE = Hints()


def read(head: Head) -> Hints:
    """The hints in a request's parameters.

    Raises:
        InvalidRequest: a known key with a value it cannot have, or a `triton_` key that is not known.
        NotImplementedHere: a feature that this server does not have.
    """
    if not head.has_parameters:
        return NONE
    for tensor in head.inputs:
        _refuse_shared_memory(tensor.parameters, f"input '{tensor.name}'")
    for output in head.outputs:
        _refuse_shared_memory(output.parameters, f"output '{output.name}'")
        if "classification" in output.parameters:
            raise NotImplementedHere(
                f"output '{output.name}': 'classification' is not served; ask for the tensor and take its top k"
            )
    given = head.parameters
    for key in given:
        if key.startswith("triton_") and key != EMPTY_FINAL_RESPONSE:
            raise InvalidRequest(f"unknown parameter '{key}': names that begin with 'triton_' are reserved")
    if not isinstance(given.get(EMPTY_FINAL_RESPONSE, False), bool):
        raise InvalidRequest(f"parameter '{EMPTY_FINAL_RESPONSE}' is a bool, got {given[EMPTY_FINAL_RESPONSE]!r}")
    for key in _SEQUENCE:
        if given.get(key):
            raise NotImplementedHere(f"'{key}': sequences are not served; send the model's state as tensors")
    timeout_us = _count(given, "timeout")
    return Hints(_count(given, "priority"), timeout_us / 1e6 if timeout_us else math.inf)


def _refuse_shared_memory(parameters: Parameters, where: str) -> None:
    for key in _SHARED_MEMORY:
        if key in parameters:
            raise NotImplementedHere(f"{where}: '{key}': shared memory is not served; send the tensor in the message")


def _count(parameters: Parameters, key: str) -> int:
    value = parameters.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter '{key}' is an integer from 0 up, got {value!r}")
    return value
