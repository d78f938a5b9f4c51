"""`config.pbtxt`, Triton's optional configuration of one model: read, honour, accept as a hint, or refuse by name.

The one thing to know: what is not listed here is refused. A field that changes answers, shapes or order must be obeyed
or refused; a field that only promises speed (`HINTS`) may be passed over, and is logged. So a field that a later Triton
adds is refused until somebody has thought about it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf import json_format, text_format
from google.protobuf.message import Message

from forwardpass_proto import POOL
from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle import model_settings
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.repository import ModelFolder, Stamp
from forwardpass_server.lifecycle.verify import open_inside
from forwardpass_server.logs import event

log = logging.getLogger(__name__)

CONFIG_BYTES_MAX = 1 << 20

JSON_DEPTH_MAX = 16
"""No message of ModelConfig nests half as deep."""

HONOURED = (
    r"name|platform|backend|max_batch_size|default_model_filename",
    r"version_policy|version_policy\.(latest|latest\.num_versions|all|specific|specific\.versions)",
    r"(input|output)\[\d+\]\.(name|data_type|dims|reshape|reshape\.shape)",
    r"input\[\d+\]\.optional",
    r"output\[\d+\]\.label_filename",
    r"instance_group\[\d+\](\.(name|count|kind|gpus))?",
    r"dynamic_batching|dynamic_batching\.(max_queue_delay_microseconds|priority_levels|default_priority_level)",
    r"dynamic_batching\.default_queue_policy(\..*)?|dynamic_batching\.priority_queue_policy\[.*",
    r"response_cache(\.enable)?",
    r"sequence_batching|sequence_batching\.max_sequence_idle_microseconds",
    r"sequence_batching\.direct(\.(max_queue_delay_microseconds|minimum_slot_utilization))?",
    r"sequence_batching\.oldest(\.(max_candidate_sequences|max_queue_delay_microseconds))?",
    r"sequence_batching\.control_input\[\d+\](\.name|\.control\[\d+\](\.\w+)?)?",
    r"sequence_batching\.state\[\d+\](\.(input_name|output_name|data_type|dims))?",
    r"sequence_batching\.state\[\d+\]\.initial_state\[\d+\](\.(data_type|dims|zero_data|data_file|name))?",
    r"ensemble_scheduling\.step\[\d+\]\.(model_name|model_version|(input|output)_map\[.*)",
    r"model_warmup\[\d+\](\..*)?",
    r"model_transaction_policy(\.decoupled)?",  # of generators; false for all others
    r"optimization|optimization\.graph(\.level)?",
    r"optimization\.execution_accelerators(\.gpu_execution_accelerator\[\d+\]\.(name|parameters\[.*))?",
    r"parameters\[(intra_op_thread_count|inter_op_thread_count|execution_mode|enable_mem_arena|enable_mem_pattern)\]",
    r"parameters\[(slo_p99_ms|refuse_nonfinite|allow_batch_dependent_answers)\]",
)
"""Obeyed. The last row of `parameters` is our own, the one before it that of Triton's ONNX Runtime backend."""

HINTS = (
    r"optimization\..*",  # pinned memory, eager batching, accelerators of the CPU: how fast, never what
    r"instance_group\[\d+\]\.(host_policy|profile|rate_limiter.*)",
    r"(dynamic_batching|sequence_batching\.oldest)\.preferred_batch_size",  # batches are as large as what is waiting
    r"sequence_batching\.state\[\d+\]\.use_same_buffer_for_input_output",  # a hint about memory
    r"input\[\d+\]\.format",  # NHWC or NCHW: a name for the dims, which are checked themselves
    r"parameters(\[.*)?",  # of other backends, or of allocators
    r"metric_tags(\[.*)?|model_metrics(\..*)?",
)
"""Accepted, not used, and logged."""

_HONOURED = re.compile("|".join(f"(?:{each})" for each in HONOURED))
_HINTS = re.compile("|".join(f"(?:{each})" for each in HINTS))
_MAX_BATCH_SIZE = re.compile(r"^[^#\n]*\bmax_batch_size\s*:", re.MULTILINE)


def parse(text: str, *, model: str) -> ModelSettings:
    """Read a configuration as it stands in a file.

    Args:
        text: the file.
        model: name of the folder it lies in.

    Raises:
        UnsupportedConfig: with the line and column, or the field.
    """
    message = pb.ModelConfig()
    with _blaming("config.pbtxt"):
        try:
            text_format.Parse(text, message, descriptor_pool=POOL)
        except text_format.ParseError as exc:
            raise UnsupportedConfig(f"cannot be read: {_with_place(exc)}") from exc
        return _settings(message, model, says_batch_size=bool(_MAX_BATCH_SIZE.search(text)))


def parse_json(text: str, *, model: str) -> ModelSettings:
    """Read a configuration as RepositoryModelLoad brings it, in JSON, by the rules of protobuf. Any text is safe.

    Args:
        text: from outside.
        model: which is to be loaded.

    Raises:
        UnsupportedConfig: with the field.
    """
    message = pb.ModelConfig()
    source = "parameter 'config'"
    with _blaming(source):
        if len(text) > CONFIG_BYTES_MAX:
            raise UnsupportedConfig(f"is larger than {CONFIG_BYTES_MAX} characters")
        if _depth(text) > JSON_DEPTH_MAX:
            raise UnsupportedConfig(f"is nested more than {JSON_DEPTH_MAX} deep")
        if not text.lstrip().startswith("{"):  # json_format takes an empty list for an empty message
            raise UnsupportedConfig("cannot be read: it is no JSON object")
        try:
            json_format.Parse(text, message, descriptor_pool=POOL, max_recursion_depth=JSON_DEPTH_MAX)
        except json_format.ParseError as exc:
            raise UnsupportedConfig(f"cannot be read: {exc}") from exc
        says = any(f'"{name}"' in text for name in ("max_batch_size", "maxBatchSize"))
        return dataclasses.replace(_settings(message, model, says_batch_size=says), source=source)


def _settings(message: pb.ModelConfig, model: str, *, says_batch_size: bool) -> ModelSettings:
    paths = list(fields_set(message))
    for path in paths:
        if not _HONOURED.fullmatch(path) and not _HINTS.fullmatch(path):
            raise UnsupportedConfig(
                f"{path} is not supported, and the answers may depend on it; remove it, or serve this model elsewhere"
            )
    # Dims only have a meaning together with max_batch_size, so who gives them has said it: 0. Who gives neither leaves
    # it to us.
    states = message.sequence_batching.state
    tensors: tuple[pb.ModelInput | pb.ModelOutput, ...] = (*message.input, *message.output)
    says_shapes = any(each.dims or each.HasField("reshape") for each in tensors) or any(each.dims for each in states)
    return model_settings.of(
        message,
        model,
        says_batch_size=says_batch_size or says_shapes,
        hints=tuple(path for path in paths if not _HONOURED.fullmatch(path)),
    )


@contextlib.contextmanager
def _blaming(source: str) -> Iterator[None]:
    try:
        yield
    except UnsupportedConfig as exc:
        raise UnsupportedConfig(f"{source}: {exc}") from exc


def _with_place(error: text_format.ParseError) -> str:
    """What protobuf says, "3:7 : …", with words for the numbers."""
    line, column = error.GetLine(), error.GetColumn()
    text = str(error)
    if line is None or column is None:
        return text
    return f"line {line}, column {column}: {text.removeprefix(f'{line}:{column} :').strip()}"


def _depth(text: str) -> int:
    """How deep brackets are nested; those inside strings count as well, which at worst refuses a strange string."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


class ConfigReader:
    """Reads `config.pbtxt` of each model, again only when it changed. Repository thread.

    Args:
        root: of the repository; a file outside of it is not read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[Stamp, ModelSettings | LoadFailed]] = {}
        self._overrides: dict[str, tuple[int, ModelSettings]] = {}
        self._serial = itertools.count(1)

    def override(self, model: str, settings: ModelSettings | None) -> None:
        """Use `settings` in place of the model's file; None: the file again."""
        if settings is None:
            self._overrides.pop(model, None)
        else:
            self._overrides[model] = (next(self._serial), settings)

    def stamp(self, folder: ModelFolder) -> object:
        """Equal stamps mean equal settings."""
        override = self._overrides.get(folder.name)
        return folder.stamp if override is None else (folder.stamp, override[0])

    def settings(self, folder: ModelFolder) -> ModelSettings | LoadFailed:
        """What it says, the defaults when there is none, or why it cannot be used."""
        if folder.name in self._overrides:
            return self._overrides[folder.name][1]
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
                raise UnsupportedConfig(f"config.pbtxt: is larger than {CONFIG_BYTES_MAX} bytes")
            settings = parse(content.decode(), model=folder.name)
        except LoadFailed as exc:
            return exc
        except (OSError, UnicodeDecodeError) as exc:
            return UnsupportedConfig(f"config.pbtxt: cannot be read: {getattr(exc, 'strerror', None) or exc}")
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
