"""`config.pbtxt`, Triton's optional configuration of one model: read, honour, accept as a hint, or refuse by name.

The one thing to know: what is not listed here is refused. A field that changes answers, shapes or order must be obeyed
or refused; a field that only promises speed (`HINTS`) may be passed over, and is logged. So a field that a later Triton
adds is refused until somebody has thought about it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import Message

from forwardpass_proto import POOL
from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle.repository import MODEL_FILE, ModelFolder, Stamp
from forwardpass_server.lifecycle.verify import open_inside
from forwardpass_server.lifecycle.versions import Every, Latest, Policy, Specific
from forwardpass_server.logs import event
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

log = logging.getLogger(__name__)

CONFIG_BYTES_MAX = 1 << 20

HONOURED = (
    r"name|platform|backend|max_batch_size|default_model_filename",
    r"version_policy|version_policy\.(latest|latest\.num_versions|all|specific|specific\.versions)",
    r"(input|output)\[\d+\]\.(name|data_type|dims)",
    r"input\[\d+\]\.optional",
    r"output\[\d+\]\.label_filename",
    r"instance_group\[\d+\](\.count)?",
    r"dynamic_batching|dynamic_batching\.max_queue_delay_microseconds",
    r"dynamic_batching\.default_queue_policy(\.max_queue_size)?",
    r"response_cache(\.enable)?",
    r"ensemble_scheduling\.step\[\d+\]\.(model_name|model_version|(input|output)_map\[.*)",
    r"dynamic_batching\.(priority_levels|default_priority_level)",
    r"parameters\[(slo_p99_ms|refuse_nonfinite|allow_batch_dependent_answers)\]",
)
"""Obeyed. The `parameters` are our own; Triton gives every backend that map for such."""

HINTS = (
    r"optimization(\..*)?",  # execution accelerators, graph level, pinned memory: how fast, never what
    r"instance_group\[\d+\]\.(name|kind|gpus|host_policy|profile|rate_limiter.*)",  # where: --device decides
    r"dynamic_batching\.preferred_batch_size",  # batches are as large as what is waiting
    r"input\[\d+\]\.format",  # NHWC or NCHW: a name for the dims, which are checked themselves
    r"model_warmup(\[\d+\])?(\..*)?",  # every batch size is warmed in any case
    r"parameters(\[.*)?",  # of other backends: threads, arenas
    r"metric_tags(\[.*)?|model_metrics(\..*)?",
    r"model_transaction_policy",  # empty, or with decoupled: false, which is how we are
)
"""Accepted, not used, and logged."""

LATEST = Latest(1)
"""The policy of a model that states none."""

_HONOURED = re.compile("|".join(f"(?:{each})" for each in HONOURED))
_HINTS = re.compile("|".join(f"(?:{each})" for each in HINTS))
_MAX_BATCH_SIZE = re.compile(r"^[^#\n]*\bmax_batch_size\s*:", re.MULTILINE)


class UnsupportedConfig(LoadFailed):
    """`config.pbtxt` cannot be read, contradicts the model, or asks for something that would have to be obeyed."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What the configuration of one model says; the defaults are what a model without one gets.

    Args:
        filename: of the ONNX file in a version folder.
        policy: which versions to serve.
        max_batch_size: rows of one run; 0: the model is not batched; None: found out at load.
        instances: sessions' worth of threads that run it.
        max_queue_delay_s: how long a batch may wait for mates, in seconds.
        max_queue_requests: requests that may wait; None: as the server's setting says.
        priorities: levels that a request may ask for, 1 the first; 0: all are alike.
        default_priority: of requests that ask for none.
        max_latency_s: the deadline of requests that bring none, or a later one, in seconds from their arrival.
        refuse_nonfinite: answer no NaN and no infinity; such a request fails.
        allow_batch_dependent_answers: let requests share a run although the answer to one depends on the others.
        hints: fields that are accepted and not used.
        message: the configuration as written; None when there was none.
    """

    filename: str = MODEL_FILE
    policy: Policy = LATEST
    max_batch_size: int | None = None
    instances: int = 1
    max_queue_delay_s: float = 0.0
    max_queue_requests: int | None = None
    priorities: int = 0
    default_priority: int = 0
    max_latency_s: float = math.inf
    refuse_nonfinite: bool = False
    allow_batch_dependent_answers: bool = False
    hints: tuple[str, ...] = ()
    message: pb.ModelConfig | None = None


def parse(text: str, *, model: str) -> ModelSettings:
    """Read a configuration.

    Args:
        text: the file.
        model: name of the folder it lies in.

    Raises:
        UnsupportedConfig: with the line, or the field.
    """
    message = pb.ModelConfig()
    try:
        text_format.Parse(text, message, descriptor_pool=POOL)
    except text_format.ParseError as exc:
        raise UnsupportedConfig(f"config.pbtxt cannot be read: {exc}") from exc
    paths = list(fields_set(message))
    for path in paths:
        if not _HONOURED.fullmatch(path) and not _HINTS.fullmatch(path):
            raise UnsupportedConfig(
                f"config.pbtxt: {path} is not supported, and the answers may depend on it; remove it, or serve "
                "this model elsewhere"
            )
    _check_identity(message, model)
    group = message.instance_group
    # proto3 cannot tell an unset 0 from a written one. Dims only have a meaning together with max_batch_size, so a file
    # that gives them has said 0; a file that gives neither leaves it to us.
    has_said = (
        _MAX_BATCH_SIZE.search(text)
        or any(each.dims for each in message.input)
        or any(each.dims for each in message.output)
    )
    return ModelSettings(
        filename=_filename(message.default_model_filename),
        policy=_policy(message.version_policy),
        max_batch_size=_not_negative(message.max_batch_size, "max_batch_size") if has_said else None,
        instances=sum(_not_negative(each.count, "instance_group.count") or 1 for each in group) or 1,
        max_queue_delay_s=message.dynamic_batching.max_queue_delay_microseconds * 1e-6,
        max_queue_requests=message.dynamic_batching.default_queue_policy.max_queue_size or None,
        **_priorities(message.dynamic_batching),
        max_latency_s=_milliseconds(message, "slo_p99_ms") * 1e-3,
        refuse_nonfinite=_switch(message, "refuse_nonfinite"),
        allow_batch_dependent_answers=_switch(message, "allow_batch_dependent_answers"),
        hints=tuple(path for path in paths if not _HONOURED.fullmatch(path)),
        message=message,
    )


class ConfigReader:
    """Reads `config.pbtxt` of each model, again only when it changed. Repository thread.

    Args:
        root: of the repository; a file outside of it is not read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[Stamp, ModelSettings | LoadFailed]] = {}

    def settings(self, folder: ModelFolder) -> ModelSettings | LoadFailed:
        """What it says, the defaults when there is none, or why it cannot be used."""
        stamp, settings = self._known.get(folder.name, (None, None))
        if settings is None or stamp != folder.stamp:
            settings = self._read(folder)
            self._known[folder.name] = (folder.stamp, settings)
        return settings

    def _read(self, folder: ModelFolder) -> ModelSettings | LoadFailed:
        if folder.config is None:
            return ModelSettings()
        try:
            with open_inside(self._root, folder.config) as file:
                content = file.read(CONFIG_BYTES_MAX + 1)
            if len(content) > CONFIG_BYTES_MAX:
                raise UnsupportedConfig(f"config.pbtxt is larger than {CONFIG_BYTES_MAX} bytes")
            settings = parse(content.decode(), model=folder.name)
        except LoadFailed as exc:
            return exc
        except (OSError, UnicodeDecodeError) as exc:
            return UnsupportedConfig(f"config.pbtxt cannot be read: {getattr(exc, 'strerror', None) or exc}")
        if settings.hints:
            fields = ", ".join(settings.hints)
            event(log, logging.INFO, "config.pbtxt: hints not used", model=folder.name, fields=fields)
        return settings


def fields_set(message: Message, prefix: str = "") -> Iterator[str]:
    """The path of every field that is set and holds no further ones: `input[0].dims`, `parameters[k]`."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if isinstance(value, Message):
            yield from fields_set(value, f"{path}.") if value.ListFields() else [path]
        elif isinstance(value, Mapping):
            yield from (f"{path}[{key}]" for key in value)
        elif field.message_type is not None:
            for index, each in enumerate(value):
                yield from fields_set(each, f"{path}[{index}].") if each.ListFields() else [f"{path}[{index}]"]
        else:
            yield path


def applied(settings: ModelSettings, signature: Signature) -> Signature:
    """The signature that is served: the graph's, narrowed to what the configuration says of inputs and outputs.

    A configured dimension fixes one that the graph leaves open; configured outputs leave out the others.

    Raises:
        UnsupportedConfig: the graph has no such tensor, or one of another type or shape.
    """
    message = settings.message
    if message is None:
        return signature
    batched = message.max_batch_size > 0
    if batched:
        _check_batched(signature)
    inputs = _narrowed(signature.inputs, message.input, "input", batched)
    outputs = _narrowed(signature.outputs, message.output, "output", batched)
    if message.output:
        names = {each.name for each in message.output}
        outputs = tuple(spec for spec in outputs if spec.name in names)
    return dataclasses.replace(signature, inputs=inputs, outputs=outputs)


def _narrowed(
    specs: Sequence[TensorSpec], configured: Sequence[pb.ModelInput | pb.ModelOutput], field: str, batched: bool
) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in specs}
    for index, each in enumerate(configured):
        path = f"config.pbtxt: {field}[{index}]"
        spec = by_name.get(each.name)
        if spec is None:
            raise UnsupportedConfig(f"{path} is {each.name!r}; the model has {', '.join(map(repr, by_name))}")
        dtype = dtypes.by_config(each.data_type)
        if each.data_type and dtype is not spec.dtype:
            name = pb.DataType.Name(each.data_type)
            raise UnsupportedConfig(f"{path} ({each.name!r}) says {name}; the model has {spec.dtype.wire}")
        if isinstance(each, pb.ModelInput) and each.optional and not spec.optional:
            raise UnsupportedConfig(f"{path} ({each.name!r}) is optional; in the model it is required")
        if each.dims:
            shape = _narrowed_shape(spec, each.dims, path, batched)
            by_name[each.name] = dataclasses.replace(spec, shape=shape, ranked=True)
    return tuple(by_name.values())


def _narrowed_shape(spec: TensorSpec, dims: Sequence[int], path: str, batched: bool) -> tuple[int | str | None, ...]:
    if not spec.ranked:
        return (*((None,) if batched else ()), *(None if dim == -1 else dim for dim in dims))
    first = spec.shape[:1] if batched else ()
    rest = spec.shape[len(first) :]
    agree = len(rest) == len(dims) and all(
        wanted == -1 or (wanted >= 0 and (not isinstance(has, int) or has == wanted))
        for has, wanted in zip(rest, dims, strict=True)
    )
    if not agree:
        has_text = ", ".join("-1" if not isinstance(dim, int) else str(dim) for dim in rest)
        note = " behind the batch dimension" if batched else ""
        raise UnsupportedConfig(f"{path} ({spec.name!r}) says dims {list(dims)}; the model has [{has_text}]{note}")
    return (*first, *(has if wanted == -1 else wanted for has, wanted in zip(rest, dims, strict=True)))


def _check_batched(signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if spec.ranked and (not spec.shape or isinstance(spec.shape[0], int)):
            raise UnsupportedConfig(
                f"config.pbtxt: max_batch_size is above 0, but the first dimension of {spec.name!r} is not dynamic "
                f"(shape {spec.shape_text()}); set it to 0, or export the model with a dynamic batch dimension"
            )


def _check_identity(message: pb.ModelConfig, model: str) -> None:
    if message.name and message.name != model:
        raise UnsupportedConfig(f"config.pbtxt: name is {message.name!r}, but the folder is {model!r}")
    platform = "ensemble" if message.HasField("ensemble_scheduling") else "onnxruntime_onnx"
    if message.platform != platform and (message.platform or platform == "ensemble"):
        raise UnsupportedConfig(
            f"config.pbtxt: platform is {message.platform!r}; served are onnxruntime_onnx, and ensemble together with "
            "ensemble_scheduling"
        )
    if message.backend not in ("", "onnxruntime"):
        raise UnsupportedConfig(f"config.pbtxt: backend is {message.backend!r}; only onnxruntime is served")


def _filename(name: str) -> str:
    if name in (".", "..") or "/" in name or "\0" in name:
        raise UnsupportedConfig(f"config.pbtxt: default_model_filename is {name!r}; it must be a plain file name")
    return name or MODEL_FILE


def _policy(policy: pb.ModelVersionPolicy) -> Policy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return Every()
        case "specific":
            return Specific(frozenset(policy.specific.versions))
        case _:
            return Latest(policy.latest.num_versions or 1)


def _not_negative(number: int, path: str) -> int:
    if number < 0:
        raise UnsupportedConfig(f"config.pbtxt: {path} is {number}; it must not be negative")
    return number


def _priorities(batching: pb.ModelDynamicBatching) -> dict[str, int]:
    levels, default = batching.priority_levels, batching.default_priority_level
    if bool(levels) != bool(default) or default > levels:
        raise UnsupportedConfig(
            f"config.pbtxt: dynamic_batching.default_priority_level is {default} with priority_levels {levels}; it "
            "must be one of them"
        )
    return {"priorities": levels, "default_priority": default}


def _milliseconds(message: pb.ModelConfig, key: str) -> float:
    """The parameter `key`, a number above 0; infinity when it is not there."""
    if key not in message.parameters:
        return math.inf
    text = message.parameters[key].string_value
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UnsupportedConfig(f"config.pbtxt: parameters[{key}] is {text!r}; it must be a number above 0")
    return number


def _switch(message: pb.ModelConfig, key: str) -> bool:
    """The parameter `key`, "true" or "false"; False when it is not there."""
    text = message.parameters[key].string_value if key in message.parameters else "false"
    if text not in ("true", "false"):
        raise UnsupportedConfig(f"config.pbtxt: parameters[{key}] is {text!r}; it must be 'true' or 'false'")
    return text == "true"
