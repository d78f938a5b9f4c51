"""Ensembles: models whose config.pbtxt says `platform: "ensemble"` and names other models as their steps.

They have no file of their own, so what can be wrong with one lies between its steps, and is found when it is loaded:
tensors that nobody makes or that two make, circles, models that are not there, datatypes and shapes that do not agree.
An ensemble is loaded again, which costs nothing, whenever another version of a step begins to serve; when a step is
gone, the ensemble is not ready, and says which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import ForwardpassError, LoadFailed
from forwardpass_server.lifecycle.leases import Lease
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.repository import VersionFolder
from forwardpass_server.lifecycle.states import State
from forwardpass_server.scheduling.ensemble import EnsembleScheduler, OnLoop, Step
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

PLATFORM = "ensemble"

Load = Callable[[VersionFolder, ModelSettings, Callable[[State], None]], LoadedVersion]
Find = Callable[[str, str], LoadedVersion]
"""Model and version as a request writes it → what serves. Raises NotFound or NotReady. Any thread."""


class EnsembleLoader:
    """Loads ensembles by itself and leaves other models to `load`. Repository thread.

    Args:
        load: of models.
        find: looks up the versions of steps.
        lend: leases them.
        on_loop: runs something soon on the loop thread.
        max_requests: that may be under way in one ensemble, where its configuration does not say.
    """

    def __init__(
        self,
        load: Load,
        *,
        find: Find,
        lend: Callable[[str, str], Lease[LoadedVersion]],
        on_loop: OnLoop,
        max_requests: int,
    ) -> None:
        self._load = load
        self._find = find
        self._lend = lend
        self._on_loop = on_loop
        self._max_requests = max_requests

    def __call__(self, folder: VersionFolder, settings: ModelSettings, enter: Callable[[State], None]) -> LoadedVersion:
        """Load one version.

        Raises:
            LoadFailed: the reason, for the repository index.
        """
        if settings.message is None or not settings.message.HasField("ensemble_scheduling"):
            return self._load(folder, settings, enter)
        enter(State.VERIFYING)
        config = settings.message
        signature = signature_of(config)
        steps = in_order(steps_of(config), signature)
        enter(State.LOADING)
        versions = {step: self._version(step) for step in sorted(steps, key=lambda step: step.number)}
        check(steps, [versions[step].signature for step in steps], signature)
        # Its steps were warmed and proved one by one; by itself it computes nothing.
        enter(State.WARMING)
        enter(State.PROVING)
        proved = all(version.proved for version in versions.values())
        return LoadedVersion(
            model=folder.model,
            number=folder.version,
            signature=signature,
            scheduler=EnsembleScheduler(
                folder.model,
                steps,
                signature,
                lend=self._lend,
                on_loop=self._on_loop,
                max_requests=self._max_requests,
            ),
            settings=settings,
            provider=PLATFORM,
            proved=proved,
            sha256=hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest(),
            properties={
                "forwardpass.provider": PLATFORM,
                "forwardpass.proved": "true" if proved else "false",
                "forwardpass.steps": ", ".join(f"{each.model}/{each.number}" for each in versions.values()),
            },
            release_session=lambda: None,
            platform=PLATFORM,
            cached=config.response_cache.enable,
        )

    def _version(self, step: Step) -> LoadedVersion:
        try:
            version = self._find(step.model, step.version)
        except ForwardpassError as exc:
            raise LoadFailed(f"{step}: {exc}") from exc
        if isinstance(version.scheduler, GenerationScheduler):
            raise LoadFailed(f"{step}: a generator writes texts piece by piece, and cannot be a step")
        if version.sequences is not None:
            raise LoadFailed(f"{step}: its model keeps sequences (sequence_batching), and cannot be a step")
        return version


def steps_of(config: pb.ModelConfig) -> tuple[Step, ...]:
    """The steps, as configured.

    Raises:
        UnsupportedConfig: one without a model, or that takes or makes no tensor.
    """
    steps = []
    for number, step in enumerate(config.ensemble_scheduling.step, 1):
        if not step.model_name or not step.input_map or not step.output_map:
            raise UnsupportedConfig(
                f"config.pbtxt: ensemble_scheduling.step[{number - 1}] needs model_name, input_map and output_map"
            )
        if step.model_version < -1:
            raise UnsupportedConfig(
                f"config.pbtxt: ensemble_scheduling.step[{number - 1}].model_version is {step.model_version}; it must "
                "be a version, or -1 for the latest"
            )
        steps.append(
            Step(
                number=number,
                model=step.model_name,
                version=str(step.model_version) if step.model_version > 0 else "",
                inputs=tuple(sorted(step.input_map.items())),
                outputs=tuple(sorted(step.output_map.items())),
            )
        )
    if not steps:
        raise UnsupportedConfig("config.pbtxt: ensemble_scheduling has no step")
    return tuple(steps)


def models_of(settings: ModelSettings | LoadFailed) -> tuple[tuple[str, str], ...]:
    """Model and version (as a request writes it) of each step; () for what is no ensemble."""
    if isinstance(settings, LoadFailed) or settings.message is None:
        return ()
    steps = settings.message.ensemble_scheduling.step
    return tuple((step.model_name, str(step.model_version) if step.model_version > 0 else "") for step in steps)


def steps_first(names: Iterable[str], models: Mapping[str, Iterable[str]]) -> list[str]:
    """`names`, such that the models of an ensemble's steps come before it.

    Args:
        names: of models.
        models: of each ensemble, the models of its steps.
    """
    ordered: dict[str, None] = {}
    known = sorted(names)

    def visit(name: str, above: frozenset[str]) -> None:
        for step in models.get(name, ()):
            if step in known and step not in above:  # a circle is found when its members are loaded
                visit(step, above | {step})
        ordered.setdefault(name)

    for name in known:
        visit(name, frozenset({name}))
    return [*ordered]


def signature_of(config: pb.ModelConfig) -> Signature:
    """The inputs and outputs that an ensemble states.

    Raises:
        UnsupportedConfig: none, or one without name or datatype.
    """
    batch: tuple[str, ...] = ("batch",) if config.max_batch_size > 0 else ()

    def specs(field: str, tensors: Sequence[pb.ModelInput | pb.ModelOutput]) -> tuple[TensorSpec, ...]:
        made = []
        for index, tensor in enumerate(tensors):
            dtype = dtypes.by_config(tensor.data_type)
            if not tensor.name or dtype is None:
                raise UnsupportedConfig(f"config.pbtxt: {field}[{index}] of an ensemble needs name, data_type and dims")
            shape = (*batch, *(dim if dim >= 0 else None for dim in tensor.dims))
            made.append(TensorSpec(tensor.name, dtype, shape))
        if not made:
            raise UnsupportedConfig(f"config.pbtxt: an ensemble needs {field}")
        return tuple(made)

    return Signature(specs("input", config.input), specs("output", config.output), config.max_batch_size)


def in_order(steps: Sequence[Step], signature: Signature) -> tuple[Step, ...]:
    """The steps, such that each comes after those whose tensors it takes.

    Raises:
        UnsupportedConfig: a tensor that nobody makes, or two do; an input that nobody takes; a circle.
    """
    maker: dict[str, Step | None] = {spec.name: None for spec in signature.inputs}
    for step in steps:
        for _, tensor in step.outputs:
            if tensor in maker:
                other = maker[tensor] or "the ensemble's input"
                raise UnsupportedConfig(f"config.pbtxt: tensor {tensor!r} is made by {other} and by {step}")
            maker[tensor] = step
    taken = {tensor for step in steps for _, tensor in step.inputs}
    for tensor, who in [(tensor, str(step)) for step in steps for _, tensor in step.inputs] + [
        (spec.name, "the ensemble's output") for spec in signature.outputs
    ]:
        if tensor not in maker:
            raise UnsupportedConfig(f"config.pbtxt: tensor {tensor!r}, which {who} needs, is made by no step")
    idle = [spec.name for spec in signature.inputs if spec.name not in taken]
    if idle:
        raise UnsupportedConfig(f"config.pbtxt: input {idle[0]!r} of the ensemble is taken by no step")
    needs = {step: {made for _, tensor in step.inputs if (made := maker[tensor])} for step in steps}
    sorter = TopologicalSorter(needs)
    try:
        sorter.prepare()
    except CycleError as exc:
        circle = " → ".join(str(step) for step in reversed(exc.args[1]))
        raise UnsupportedConfig(f"config.pbtxt: the steps go in a circle: {circle}") from exc
    ordered: list[Step] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=lambda step: step.number)
        ordered += ready
        sorter.done(*ready)
    return tuple(ordered)


def check(steps: Sequence[Step], models: Sequence[Signature], signature: Signature) -> None:
    """Find out whether tensors fit from where they are made to where they are taken.

    Args:
        steps: in order.
        models: the signature of each step's version.
        signature: of the ensemble.

    Raises:
        LoadFailed: they do not; says which tensor, and what each side says of it.
    """
    made: dict[str, tuple[TensorSpec, str]] = {spec.name: (spec, "the ensemble") for spec in signature.inputs}
    for step, model in zip(steps, models, strict=True):
        if 0 < model.max_batch_size < signature.max_batch_size:
            raise LoadFailed(
                f"{step} takes at most {model.max_batch_size} rows, and max_batch_size of the ensemble is "
                f"{signature.max_batch_size}"
            )
        inputs = {spec.name: spec for spec in model.inputs}
        for name, tensor in step.inputs:
            _agree(tensor, *made[tensor], _spec(inputs, name, step, "input"), str(step))
        given = {name for name, _ in step.inputs}
        missing = [spec.name for spec in model.inputs if spec.name not in given and not spec.optional]
        if missing:
            raise LoadFailed(f"{step}: nothing is given to input {missing[0]!r} of the model")
        outputs = {spec.name: spec for spec in model.outputs}
        for name, tensor in step.outputs:
            made[tensor] = (_spec(outputs, name, step, "output"), str(step))
    for spec in signature.outputs:
        _agree(spec.name, *made[spec.name], spec, "the ensemble")


def _spec(specs: Mapping[str, TensorSpec], name: str, step: Step, role: str) -> TensorSpec:
    if name not in specs:
        raise LoadFailed(f"{step}: the model has no {role} {name!r}; it has {', '.join(map(repr, specs))}")
    return specs[name]


def _agree(tensor: str, made: TensorSpec, maker: str, taken: TensorSpec, taker: str) -> None:
    if made.dtype is not taken.dtype:
        raise LoadFailed(
            f"tensor {tensor!r} is {made.dtype.wire} as {maker} makes it, and {taken.dtype.wire} as {taker} has it"
        )
    if not made.ranked or not taken.ranked:
        return
    fits = len(made.shape) == len(taken.shape) and all(
        not isinstance(one, int) or not isinstance(other, int) or one == other
        for one, other in zip(made.shape, taken.shape, strict=True)
    )
    if not fits:
        raise LoadFailed(
            f"tensor {tensor!r} has shape {made.shape_text()} as {maker} makes it, and {taken.shape_text()} as {taker} "
            "has it"
        )
