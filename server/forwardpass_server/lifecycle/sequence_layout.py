"""A configuration of sequences against the graph it is about: which tensors are callers', which the server's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.sequence_config import ControlConfig, SequenceConfig, StateConfig
from forwardpass_server.lifecycle.verify import UnsafeFile, open_inside
from forwardpass_server.runtime.states import StateSpec
from forwardpass_server.scheduling.stateful import Control, ControlKind, Layout
from forwardpass_server.tensors.dtypes import BYTES
from forwardpass_server.tensors.signature import Signature, TensorSpec

FOLDER = "initial_state"
"""Where in a model's folder the files of initial states lie."""

_PATH = "sequence_batching"


@dataclass(frozen=True, kw_only=True)
class StatefulSignature:
    """A model that keeps sequences, as its callers see it and as the server fills it.

    Args:
        signature: the callers'.
        layout: where in the model everything goes.
        states: of each state, what it is and what a sequence begins with.
    """

    signature: Signature
    layout: Layout
    states: tuple[StateSpec, ...]


def bind(settings: ModelSettings, whole: Signature, model: Path, root: Path) -> StatefulSignature:
    """What a configuration makes of a graph.

    Args:
        settings: with `sequences`.
        whole: every tensor of the graph that is served or kept, as it will run.
        model: the model's folder.
        root: of the repository; a file outside is not read.

    Raises:
        UnsupportedConfig: the graph has no such tensor, or another one than is configured; a file cannot be read.
    """
    assert settings.sequences is not None
    try:
        return _bind(settings, settings.sequences, whole, model, root)
    except UnsupportedConfig as exc:
        raise UnsupportedConfig(f"{settings.source}: {exc}") from exc


def kept_outputs(settings: ModelSettings) -> frozenset[str]:
    """Outputs that the server needs, whether callers get them or not."""
    return frozenset(state.output for state in settings.sequences.states) if settings.sequences else frozenset()


def configured_states(settings: ModelSettings) -> tuple[list[pb.ModelInput], list[pb.ModelOutput]]:
    """The states, as a configuration states inputs and outputs: their dims fix what the graph leaves open."""
    inputs, outputs = [], []
    for state in settings.sequences.states if settings.sequences else ():
        kind = pb.DataType.Name(0 if state.dtype is None else state.dtype.config)
        inputs.append(pb.ModelInput(name=state.input, data_type=kind, dims=state.dims or ()))
        outputs.append(pb.ModelOutput(name=state.output, data_type=kind, dims=state.dims or ()))
    return inputs, outputs


def _bind(
    settings: ModelSettings, sequences: SequenceConfig, whole: Signature, model: Path, root: Path
) -> StatefulSignature:
    inputs = {spec.name: index for index, spec in enumerate(whole.inputs)}
    outputs = {spec.name: index for index, spec in enumerate(whole.outputs)}
    batched = whole.max_batch_size > 0
    _check_taken_once(settings, sequences)
    states = []
    places = []
    for number, state in enumerate(sequences.states):
        path = f"{_PATH}.state[{number}]"
        taken = _place(state.input, inputs, f"{path}.input_name", "inputs")
        made = _place(state.output, outputs, f"{path}.output_name", "outputs")
        spec = _state_spec(state, whole.inputs[taken], whole.outputs[made], path, batched=batched)
        states.append(_with_initial(state, spec, path, model, root))
        places.append((taken, made))
    controls = []
    for number, control in enumerate(sequences.controls):
        path = f"{_PATH}.control_input[{number}]"
        at = _place(control.name, inputs, f"{path}.name", "inputs")
        controls.append((at, _bound_control(control, whole.inputs[at], path)))
    ours = {taken for taken, _ in places} | {at for at, _ in controls}
    given = tuple(index for index in range(len(whole.inputs)) if index not in ours)
    if not given:
        raise UnsupportedConfig(f"{_PATH}: no input is left for callers")
    shown = {each.name for each in settings.message.output} if settings.message else set()
    answered = tuple(
        index
        for index, spec in enumerate(whole.outputs)
        if spec.name in shown or (not shown and index not in {made for _, made in places})
    )
    if not answered:
        raise UnsupportedConfig(f"{_PATH}: every output is a state; list one of them in `output` to have it answered")
    return StatefulSignature(
        signature=dataclasses.replace(
            whole,
            inputs=tuple(whole.inputs[index] for index in given),
            outputs=tuple(whole.outputs[index] for index in answered),
        ),
        layout=Layout(
            inputs=len(whole.inputs),
            given=given,
            states=tuple(places),
            controls=tuple(controls),
            outputs=answered,
            batched=batched,
        ),
        states=tuple(states),
    )


def _check_taken_once(settings: ModelSettings, sequences: SequenceConfig) -> None:
    """No tensor has two masters."""
    listed = settings.message.input if settings.message else ()
    taken = {each.name: f"input[{index}]" for index, each in enumerate(listed)}
    ours = [(state.input, f"{_PATH}.state[{number}].input_name") for number, state in enumerate(sequences.states)]
    ours += [(control.name, f"{_PATH}.control_input[{n}].name") for n, control in enumerate(sequences.controls)]
    for name, path in ours:
        if name in taken:
            raise UnsupportedConfig(f"{path} is {name!r}, and so is {taken[name]}; the server fills it, callers do not")
        taken[name] = path
    made: dict[str, str] = {}
    for number, state in enumerate(sequences.states):
        path = f"{_PATH}.state[{number}].output_name"
        if state.output in made:
            raise UnsupportedConfig(f"{path} is {state.output!r}, and so is {made[state.output]}")
        made[state.output] = path


def _place(name: str, places: dict[str, int], path: str, role: str) -> int:
    if name not in places:
        raise UnsupportedConfig(f"{path} is {name!r}; the {role} of the model are {', '.join(map(repr, places))}")
    return places[name]


def _state_spec(state: StateConfig, taken: TensorSpec, made: TensorSpec, path: str, *, batched: bool) -> StateSpec:
    """The state that an input takes and an output makes, zero."""
    if taken.dtype is not made.dtype:
        raise UnsupportedConfig(
            f"{path}: input {taken.name!r} is {taken.dtype.wire}, and output {made.name!r} is {made.dtype.wire}"
        )
    if state.dtype not in (None, taken.dtype):
        raise UnsupportedConfig(f"{path}.data_type is {state.dtype.wire}; the model has {taken.dtype.wire}")
    if taken.dtype is BYTES:
        raise UnsupportedConfig(f"{path}: input {taken.name!r} is BYTES; states are numbers")
    dims = taken.shape[1:] if batched else taken.shape
    sizes = tuple(dim for dim in dims if isinstance(dim, int))
    if not taken.ranked or len(sizes) != len(dims):
        raise UnsupportedConfig(
            f"{path}.dims is missing, and the model leaves the shape of {taken.name!r} open: {taken.shape_text()}"
            + " behind the batch dimension" * batched
        )
    theirs = made.shape[1:] if batched else made.shape
    if made.ranked and (
        len(theirs) != len(sizes)
        or any(isinstance(dim, int) and dim != size for dim, size in zip(theirs, sizes, strict=True))
    ):
        raise UnsupportedConfig(
            f"{path}: input {taken.name!r} has shape {taken.shape_text()}, and output {made.name!r} {made.shape_text()}"
        )
    return StateSpec(dtype=taken.dtype, initial=np.zeros(sizes, taken.dtype.numpy))


def _with_initial(state: StateConfig, spec: StateSpec, path: str, model: Path, root: Path) -> StateSpec:
    """The state with what its sequences begin with."""
    if state.data_file is None:
        return spec
    where = f"{path}.initial_state[0].data_file"
    try:
        with open_inside(root, model / FOLDER / state.data_file) as file:
            content = file.read(spec.initial.nbytes + 1)
    except (OSError, ValueError, UnsafeFile) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise UnsupportedConfig(f"{where}: {state.data_file!r} cannot be read: {reason}") from exc
    if len(content) != spec.initial.nbytes:
        has = f"{len(content)}" if len(content) < spec.initial.nbytes else f"more than {spec.initial.nbytes}"
        raise UnsupportedConfig(
            f"{where}: {state.data_file!r} has {has} bytes; a state of shape {[*spec.initial.shape]} has "
            f"{spec.initial.nbytes}"
        )
    array = np.frombuffer(content, spec.initial.dtype).reshape(spec.initial.shape)
    return dataclasses.replace(spec, initial=array)


def _bound_control(control: ControlConfig, spec: TensorSpec, path: str) -> Control:
    if control.dtype not in (None, spec.dtype):
        raise UnsupportedConfig(
            f"{path} ({control.name!r}) is {control.dtype.wire} by its control; the model has {spec.dtype.wire}"
        )
    if control.kind is ControlKind.CORRELATION_ID and control.dtype is None and spec.dtype.numpy.kind not in "iuO":
        raise UnsupportedConfig(f"{path} ({control.name!r}): a correlation id is no {spec.dtype.wire}")
    if not spec.ranked or any(isinstance(dim, int) and dim != 1 for dim in spec.shape):
        raise UnsupportedConfig(
            f"{path} ({control.name!r}) has shape {spec.shape_text()} in the model; a control is one value a row, of "
            "shape [1] behind the batch dimension"
        )
    return Control(
        name=control.name,
        kind=control.kind,
        dtype=spec.dtype,
        rank=len(spec.shape),
        false=control.false,
        true=control.true,
    )
