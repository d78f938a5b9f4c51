"""What a model of sequences is given beside its callers' tensors: the state of each row, and controls that say where in
its sequence each row stands.

States stay where the model runs, in a `States`; a request carries the numbers of two of its rows, one to read and one
to write. So requests are stacked and split like any others, and no state is on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeAlias

import numpy as np

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.scheduling.request import Array, Inputs
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.scheduling.sequence import Position, SequenceId, Slot
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.tensors.dtypes import BYTES, UINT64, Dtype

Value: TypeAlias = Any
"""A tensor where the model runs: an array, or a handle of the device's."""


class States(Protocol):
    """The states of all sequences of a version: of each state, one tensor with a row for each.

    Any thread, as long as no two write the same row.
    """

    def gather(self, rows: Array) -> Sequence[Value]:
        """Of each state, the rows with these numbers (int64 [n]), as the model takes them."""

    def scatter(self, rows: Array, values: Sequence[Value]) -> None:
        """Write those rows, as the model gave them."""


class ControlKind(Enum):
    """What a control says; the value is its name in the configuration."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRELATION_ID = "CONTROL_SEQUENCE_CORRID"


@dataclass(frozen=True, kw_only=True)
class Control:
    """One input that the server fills.

    Args:
        name: of the input.
        kind: what it says.
        dtype: of the input.
        rank: its dimensions, each of which is 1 for one request.
        false, true: the values of START, READY and END.
    """

    name: str
    kind: ControlKind
    dtype: Dtype
    rank: int
    false: float = 0
    true: float = 1

    def array(self, position: Position) -> Array:
        """Its value for one request.

        Raises:
            InvalidRequest: the model's correlation id cannot hold this one.
        """
        shape = (1,) * self.rank
        if self.kind is ControlKind.CORRELATION_ID:
            return _id_array(position.id, self.dtype, shape, self.name)
        # A run holds only rows that have a request, so READY is always true.
        said = {ControlKind.START: position.starts, ControlKind.END: position.ends}.get(self.kind, True)
        return np.full(shape, self.true if said else self.false, self.dtype.numpy)


def _id_array(sequence_id: SequenceId, dtype: Dtype, shape: tuple[int, ...], name: str) -> Array:
    if dtype is BYTES:
        return np.full(shape, str(sequence_id), np.object_)
    if isinstance(sequence_id, str):
        raise InvalidRequest(
            f"sequence_id is {sequence_id!r:.140}; this model takes integers (its input '{name}' is {dtype.wire})"
        )
    # Ids are unsigned; a client that has none but int64_param sends the same bits.
    number = sequence_id + (1 << 64) if dtype is UINT64 and sequence_id < 0 else sequence_id
    takes = np.iinfo(dtype.numpy)
    if not takes.min <= number <= takes.max:
        raise InvalidRequest(
            f"sequence_id is {number}; this model takes {takes.min} to {takes.max} (its input '{name}' is {dtype.wire})"
        )
    return np.full(shape, number, dtype.numpy)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where in the model's graph everything goes.

    Args:
        inputs: how many the model has.
        given: of each input that callers give, in their order, its place in the model.
        states: of each state, its place among the inputs, and among the outputs.
        controls: with the place of each among the inputs.
        outputs: of each output that callers get, its place in the model.
        batched: the first dimension of every tensor is the batch.
    """

    inputs: int
    given: tuple[int, ...]
    states: tuple[tuple[int, int], ...]
    controls: tuple[tuple[int, Control], ...]
    outputs: tuple[int, ...]
    batched: bool


class StatefulModel:
    """A model with its states: what the runs of its sequences are made of.

    Args:
        run: the model, states and controls among its inputs, states among its outputs.
        states: of all sequences; with a row for the initial state, and two for each slot (`Slot`).
        layout: where everything goes.
    """

    def __init__(self, run: Run, states: States, layout: Layout) -> None:
        self._run = run
        self._states = states
        self._layout = layout

    def inputs_of(self, given: Inputs, controls: Sequence[Array], read: int, write: int) -> Inputs:
        """What `run` takes for one request: the callers' inputs, the rows of its state, the controls."""
        return [*given, np.array([read], np.int64), np.array([write], np.int64), *controls]

    def controls_of(self, position: Position) -> list[Array]:
        """The controls of one request. Raises InvalidRequest."""
        return [control.array(position) for _, control in self._layout.controls]

    def run(self, inputs: Inputs, outputs: Sequence[int], termination: Termination | None = None, /) -> list[Array]:
        """One run of several sequences' requests, one row each.

        Args:
            inputs: as `inputs_of` makes them, stacked.
            outputs: indices of the callers' outputs.
            termination: ends it.
        """
        layout = self._layout
        callers = len(layout.given)
        read, write = inputs[callers], inputs[callers + 1]
        assert read is not None
        assert write is not None
        whole: list[Value | None] = [None] * layout.inputs
        for place, array in zip(layout.given, inputs, strict=False):
            whole[place] = array
        for (place, _), array in zip(layout.controls, inputs[callers + 2 :], strict=True):
            whole[place] = array
        for (place, _), value in zip(layout.states, self._states.gather(read), strict=True):
            whole[place] = value
        wanted = [layout.outputs[index] for index in outputs]
        answers = self._run(whole, [*wanted, *(output for _, output in layout.states)], termination)
        self._states.scatter(write, answers[len(wanted) :])
        return list(answers[: len(wanted)])

    def run_alone(self, given: Inputs, outputs: Sequence[int]) -> list[Array]:
        """A run of rows each of which is a whole sequence. Not while sequences are served: it writes where they do.

        Args:
            given: the callers' inputs, of any number of rows.
            outputs: indices of the callers' outputs.
        """
        rows = next((len(array) for array in given if array is not None), 1) if self._layout.batched else 1
        controls = self.controls_of(Position(1, starts=True, ends=True))
        one = self.inputs_of(given, controls, Slot.INITIAL, Slot(0).write)
        beside = [None if array is None else np.repeat(array, rows, axis=0) for array in one[len(given) :]]
        return self.run([*given, *beside], outputs)
