"""`sequence_batching` of a config.pbtxt, in our own terms.

Both of Triton's strategies come to the same here: rows that have a request are batched, whichever they are, since an
ONNX model keeps nothing between two runs that a slot of its own would be for. What differs is how many slots there are,
and when a batch waits for mates. Requests of sequences without a slot wait for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.lifecycle.unsupported import UnsupportedConfig
from forwardpass_server.scheduling.stateful import ControlKind
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.dtypes import BOOL, BYTES, FP32, INT32, INT64, UINT32, UINT64, Dtype

IDLE_S = 1.0
"""How long a sequence may be idle where the configuration does not say; Triton's default, in seconds."""

SLOTS_MAX = 1 << 16

_IDS = (UINT64, INT64, UINT32, INT32, BYTES)
_TRUTHS = {"int32_false_true": INT32, "fp32_false_true": FP32, "bool_false_true": BOOL}


@dataclass(frozen=True, kw_only=True)
class StateConfig:
    """One state.

    Args:
        input, output: names in the graph.
        dtype: as configured; None where it is not.
        dims: likewise, without the batch dimension.
        data_file: of what a sequence begins with, in `<model>/initial_state/`; None for zeros.
    """

    input: str
    output: str
    dtype: Dtype | None
    dims: tuple[int, ...] | None
    data_file: str | None


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """One control.

    Args:
        name: of the input.
        kind: what it says.
        dtype: of the input; None for a correlation id that the graph alone gives a datatype.
        false, true: its values.
    """

    name: str
    kind: ControlKind
    dtype: Dtype | None
    false: float = 0
    true: float = 1


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """How a model keeps sequences.

    Args:
        idle_s: how long one may be idle, in seconds.
        max_sequences: that may be active at a time, for each instance; None: as many as there are rows in a batch.
        max_delay_s: how long a batch may wait for mates, in seconds.
        enough_share: the share of the slots with which a batch waits no longer.
        states: kept from one request to the next.
        controls: filled by the server.
    """

    idle_s: float
    max_sequences: int | None
    max_delay_s: float
    enough_share: float
    states: tuple[StateConfig, ...]
    controls: tuple[ControlConfig, ...]

    def slots(self, max_batch_size: int, instances: int) -> int:
        """Sequences that may be active at a time, in all instances."""
        return (self.max_sequences or max(max_batch_size, 1)) * instances

    def enough_rows(self, max_batch_size: int) -> int:
        """Rows with which a batch waits no longer; 0 for a full one."""
        return ceil(self.enough_share * max_batch_size)


def of(message: pb.ModelConfig) -> SequenceConfig | None:
    """What a configuration says of sequences; None where it says nothing.

    Raises:
        UnsupportedConfig: a value that cannot be obeyed, by its field.
    """
    if not message.HasField("sequence_batching"):
        return None
    batching = message.sequence_batching
    if message.response_cache.enable:
        raise UnsupportedConfig(
            "response_cache.enable with sequence_batching: an answer depends on the requests before it, and cannot be "
            "kept"
        )
    oldest, direct = batching.oldest, batching.direct
    max_sequences = None
    max_delay_us = 0
    if batching.WhichOneof("strategy_choice") == "oldest":
        max_sequences, max_delay_us = oldest.max_candidate_sequences, oldest.max_queue_delay_microseconds
        if not 0 <= max_sequences <= SLOTS_MAX:
            raise UnsupportedConfig(
                f"sequence_batching.oldest.max_candidate_sequences is {max_sequences}; it must be 1 to {SLOTS_MAX}, or "
                "0 for as many as there are rows in a batch"
            )
    share = direct.minimum_slot_utilization
    if not 0 <= share <= 1:
        raise UnsupportedConfig(f"sequence_batching.direct.minimum_slot_utilization is {share}; it must be 0 to 1")
    if share:  # without it Triton does not wait either
        max_delay_us = direct.max_queue_delay_microseconds
    return SequenceConfig(
        idle_s=batching.max_sequence_idle_microseconds * 1e-6 or IDLE_S,
        max_sequences=max_sequences or None,
        max_delay_s=max_delay_us * 1e-6,
        enough_share=share,
        states=tuple(_state(state, f"sequence_batching.state[{index}]") for index, state in enumerate(batching.state)),
        controls=tuple(
            _control(control, f"sequence_batching.control_input[{index}]")
            for index, control in enumerate(batching.control_input)
        ),
    )


def _state(state: pb.ModelSequenceBatching.State, path: str) -> StateConfig:
    for field in ("input_name", "output_name"):
        if not getattr(state, field):
            raise UnsupportedConfig(f"{path}.{field} is missing")
    dims = tuple(state.dims)
    if min(dims, default=1) < 1:
        raise UnsupportedConfig(f"{path}.dims is {[*dims]}; a state is kept at one size, so each must be 1 or more")
    dtype = _dtype(state.data_type, f"{path}.data_type")
    if dtype is BYTES:
        raise UnsupportedConfig(f"{path}.data_type is TYPE_STRING; states are numbers")
    if len(state.initial_state) > 1:
        raise UnsupportedConfig(f"{path}.initial_state is there {len(state.initial_state)} times; one is kept")
    data_file = None
    for initial in state.initial_state:
        where = f"{path}.initial_state[0]"
        given = _dtype(initial.data_type, f"{where}.data_type")
        if given is not None and dtype is not None and given is not dtype:
            raise UnsupportedConfig(f"{where}.data_type is {given.wire}, and that of the state is {dtype.wire}")
        if initial.dims and dims and tuple(initial.dims) != dims:
            raise UnsupportedConfig(f"{where}.dims is {[*initial.dims]}, and that of the state is {[*dims]}")
        match initial.WhichOneof("state_data"):
            case "data_file":
                data_file = initial.data_file
            case None:
                raise UnsupportedConfig(f"{where} needs one of zero_data, data_file")
    return StateConfig(
        input=state.input_name, output=state.output_name, dtype=dtype, dims=dims or None, data_file=data_file
    )


def _control(control_input: pb.ModelSequenceBatching.ControlInput, path: str) -> ControlConfig:
    if not control_input.name:
        raise UnsupportedConfig(f"{path}.name is missing")
    if len(control_input.control) != 1:
        raise UnsupportedConfig(
            f"{path}.control is there {len(control_input.control)} times; each input takes exactly one"
        )
    control = control_input.control[0]
    path = f"{path}.control[0]"
    kind = ControlKind(pb.ModelSequenceBatching.Control.Kind.Name(control.kind))
    given = [field for field in _TRUTHS if getattr(control, field)]
    if kind is ControlKind.CORRELATION_ID:
        if given:
            raise UnsupportedConfig(f"{path}.{given[0]}: a correlation id is given by data_type")
        dtype = _dtype(control.data_type, f"{path}.data_type")
        if dtype is not None and dtype not in _IDS:
            names = ", ".join(each.wire for each in _IDS)
            raise UnsupportedConfig(f"{path}.data_type is {dtype.wire}; a correlation id is one of {names}")
        return ControlConfig(name=control_input.name, kind=kind, dtype=dtype)
    if len(given) != 1:
        raise UnsupportedConfig(f"{path} ({kind.value}) needs exactly one of {', '.join(_TRUTHS)}")
    if control.data_type:
        raise UnsupportedConfig(f"{path}.data_type belongs to {ControlKind.CORRELATION_ID.value}; remove it")
    values = [*getattr(control, given[0])]
    if len(values) != 2:
        raise UnsupportedConfig(f"{path}.{given[0]} is {values}; it must be two values, for false and for true")
    return ControlConfig(name=control_input.name, kind=kind, dtype=_TRUTHS[given[0]], false=values[0], true=values[1])


def _dtype(number: int, path: str) -> Dtype | None:
    """The datatype of a field; None for one that is not set."""
    dtype = dtypes.by_config(number)
    if number and dtype is None:
        raise UnsupportedConfig(f"{path} is {number}, which is no datatype")
    return dtype
