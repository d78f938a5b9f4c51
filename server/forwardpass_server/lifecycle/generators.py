"""From a session whose graph is a generator to a version that writes texts.

Its configuration speaks of what callers see, a prompt and a text, and not of the tensors of the graph; its golden
examples are of the graph. Warm-up makes it write, with random numbers, in batches of every size; where a text would
depend on what is written beside it, each is written alone, so that a seed always gives the same text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.runtime.warmup import PROBE_ROWS, buckets, probe_batching, warm
from forwardpass_server.scheduling.cost import CostCurve
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.generator import ON_WIRE, Generator

NOT_FOR_GENERATORS = (
    "dynamic_batching",
    "ensemble_scheduling",
    "model_warmup",
    "response_cache",
    "sequence_batching",
)
"""Fields of a configuration that mean nothing here, or other than what would be done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmed:
    """What warm-up came to.

    Args:
        slots: texts that may be written in one run.
        alone_because: why only one may; None where several may.
        cost: of runs of the most steps, by their rows.
    """

    slots: int
    alone_because: str | None
    cost: CostCurve


def check_settings(settings: ModelSettings) -> None:
    """Find out whether a configuration is one for a generator.

    Raises:
        UnsupportedConfig: it is not; names the field.
    """
    message = settings.message or pb.ModelConfig()
    for name in NOT_FOR_GENERATORS:
        if message.HasField(name) if message.DESCRIPTOR.fields_by_name[name].has_presence else getattr(message, name):
            raise UnsupportedConfig(f"{settings.source}: {name} is set, and the model is a generator: remove it")
    if settings.instances > 1:
        raise UnsupportedConfig(
            f"{settings.source}: instance_group says {settings.instances} instances; a generator has one, which writes "
            "max_batch_size texts in one run"
        )
    for field, specs, configured in (
        ("input", ON_WIRE.inputs, message.input),
        ("output", ON_WIRE.outputs, message.output),
    ):
        spec = specs[0]
        for each in configured:
            dtype = dtypes.by_config(each.data_type)
            if each.name != spec.name or dtype not in (None, spec.dtype) or [*each.dims] not in ([], [1]):
                raise UnsupportedConfig(
                    f"{settings.source}: {field} of a generator is '{spec.name}', {spec.dtype.wire} with dims [ 1 ]"
                )


def check_no_generator(settings: ModelSettings) -> None:
    """Refuse for any other model what only generators do. Raises UnsupportedConfig."""
    if settings.message is not None and settings.message.model_transaction_policy.decoupled:
        raise UnsupportedConfig(
            f"{settings.source}: model_transaction_policy.decoupled is true, and the model is no generator: it gives "
            "one answer to each request"
        )


def warmed(run: Run, generator: Generator, slots: int) -> Warmed:
    """Let it write in every batch size up to `slots`.

    Raises:
        InvalidRequest, RunFailed: the model does not run.
        LoadFailed: it does not give back what a generator has to.
    """
    probe = _writing(generator, PROBE_ROWS)
    _check_answers(run, generator, probe)
    alone_because = probe_batching(run, generator.signature, example=probe)
    slots = slots if alone_because is None else 1
    cost = warm(run, generator.signature, buckets(slots), example=_writing(generator, 1))
    return Warmed(slots=slots, alone_because=alone_because, cost=cost)


def _writing(generator: Generator, rows: int) -> list[np.ndarray | None]:
    """The inputs of a run in which every row writes as much as it can; the last one by top_k and top_p."""
    rng = np.random.default_rng(0)
    steps = generator.steps_max
    column = np.ones((rows, 1))
    plain, last = column[:-1], column[-1:]
    of: dict[str, np.ndarray] = {
        "token": rng.integers(0, len(generator.vocabulary), (rows, 1)),
        "forced": np.full((rows, steps), -1, np.int64),
        "uniform": rng.random((rows, steps), np.float32),
        "temperature": column.astype(np.float32),
        "top_k": np.concatenate([plain * 0, last * (2 if rows > 1 else 0)]).astype(np.int64),
        "top_p": np.concatenate([plain, last * (0.5 if rows > 1 else 1)]).astype(np.float32),
    }
    inputs: list[np.ndarray | None] = [None] * len(generator.signature.inputs)
    for name, index in generator.inputs.items():
        inputs[index] = of[name]
    for state in generator.states:
        inputs[state.input] = np.zeros((rows, *state.shape), state.dtype.numpy)
    return inputs


def _check_answers(run: Run, generator: Generator, inputs: Sequence[np.ndarray | None]) -> None:
    """Shapes that a graph leaves open, and tokens that are none, are found here and not by a caller."""
    rows = PROBE_ROWS
    wanted = [generator.tokens, *(state.output for state in generator.states)]
    shapes = [(rows, generator.steps_max), *((rows, *state.shape) for state in generator.states)]
    for index, answer, shape in zip(wanted, run(inputs, wanted), shapes, strict=True):
        if answer.shape != shape:
            name = generator.signature.outputs[index].name
            raise LoadFailed(f"output '{name}' of the generator has shape {[*answer.shape]}, expected {[*shape]}")
        if index == generator.tokens and not ((answer >= 0) & (answer < len(generator.vocabulary))).all():
            raise LoadFailed(f"the generator wrote tokens outside of its vocabulary of {len(generator.vocabulary)}")
