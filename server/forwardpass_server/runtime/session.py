"""One loaded model: arrays in, arrays out, and ONNX Runtime's errors in our own words.

Threads: one intra-op thread unless told otherwise, since instances and processes are how this server uses cores.
Spinning is off above one: it burned 31 times the CPU for no gain (20 requests a second on one core: 24,981 µs of CPU a
request with two spinning threads, 808 µs with two that sleep, 739 µs with one).

`run` calls the handle under `onnxruntime.InferenceSession` (`_sess`), as the wrapper's own checks repeat
`Signature.check` and its retry would fall back to the CPU in silence: 5.5 µs a run of a 10-10-1 network, not 12.5.
A test of this room fails when a new ONNX Runtime no longer has it.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from forwardpass_server.errors import InvalidRequest, LoadFailed, RunFailed
from forwardpass_server.runtime import fatal, providers
from forwardpass_server.runtime.blame import blame
from forwardpass_server.runtime.options import SessionOptions
from forwardpass_server.runtime.providers import Plan
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.tensors.dtypes import BF16
from forwardpass_server.tensors.signature import Signature

_FATAL_ONLY = 4


_GRAPH_LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def ort_options(options: SessionOptions) -> ort.SessionOptions:
    """The same in ONNX Runtime's words, with what this server always sets."""
    of_ort = ort.SessionOptions()
    of_ort.intra_op_num_threads = threads = options.intra_op_threads or 1
    of_ort.inter_op_num_threads = options.inter_op_threads
    of_ort.execution_mode = ort.ExecutionMode.ORT_PARALLEL if options.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    of_ort.graph_optimization_level = _GRAPH_LEVELS[options.graph_level]
    # Its arena keeps, for each model and for ever, the most that one run ever needed: 385 MiB more after one request of
    # ten million strings. Without it runs take as long (MLP and CNN, 1 to 64 rows, one core: within 3 %, one at 7 %).
    of_ort.enable_cpu_mem_arena = options.memory_arena
    of_ort.enable_mem_pattern = options.memory_pattern
    # A failed run raises; ONNX Runtime's own line beside it would let callers write into our log.
    of_ort.log_severity_level = _FATAL_ONLY
    if threads > 1:
        of_ort.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.parallel:
        of_ort.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return of_ort


class Session:
    """A model on its device. `run` may be called on several threads at once.

    Args:
        path: the .onnx file, already found safe to open (`lifecycle.verify`).
        signature: read from the same file.
        plan: where it shall run.
        options: how it uses the machine.

    Raises:
        LoadFailed: ONNX Runtime refuses the file, or the session ended on another provider than planned.
    """

    def __init__(
        self, path: Path | str, signature: Signature, plan: Plan, options: SessionOptions | None = None
    ) -> None:
        path = Path(path)
        self.signature = signature
        providers.preload()
        with fatal.survivable(path) as loadable:
            try:
                session = ort.InferenceSession(
                    str(loadable.file), ort_options(options or SessionOptions()), **providers.arguments(plan)
                )
            except Exception as error:
                reason = " ".join(str(error).split()).replace(str(loadable.file), path.name)  # callers see it
                raise LoadFailed(f"ONNX Runtime cannot load {path.name}: {reason}") from error
        self.provider: str = session.get_providers()[0]
        """The execution provider that runs it: "CPUExecutionProvider"."""
        if self.provider != plan.expected:
            raise LoadFailed(
                f"{path.name} was to run on {plan.expected} and ONNX Runtime put it on {self.provider}: "
                f"{providers.missing_library(plan.expected) or 'it gave no reason'}"
            )
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        """`metadata_props` of the file."""
        self._handle = session._sess
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        # ONNX Runtime lists inputs with a default elsewhere.
        required = [spec.name for spec in signature.inputs if not spec.optional]
        _same_names(path.name, "inputs", required, [value.name for value in session.get_inputs()])
        _same_names(path.name, "outputs", self._outputs, [value.name for value in session.get_outputs()])
        self._bf16 = frozenset(index for index, spec in enumerate(signature.inputs) if spec.dtype is BF16)
        self._by_value = any(spec.dtype is BF16 for spec in (*signature.inputs, *signature.outputs))
        self._refuses_empty = loadable.refuses_empty
        self._names_of: dict[tuple[int, ...], list[str]] = {}
        self._options = _run_options()

    def run(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[int], termination: Termination | None = None
    ) -> list[np.ndarray]:
        """Run the model. The GIL is released while it runs.

        Args:
            inputs: one array per input of the signature, with its dtype (BF16 as uint16 bit patterns, BYTES as objects
                of type `str`); None for an optional input. Not written to.
            outputs: indices of the outputs wanted.
            termination: ends this run at its next node, which then raises RunFailed.

        Returns:
            The outputs in that order, in memory that nothing else uses.

        Raises:
            InvalidRequest, OutOfMemory, RunFailed: see `runtime.blame`.
        """
        names = self._names_of.get(tuple(outputs)) or self._names(outputs)
        feed = {}
        for name, array in zip(self._inputs, inputs, strict=True):
            if array is not None:
                # A view into a message lies at any address, and kernels compiled for aligned floats may crash on it.
                feed[name] = array if array.flags.aligned else array.copy()
                if self._refuses_empty and not array.size:
                    raise self.no_elements(name, array)
        options = self._options if termination is None else _terminable(termination)
        if self._handle is None:
            raise RunFailed("the session was closed")
        try:
            if self._by_value:
                return self._run_values(feed, names, options)
            return self._handle.run(names, feed, options)  # type: ignore[no-any-return]
        except Exception as error:
            raise blame(error) from error

    def close(self) -> None:
        """Let go of the model and its device memory. No run may be in progress; `run` fails afterwards."""
        self._handle = None

    def no_elements(self, name: str, array: np.ndarray) -> InvalidRequest:
        """The error for an empty input of a model whose kernels would end the process."""
        return InvalidRequest(
            f"input '{name}' has no elements {list(array.shape)}, and this model's {self._refuses_empty} cannot "
            "compute with none; send at least one"
        )

    def _names(self, outputs: Sequence[int]) -> list[str]:
        names = self._names_of[tuple(outputs)] = [self._outputs[index] for index in outputs]
        return names

    def _run_values(self, feed: dict[str, np.ndarray], names: list[str], options: ort.RunOptions) -> list[np.ndarray]:
        """The same by OrtValues, which alone can carry BF16: numpy has no such type."""
        bf16 = {self._inputs[index] for index in self._bf16}
        values = {}
        kept = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in feed.items()}
        for name, array in kept.items():
            wrapped = (
                ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BF16.onnx)
                if name in bf16
                else ort.OrtValue.ortvalue_from_numpy(array)
            )
            values[name] = wrapped._get_c_value()
        return [_to_numpy(value) for value in self._handle.run_with_ort_values(values, names, options)]


def _run_options() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


def _terminable(termination: Termination) -> ort.RunOptions:
    """Options of one run alone, with `termination` armed to end it. 3 µs, so only runs that need it get theirs."""
    options = _run_options()

    def end() -> None:
        options.terminate = True

    termination.arm(end)
    return options


def _to_numpy(value: Any) -> np.ndarray:
    """An output that came as an OrtValue on the host; BF16 as uint16, copied."""
    if value.data_type() != BF16.ort:
        array: np.ndarray = value.numpy()
        return array
    shape = tuple(value.shape())
    nbytes = int(np.prod(shape)) * BF16.itemsize
    return np.frombuffer(ctypes.string_at(value.data_ptr(), nbytes), BF16.numpy).reshape(shape)


def _same_names(file: str, role: str, ours: list[str], theirs: list[str]) -> None:
    if ours != theirs:
        raise LoadFailed(f"{file}: its graph has the {role} {ours}, and ONNX Runtime sees {theirs}")
