"""The configuration that a version runs with: what config.pbtxt says, completed by what the graph and the load said.

One rule binds it to ModelMetadata: where `max_batch_size` is above 0, shapes there begin with the batch and `dims` here
do not; where it is 0, both are the full shape.
"""

from collections.abc import Iterable

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.scheduling.ensemble import EnsembleScheduler
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.sequence_scheduler import SequenceScheduler
from forwardpass_server.tensors.signature import TensorSpec

BACKEND = "onnxruntime"


def config_in_force(version: LoadedVersion) -> pb.ModelConfig:
    """A new message; changing it changes nothing."""
    config = pb.ModelConfig()
    if version.settings.message is not None:
        config.CopyFrom(version.settings.message)
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    if isinstance(version.scheduler, EnsembleScheduler):  # nothing is left to be found out about one
        config.name = version.model
        return config
    signature = version.signature
    config.name, config.platform, config.backend = version.model, version.platform, BACKEND
    config.max_batch_size = signature.max_batch_size
    config.default_model_filename = version.settings.filename
    inputs = {each.name: each for each in config.input}
    outputs = {each.name: each for each in config.output}
    in_force = pb.ModelConfig(
        input=[_input(spec, inputs.get(spec.name), signature.max_batch_size) for spec in signature.inputs],
        output=[_output(spec, outputs.get(spec.name), signature.max_batch_size) for spec in signature.outputs],
    )
    config.ClearField("input")
    config.ClearField("output")
    config.MergeFrom(in_force)
    _complete_instances(config, version.provider)
    if isinstance(version.scheduler, GenerationScheduler):
        config.model_transaction_policy.decoupled = True
        config.max_batch_size = 0  # the first dimension of a prompt is no batch
    elif version.sequences is not None:
        _complete_sequences(config.sequence_batching, version.sequences)
    elif version.scheduler.limits.max_rows > 1:
        _complete_batching(config.dynamic_batching, version.scheduler.limits)
    else:  # each request runs alone, whatever was asked for
        config.ClearField("dynamic_batching")
    return config


def _input(spec: TensorSpec, said: pb.ModelInput | None, max_batch_size: int) -> pb.ModelInput:
    tensor = pb.ModelInput(name=spec.name, data_type=pb.DataType.Name(spec.dtype.config), optional=spec.optional)
    if said is not None:
        tensor.format = said.format
        if said.HasField("reshape"):
            tensor.reshape.CopyFrom(said.reshape)
    tensor.dims.extend(_dims(spec, max_batch_size))
    return tensor


def _output(spec: TensorSpec, said: pb.ModelOutput | None, max_batch_size: int) -> pb.ModelOutput:
    tensor = pb.ModelOutput(name=spec.name, data_type=pb.DataType.Name(spec.dtype.config))
    if said is not None:
        tensor.label_filename = said.label_filename
        if said.HasField("reshape"):
            tensor.reshape.CopyFrom(said.reshape)
    tensor.dims.extend(_dims(spec, max_batch_size))
    return tensor


def _dims(spec: TensorSpec, max_batch_size: int) -> Iterable[int]:
    return spec.wire_shape[1:] if max_batch_size else spec.wire_shape


def _complete_instances(config: pb.ModelConfig, provider: str) -> None:
    groups = config.instance_group or [config.instance_group.add()]
    for number, group in enumerate(groups):
        group.name = group.name or f"{config.name}_{number}"
        group.count = group.count or 1
        group.kind = (
            pb.ModelInstanceGroup.KIND_CPU if provider == "CPUExecutionProvider" else pb.ModelInstanceGroup.KIND_GPU
        )


def _complete_sequences(batching: pb.ModelSequenceBatching, sequences: SequenceScheduler) -> None:
    batching.max_sequence_idle_microseconds = round(sequences.idle_s * 1e6)
    if batching.WhichOneof("strategy_choice") is None:
        batching.direct.SetInParent()
    if batching.WhichOneof("strategy_choice") == "oldest":
        batching.oldest.max_candidate_sequences = sequences.slots // sequences.instances


def _complete_batching(batching: pb.ModelDynamicBatching, limits: Limits) -> None:
    batching.SetInParent()
    batching.max_queue_delay_microseconds = round(limits.max_delay_s * 1e6)
    batching.priority_levels = limits.priorities
    batching.default_priority_level = limits.default_priority
    policy = batching.default_queue_policy
    policy.max_queue_size = policy.max_queue_size or limits.max_requests
