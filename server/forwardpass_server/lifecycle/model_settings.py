"""What the configuration of one model comes to, in our own terms; and the way there from Triton's message."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.lifecycle import sequence_config
from forwardpass_server.lifecycle.repository import MODEL_FILE
from forwardpass_server.lifecycle.sequence_config import SequenceConfig
from forwardpass_server.lifecycle.unsupported import UnsupportedConfig as UnsupportedConfig
from forwardpass_server.lifecycle.versions import Every, Latest, Policy, Specific
from forwardpass_server.runtime.options import SessionOptions
from forwardpass_server.scheduling.queue_policy import QueuePolicies, QueuePolicy

LATEST = Latest(1)
"""The policy of a model that states none."""

TENSORRT = "tensorrt"

V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What the configuration of one model says; the defaults are what a model without one gets.

    Args:
        filename: of the ONNX file in a version folder.
        policy: which versions to serve.
        max_batch_size: rows of one run; 0: the model is not batched; None: found out at load.
        instances: sessions' worth of threads that run it.
        on_cpu: it runs on the CPU, whatever the server's device is.
        accelerator: options of TensorRT, by ONNX Runtime's names, where it is asked for on a GPU; None where not.
        session: how its session uses the machine.
        max_queue_delay_s: how long a batch may wait for mates, in seconds.
        priorities: levels that a request may ask for, 1 the first; 0: all are alike.
        default_priority: of requests that ask for none.
        queue_policies: how long requests may wait, and how many of them, by priority.
        max_latency_s: the deadline of requests that bring none, or a later one, in seconds from their arrival.
        refuse_nonfinite: answer no NaN and no infinity; such a request fails.
        allow_batch_dependent_answers: let requests share a run although the answer to one depends on the others.
        sequences: how it keeps sequences; None for a model that keeps none.
        hints: fields that are accepted and not used.
        message: the configuration as written; None when there was none.
        source: where it was written, for messages.
    """

    filename: str = MODEL_FILE
    policy: Policy = LATEST
    max_batch_size: int | None = None
    instances: int = 1
    on_cpu: bool = False
    accelerator: Mapping[str, str] | None = None
    session: SessionOptions = field(default_factory=SessionOptions)
    max_queue_delay_s: float = 0.0
    priorities: int = 0
    default_priority: int = 0
    queue_policies: QueuePolicies = field(default_factory=QueuePolicies)
    max_latency_s: float = math.inf
    refuse_nonfinite: bool = False
    allow_batch_dependent_answers: bool = False
    sequences: SequenceConfig | None = None
    hints: tuple[str, ...] = ()
    message: pb.ModelConfig | None = None
    source: str = "config.pbtxt"

    def most_waiting(self, otherwise: int) -> int:
        """Requests that may wait, all priorities together; `otherwise` for one that says nothing."""
        priorities = range(1, self.priorities + 1) if self.priorities else (0,)
        return sum(self.queue_policies.of(priority).max_requests or otherwise for priority in priorities)


def of(message: pb.ModelConfig, model: str, *, says_batch_size: bool, hints: tuple[str, ...]) -> ModelSettings:
    """The settings in a message all of whose fields are known to be honoured or hints.

    Args:
        message: the configuration.
        model: name of the model.
        says_batch_size: `max_batch_size` was written, as proto3 cannot tell a written 0 from none.
        hints: fields that are not used.

    Raises:
        UnsupportedConfig: a value that cannot be obeyed, by its field.
    """
    _check_identity(message, model)
    batching = message.dynamic_batching
    sequences = sequence_config.of(message)
    return ModelSettings(
        filename=_filename(message.default_model_filename),
        policy=_policy(message.version_policy),
        max_batch_size=_not_negative(message.max_batch_size, "max_batch_size") if says_batch_size else None,
        instances=sum(_not_negative(each.count, "instance_group.count") or 1 for each in message.instance_group) or 1,
        on_cpu=_on_cpu(message),
        accelerator=_accelerator(message),
        session=_session(message),
        max_queue_delay_s=sequences.max_delay_s if sequences else batching.max_queue_delay_microseconds * 1e-6,
        priorities=batching.priority_levels,
        default_priority=_default_priority(batching),
        queue_policies=_queue_policies(batching),
        max_latency_s=_milliseconds(message, "slo_p99_ms") * 1e-3,
        refuse_nonfinite=_switch(message, "refuse_nonfinite", default=False),
        allow_batch_dependent_answers=_switch(message, "allow_batch_dependent_answers", default=False),
        sequences=sequences,
        hints=hints,
        message=message,
    )


def _check_identity(message: pb.ModelConfig, model: str) -> None:
    if message.name and message.name != model:
        raise UnsupportedConfig(f"name is {message.name!r}, but the folder is {model!r}")
    platform = "ensemble" if message.HasField("ensemble_scheduling") else "onnxruntime_onnx"
    if message.platform != platform and (message.platform or platform == "ensemble"):
        raise UnsupportedConfig(
            f"platform is {message.platform!r}; served are onnxruntime_onnx, and ensemble together with "
            "ensemble_scheduling"
        )
    if message.backend not in ("", "onnxruntime"):
        raise UnsupportedConfig(f"backend is {message.backend!r}; only onnxruntime is served")


def _filename(name: str) -> str:
    if name in (".", "..") or "/" in name or "\0" in name:
        raise UnsupportedConfig(f"default_model_filename is {name!r}; it must be a plain file name")
    return name or MODEL_FILE


def _policy(policy: pb.ModelVersionPolicy) -> Policy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return Every()
        case "specific":
            return Specific(frozenset(policy.specific.versions))
        case _:
            return Latest(policy.latest.num_versions or 1)


def _on_cpu(message: pb.ModelConfig) -> bool:
    """Whether the instances run on the CPU in any case. All of them run in one place."""
    kinds = {each.kind for each in message.instance_group}
    for index, group in enumerate(message.instance_group):
        path = f"instance_group[{index}]"
        if group.kind == pb.ModelInstanceGroup.KIND_MODEL:
            raise UnsupportedConfig(f"{path}.kind is KIND_MODEL; ONNX Runtime runs on KIND_CPU, KIND_GPU or KIND_AUTO")
        if group.gpus:
            raise UnsupportedConfig(
                f"{path}.gpus is {list(group.gpus)}; each process serves every model on its own GPU: remove it, and "
                "choose by --device"
            )
    if len(kinds) > 1:
        names = ", ".join(pb.ModelInstanceGroup.Kind.Name(kind) for kind in sorted(kinds))
        raise UnsupportedConfig(f"instance_group has kinds {names}; all instances of a model run in one place")
    return kinds == {pb.ModelInstanceGroup.KIND_CPU}


def _accelerator(message: pb.ModelConfig) -> Mapping[str, str] | None:
    for index, each in enumerate(message.optimization.execution_accelerators.gpu_execution_accelerator):
        if each.name != TENSORRT:
            continue
        path = f"optimization.execution_accelerators.gpu_execution_accelerator[{index}].parameters"
        options = {}
        for key, value in each.parameters.items():
            if key == "precision_mode" and value in ("FP32", "FP16"):
                options["trt_fp16_enable"] = str(int(value == "FP16"))
            elif key == "max_workspace_size_bytes" and value.isdecimal():
                options["trt_max_workspace_size"] = value
            else:
                raise UnsupportedConfig(
                    f"{path}[{key}] is {value!r}; supported are precision_mode (FP32, FP16) and "
                    "max_workspace_size_bytes (a number)"
                )
        return options
    return None


def _session(message: pb.ModelConfig) -> SessionOptions:
    level = message.optimization.graph.level
    if level not in (-1, 0, 1, 2):
        raise UnsupportedConfig(f"optimization.graph.level is {level}; it must be -1, 0, 1 or 2")
    return SessionOptions(
        # 0 is Triton's "as many as there are cores"; here the server's setting says how many.
        intra_op_threads=_parameter(message, "intra_op_thread_count", _threads, "a number from 0 up", 0) or None,
        inter_op_threads=_parameter(message, "inter_op_thread_count", _threads, "a number from 0 up", 0) or 1,
        parallel=_parameter(message, "execution_mode", {"0": False, "1": True}.__getitem__, "0 or 1", False),
        graph_level=level,
        memory_arena=_parameter(message, "enable_mem_arena", _boolean, "0 or 1", False),
        memory_pattern=_parameter(message, "enable_mem_pattern", _boolean, "0 or 1", True),
    )


def _threads(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 1024:
        raise ValueError(text)
    return number


def _boolean(text: str) -> bool:
    return {"0": False, "1": True, "false": False, "true": True}[text.lower()]


def _queue_policies(batching: pb.ModelDynamicBatching) -> QueuePolicies:
    for priority in batching.priority_queue_policy:
        if not 0 < priority <= batching.priority_levels:
            raise UnsupportedConfig(
                f"dynamic_batching.priority_queue_policy[{priority}]: there are {batching.priority_levels} "
                "priority_levels, and the first is 1"
            )
    return QueuePolicies(
        _queue_policy(batching.default_queue_policy),
        {priority: _queue_policy(policy) for priority, policy in batching.priority_queue_policy.items()},
    )


def _queue_policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        max_requests=policy.max_queue_size or None,
        timeout_s=policy.default_timeout_microseconds * 1e-6 or math.inf,
        callers_may_shorten=policy.allow_timeout_override,
        delays=policy.timeout_action == pb.ModelQueuePolicy.DELAY,
    )


def _default_priority(batching: pb.ModelDynamicBatching) -> int:
    levels, default = batching.priority_levels, batching.default_priority_level
    if bool(levels) != bool(default) or default > levels:
        raise UnsupportedConfig(
            f"dynamic_batching.default_priority_level is {default} with priority_levels {levels}; it must be one of "
            "them"
        )
    return default


def _not_negative(number: int, path: str) -> int:
    if number < 0:
        raise UnsupportedConfig(f"{path} is {number}; it must not be negative")
    return number


def _milliseconds(message: pb.ModelConfig, key: str) -> float:
    def read(text: str) -> float:
        number = float(text)
        if not 0 < number < math.inf:
            raise ValueError(text)
        return number

    return _parameter(message, key, read, "a number above 0", math.inf)


def _switch(message: pb.ModelConfig, key: str, *, default: bool) -> bool:
    return _parameter(message, key, {"true": True, "false": False}.__getitem__, "'true' or 'false'", default)


def _parameter(message: pb.ModelConfig, key: str, read: Callable[[str], V], wants: str, default: V) -> V:
    """The parameter `key`; `default` when it is not there."""
    if key not in message.parameters:
        return default
    text = message.parameters[key].string_value
    try:
        return read(text)
    except (ValueError, KeyError) as exc:
        raise UnsupportedConfig(f"parameters[{key}] is {text!r}; it must be {wants}") from exc
