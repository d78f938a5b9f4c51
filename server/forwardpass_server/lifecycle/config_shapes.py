"""Between the tensors that callers see and those of the graph: what a configuration narrows, leaves out, and reshapes.

A configuration may fix dimensions that the graph leaves open, serve some of the outputs only, and give a tensor another
shape on the wire than in the graph (`reshape`), with the same elements in the same order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.lifecycle import sequence_layout
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.prove import Arrays, Golden
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec
from forwardpass_server.tensors.specs import Dim


@dataclass(frozen=True, slots=True)
class Reshape:
    """One tensor's two shapes, without the batch dimension; -1 where dynamic, as often in one as in the other."""

    on_wire: tuple[int, ...]
    in_graph: tuple[int, ...]
    batched: bool

    def to_graph(self, array: np.ndarray) -> np.ndarray:
        """A view of `array`, which has the shape on the wire."""
        return self._to(array, self.on_wire, self.in_graph)

    def to_wire(self, array: np.ndarray) -> np.ndarray:
        """A view of `array`, which has the shape in the graph."""
        return self._to(array, self.in_graph, self.on_wire)

    def _to(self, array: np.ndarray, have: tuple[int, ...], want: tuple[int, ...]) -> np.ndarray:
        batch = array.shape[:1] if self.batched else ()
        sizes = iter(size for size, dim in zip(array.shape[len(batch) :], have, strict=True) if dim == -1)
        return array.reshape((*batch, *(next(sizes) if dim == -1 else dim for dim in want)))


@dataclass(frozen=True, kw_only=True)
class Served:
    """What callers see of a graph.

    Args:
        signature: as they see it.
        in_graph: the same tensors as the graph has them.
        inputs: those that are reshaped, by index.
        outputs: likewise.
        numbers: of each served output, its place among the graph's.
    """

    signature: Signature
    in_graph: Signature
    inputs: Mapping[int, Reshape] = field(default_factory=dict)
    outputs: Mapping[int, Reshape] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()

    def around(self, run: Run) -> Run:
        """`run` of the graph's session, as callers see it."""
        if not self.inputs and not self.outputs and self.numbers == tuple(range(len(self.numbers))):
            return run

        def run_served(
            inputs: Sequence[np.ndarray | None], outputs: Sequence[int], termination: Termination | None = None, /
        ) -> list[np.ndarray]:
            given = [
                self.inputs[index].to_graph(array) if array is not None and index in self.inputs else array
                for index, array in enumerate(inputs)
            ]
            answers = run(given, [self.numbers[index] for index in outputs], termination)
            return [
                self.outputs[index].to_wire(answer) if index in self.outputs else answer
                for index, answer in zip(outputs, answers, strict=True)
            ]

        return run_served

    def golden(self, examples: Sequence[Golden]) -> list[Golden]:
        """Examples recorded from the graph, as callers would see them."""
        return [
            dataclasses.replace(each, inputs=_all(each.inputs, self.inputs), outputs=_all(each.outputs, self.outputs))
            for each in examples
        ]


def _all(arrays: Arrays, reshapes: Mapping[int, Reshape]) -> Arrays:
    return [
        reshapes[index].to_wire(array) if array is not None and index in reshapes else array
        for index, array in enumerate(arrays)
    ]


def served(settings: ModelSettings, graph: Signature) -> Served:
    """What callers see of the graph by the configuration.

    Raises:
        UnsupportedConfig: the graph has no such tensor, or one of another type or shape.
    """
    try:
        return _served(settings, graph)
    except UnsupportedConfig as exc:
        raise UnsupportedConfig(f"{settings.source}: {exc}") from exc


def _served(settings: ModelSettings, graph: Signature) -> Served:
    message = settings.message or pb.ModelConfig()
    batched = message.max_batch_size > 0
    if batched:
        _check_batched(graph)
    inputs = _narrowed(graph.inputs, message.input, "input", batched)
    outputs = _narrowed(graph.outputs, message.output, "output", batched)
    taken, made = sequence_layout.configured_states(settings)
    inputs = _narrowed(inputs, taken, "sequence_batching.state", batched)
    outputs = _narrowed(outputs, made, "sequence_batching.state", batched)
    names = {each.name for each in message.output} or {spec.name for spec in outputs}
    names |= sequence_layout.kept_outputs(settings)
    numbers = tuple(index for index, spec in enumerate(outputs) if spec.name in names)
    outputs = tuple(outputs[index] for index in numbers)
    in_graph = dataclasses.replace(graph, inputs=inputs, outputs=outputs)
    reshaped_inputs = _reshapes(inputs, message.input, batched)
    reshaped_outputs = _reshapes(outputs, message.output, batched)
    return Served(
        signature=dataclasses.replace(
            graph, inputs=_on_wire(inputs, reshaped_inputs), outputs=_on_wire(outputs, reshaped_outputs)
        ),
        in_graph=in_graph,
        inputs=reshaped_inputs,
        outputs=reshaped_outputs,
        numbers=numbers,
    )


def _narrowed(
    specs: Sequence[TensorSpec], configured: Sequence[pb.ModelInput | pb.ModelOutput], field_name: str, batched: bool
) -> tuple[TensorSpec, ...]:
    """The graph's tensors, with the dimensions fixed that the configuration fixes."""
    by_name = {spec.name: spec for spec in specs}
    seen: set[str] = set()
    for index, each in enumerate(configured):
        path = f"{field_name}[{index}]"
        spec = by_name.get(each.name)
        if spec is None:
            raise UnsupportedConfig(f"{path} is {each.name!r}; the model has {', '.join(map(repr, by_name))}")
        if each.name in seen:
            raise UnsupportedConfig(f"{path} is {each.name!r}, which is there twice")
        seen.add(each.name)
        dtype = dtypes.by_config(each.data_type)
        if each.data_type and dtype is not spec.dtype:
            name = pb.DataType.Name(each.data_type)
            raise UnsupportedConfig(f"{path} ({each.name!r}) says {name}; the model has {spec.dtype.wire}")
        if isinstance(each, pb.ModelInput) and each.optional and not spec.optional:
            raise UnsupportedConfig(f"{path} ({each.name!r}) is optional; in the model it is required")
        if each.HasField("reshape"):
            _check_reshape(each, path)
            shape = _narrowed_shape(spec, each.reshape.shape, f"{path}.reshape", "shape", batched)
        elif each.dims:
            shape = _narrowed_shape(spec, each.dims, path, "dims", batched)
        else:
            continue
        by_name[each.name] = dataclasses.replace(spec, shape=shape, ranked=True)
    return tuple(by_name.values())


def _narrowed_shape(spec: TensorSpec, dims: Sequence[int], path: str, what: str, batched: bool) -> tuple[Dim, ...]:
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
        raise UnsupportedConfig(f"{path} ({spec.name!r}) says {what} {list(dims)}; the model has [{has_text}]{note}")
    return (*first, *(has if wanted == -1 else wanted for has, wanted in zip(rest, dims, strict=True)))


def _check_reshape(each: pb.ModelInput | pb.ModelOutput, path: str) -> None:
    """Equal elements between equal numbers of dynamic dimensions, so that every size has one meaning."""
    dims, shape = [*each.dims], [*each.reshape.shape]
    if min((*dims, *shape), default=0) < -1 or _fixed_parts(dims) != _fixed_parts(shape):
        raise UnsupportedConfig(
            f"{path}.reshape ({each.name!r}): dims {dims} and shape {shape} must hold "
            "as many elements, and those between two -1 as well"
        )


def _fixed_parts(dims: Sequence[int]) -> list[int]:
    """The product of the dimensions before, between and behind the dynamic ones."""
    parts: list[list[int]] = [[]]
    for dim in dims:
        if dim == -1:
            parts.append([])
        else:
            parts[-1].append(dim)
    return [math.prod(part) for part in parts]


def _reshapes(
    specs: Sequence[TensorSpec], configured: Sequence[pb.ModelInput | pb.ModelOutput], batched: bool
) -> dict[int, Reshape]:
    index_of = {spec.name: index for index, spec in enumerate(specs)}
    return {
        index_of[each.name]: Reshape(tuple(each.dims), tuple(each.reshape.shape), batched)
        for each in configured
        if each.HasField("reshape")
    }


def _on_wire(specs: Sequence[TensorSpec], reshapes: Mapping[int, Reshape]) -> tuple[TensorSpec, ...]:
    return tuple(
        dataclasses.replace(spec, shape=_wire_shape(spec, reshapes[index])) if index in reshapes else spec
        for index, spec in enumerate(specs)
    )


def _wire_shape(spec: TensorSpec, reshape: Reshape) -> tuple[Dim, ...]:
    """The configured dims, the dynamic ones under the names that the graph has for them."""
    first = spec.shape[:1] if reshape.batched else ()
    pairs = zip(spec.shape[len(first) :], reshape.in_graph, strict=True)
    dynamic = iter(has for has, dim in pairs if dim == -1)
    return (*first, *(next(dynamic) if dim == -1 else dim for dim in reshape.on_wire))


def _check_batched(signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if spec.ranked and (not spec.shape or isinstance(spec.shape[0], int)):
            raise UnsupportedConfig(
                f"max_batch_size is above 0, but the first dimension of {spec.name!r} is not dynamic "
                f"(shape {spec.shape_text()}); set it to 0, or export the model with a dynamic batch dimension"
            )
