"""What the specs of a model make of a request's head: which input is which, how large each is, what is asked for.

Everything here follows from the head alone, so it is worked out once a head and reused by every request that has it:
a check takes 1.1 µs with a plan at hand, 8.3 without (10-float MLP request).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.arrays import elements_of
from forwardpass_server.tensors.dtypes import BOOL, BYTES, Dtype
from forwardpass_server.tensors.heads import Head, InputHead
from forwardpass_server.tensors.specs import Specs, TensorSpec


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one input of the specs comes from."""

    index: int
    """Its place in the request."""
    dtype: Dtype
    shape: tuple[int, ...]
    in_place: bool
    """Its raw bytes may be used where they lie, once their number is right."""
    nbytes: int
    """What its raw bytes must number; 0 for BYTES."""
    numpy: np.dtype


@dataclass(frozen=True, slots=True)
class Plan:
    """What a model's specs make of a head."""

    specs: Specs
    slots: tuple[Slot | None, ...]
    """In the specs' order; None for an optional input that was left out."""
    rows: int
    outputs: tuple[int, ...]
    """Indices into the specs' outputs, in the order asked for; all of them when the caller asked for none."""


def plan(specs: Specs, head: Head) -> Plan:
    """What `specs` make of `head`.

    Raises:
        InvalidRequest: they do not fit.
    """
    model = head.model_name
    places = _places(specs.inputs, head)
    sizes: dict[str, int] = {}
    slots: list[Slot | None] = []
    for spec in specs.inputs:
        index = places.get(spec.name)
        slots.append(None if index is None else _slot(specs, spec, index, head.inputs[index], model, sizes))
    return Plan(specs, tuple(slots), _rows(specs, slots, model), _outputs(specs, head))


def _places(specs: tuple[TensorSpec, ...], head: Head) -> dict[str, int]:
    """The place in the request of each input, by name."""
    places: dict[str, int] = {}
    for index, tensor in enumerate(head.inputs):
        if tensor.name in places:
            raise InvalidRequest(f"input '{tensor.name}' already exists in the request: each is sent once")
        places[tensor.name] = index
    known = [spec.name for spec in specs]
    missing = [spec.name for spec in specs if spec.name not in places and not spec.optional]
    unknown = [name for name in places if name not in known]
    if missing or unknown:
        reasons = [f"missing {_listed(missing)}"] * bool(missing) + [f"unknown {_listed(unknown)}"] * bool(unknown)
        raise InvalidRequest(
            f"model '{head.model_name}' expected {len(specs)} inputs ({_listed(known)}), "
            f"got {len(places)}: {'; '.join(reasons)}"
        )
    return places


def _slot(specs: Specs, spec: TensorSpec, index: int, tensor: InputHead, model: str, sizes: dict[str, int]) -> Slot:
    dtype = dtypes.by_wire(tensor.datatype)
    if dtype is not spec.dtype:
        raise InvalidRequest(
            f"input '{spec.name}': model '{model}' expects datatype {spec.dtype.wire}, got '{tensor.datatype}'"
        )
    elements = elements_of(tensor.shape, spec.name)
    if spec.ranked:
        _fit(specs, spec, tensor.shape, model, sizes)
    in_place = dtype not in (BYTES, BOOL) and not tensor.elsewhere
    return Slot(index, dtype, tensor.shape, in_place, elements * dtype.itemsize, dtype.numpy)


def _fit(specs: Specs, spec: TensorSpec, shape: tuple[int, ...], model: str, sizes: dict[str, int]) -> None:
    """Compare a shape with its spec, and with the sizes that other inputs gave to dimensions of the same name."""
    if len(shape) != len(spec.shape) or any(
        isinstance(d, int) and d != s for d, s in zip(spec.shape, shape, strict=True)
    ):
        note = f"; the first dimension is the batch, at most {specs.max_batch_size}" * bool(specs.max_batch_size)
        raise InvalidRequest(
            f"unexpected shape for input '{spec.name}' of model '{model}': "
            f"expected {spec.shape_text()}, got {list(shape)}{note}"
        )
    for name, size in zip(spec.shape, shape, strict=True):
        if isinstance(name, str) and sizes.setdefault(name, size) != size:
            raise InvalidRequest(
                f"inputs of model '{model}' disagree on dimension '{name}': {sizes[name]} elsewhere, "
                f"{size} in '{spec.name}' {list(shape)}"
            )


def _rows(specs: Specs, slots: list[Slot | None], model: str) -> int:
    """Rows of the batch; 1 for a model that is not batched."""
    if not specs.max_batch_size:
        return 1
    rows = {slot.shape[0] for slot in slots if slot is not None}
    if len(rows) != 1:
        raise InvalidRequest(f"inputs of model '{model}' disagree on the batch: {sorted(rows)} rows")
    (count,) = rows
    if count > specs.max_batch_size:
        raise InvalidRequest(
            f"batch of {count} rows; model '{model}' takes at most {specs.max_batch_size}: send several requests"
        )
    return count


def _outputs(specs: Specs, head: Head) -> tuple[int, ...]:
    if not head.outputs:
        return tuple(range(len(specs.outputs)))
    places = {spec.name: index for index, spec in enumerate(specs.outputs)}
    wanted: list[int] = []
    for output in head.outputs:
        index = places.get(output.name)
        if index is None:
            raise InvalidRequest(f"unexpected output '{output.name}': model '{head.model_name}' has {_listed(places)}")
        if index in wanted:
            raise InvalidRequest(f"output '{output.name}' already exists in the request: each is asked for once")
        wanted.append(index)
    return tuple(wanted)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
