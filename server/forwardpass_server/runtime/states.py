"""Where the states of sequences are kept: beside the model that reads and writes them.

On the CPU that is an array. On a device it is a tensor of the device: rows are gathered and scattered there by two
graphs of one node each, so that between two runs of the model nothing of a state crosses the bus.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from forwardpass_server.runtime.binding import bound, device_of
from forwardpass_server.runtime.providers import CPU, TENSORRT, Plan, arguments
from forwardpass_server.runtime.session import Session
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.tensors.dtypes import BF16, BYTES, Dtype

OPSET = 16


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """One state.

    Args:
        dtype: of its tensors.
        initial: what every sequence begins with, without a batch dimension.
    """

    dtype: Dtype
    initial: np.ndarray


class HostStates:
    """States as arrays. A `scheduling.stateful.States`.

    Args:
        specs: of each state.
        rows: how many there are of each.
        batched: the model's tensors have a batch dimension, which its states have not.
    """

    def __init__(self, specs: Sequence[StateSpec], rows: int, *, batched: bool) -> None:
        self._batched = batched
        self._tensors = [np.zeros((rows, *spec.initial.shape), spec.dtype.numpy) for spec in specs]
        for tensor, spec in zip(self._tensors, specs, strict=True):
            tensor[0] = spec.initial

    def gather(self, rows: np.ndarray) -> list[np.ndarray]:
        """Copies of the rows."""
        return [tensor[rows] if self._batched else tensor[rows[0], ...] for tensor in self._tensors]

    def scatter(self, rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Copy `values` into the rows."""
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor[rows] = value if self._batched else value[np.newaxis]


class DeviceStates:
    """States as tensors of a device. A `scheduling.stateful.States` whose values are `OrtValue`s.

    Args:
        specs: of each state.
        rows: how many there are of each.
        batched: the model's tensors have a batch dimension, which its states have not.
        plan: the device, and how sessions get there.
    """

    def __init__(self, specs: Sequence[StateSpec], rows: int, *, batched: bool, plan: Plan) -> None:
        self._tensors = [_DeviceRows(spec, rows, batched=batched, plan=plan) for spec in specs]

    def gather(self, rows: np.ndarray) -> list[ort.OrtValue]:
        """New tensors of the device."""
        return [tensor.gather(rows) for tensor in self._tensors]

    def scatter(self, rows: np.ndarray, values: Sequence[ort.OrtValue]) -> None:
        """Copy `values` into the rows, on the device."""
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.scatter(rows, value)


def beside(
    session: Session, plan: Plan, specs: Sequence[StateSpec], *, rows: int, outputs: Collection[int], batched: bool
) -> tuple[Run, HostStates | DeviceStates]:
    """States beside a model, and the model's `run` that gives and takes them as they are kept.

    Args:
        session: of the model.
        plan: the session's.
        specs: of each state.
        rows: how many there are of each.
        outputs: indices of the model's outputs that are states.
        batched: the model's tensors have a batch dimension, which its states have not.
    """
    # The ways to a device and back are numpy's, which has no bfloat16, and a binding's, which has no strings.
    unbound = {BF16, BYTES} & {spec.dtype for spec in (*session.signature.inputs, *session.signature.outputs)}
    if plan.expected == CPU or unbound:
        return session.run, HostStates(specs, rows, batched=batched)
    return bound(session, outputs, plan), DeviceStates(specs, rows, batched=batched, plan=plan)


class _DeviceRows:
    """One state: a tensor of the device, and what reads and writes its rows there."""

    def __init__(self, spec: StateSpec, rows: int, *, batched: bool, plan: Plan) -> None:
        self._device, self._device_id = device_of(plan)
        self._shape = spec.initial.shape
        self._batched = batched
        tensor = np.zeros((rows, *spec.initial.shape), spec.dtype.numpy)
        tensor[0] = spec.initial
        self._tensor = self._there(tensor)
        self._gather = _session("Gather", spec, plan)
        self._scatter = _session("ScatterND", spec, plan)

    def gather(self, rows: np.ndarray) -> ort.OrtValue:
        binding = self._gather.io_binding()
        binding.bind_ortvalue_input("tensor", self._tensor)
        binding.bind_ortvalue_input("rows", self._there(rows if self._batched else rows[0]))
        binding.bind_output("out", self._device, self._device_id)
        self._gather.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def scatter(self, rows: np.ndarray, value: ort.OrtValue) -> None:
        binding = self._scatter.io_binding()
        binding.bind_ortvalue_input("tensor", self._tensor)
        binding.bind_ortvalue_input("rows", self._there(rows[:, np.newaxis] if self._batched else rows))
        binding.bind_ortvalue_input("values", value)
        # NOTE: input and output are one tensor. ScatterND copies the one into the other unless they are, and so writes
        # the rows in place; a test shows it.
        binding.bind_ortvalue_output("out", self._tensor)
        self._scatter.run_with_iobinding(binding)

    def _there(self, array: np.ndarray | np.generic) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), self._device, self._device_id)


def _session(operator: str, spec: StateSpec, plan: Plan) -> ort.InferenceSession:
    """A graph of one node: Gather(tensor, rows) → out, or ScatterND(tensor, rows, values) → out."""
    dims = [*spec.initial.shape]
    names = ["tensor", "rows"] + ["values"] * (operator == "ScatterND")
    shapes: dict[str, list[int | str] | None] = {"tensor": ["slots", *dims], "rows": None, "values": None, "out": None}
    kinds = {"rows": TensorProto.INT64}
    values = {
        name: helper.make_tensor_value_info(name, kinds.get(name, spec.dtype.onnx), shapes[name])
        for name in [*names, "out"]
    }
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["out"])], operator, [values[name] for name in names], [values["out"]]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # TensorRT would build an engine for one node.
    without_engines = replace(plan, providers=tuple(each for each in plan.providers if each[0] != TENSORRT))
    return ort.InferenceSession(model.SerializeToString(), options, **arguments(without_engines))
