"""The proof: recorded answers, replayed on the session that will serve.

A golden example is one request and its answers, written by training from the network itself. The one thing to know:
each is run alone, and then its rows are run among the others' rows, in every batch size that will be served, because an
answer may be right alone and wrong in company (a normalisation over the batch, a scale taken over all rows).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle.repository import GoldenSet, Tolerance
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

Arrays = list[np.ndarray | None]
Run = Callable[[Sequence[np.ndarray | None], Sequence[int]], Sequence[np.ndarray]]
"""`runtime.session.Session.run`: inputs in the signature's order, indices of outputs → those outputs."""


class ProofFailed(LoadFailed):
    """The model answers other than it was recorded; the message says which example, output and by how much."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One recorded request, in memory.

    Args:
        name: of its folder.
        inputs: in the signature's order; None for an optional one that was left out.
        outputs: in the signature's order; None for one that was not recorded.
        tolerances: of each output.
    """

    name: str
    inputs: Arrays
    outputs: Arrays
    tolerances: tuple[Tolerance, ...]


def read(version_folder: Path, golden: Sequence[GoldenSet], signature: Signature) -> list[Golden]:
    """The golden examples of a version, from `input_0.pb …` and `output_0.pb …`.

    A tensor belongs to the input or output that it names; one without a name, to the one at its number.

    Raises:
        ProofFailed: an example is unreadable, incomplete, or not of this model.
    """
    return [_read_one(version_folder / each.folder, each, signature) for each in golden]


def prove(run: Run, signature: Signature, golden: Sequence[Golden], buckets: Sequence[int]) -> int:
    """Replay every example alone, and, for a batched model, in every bucket.

    Args:
        run: the serving session's.
        signature: as it will be served.
        golden: examples.
        buckets: batch sizes that will be served, in rows; ignored for a model that is not batched.

    Returns:
        How many runs it took.

    Raises:
        ProofFailed: the first answer out of tolerance.
        RunFailed: the model raised.
    """
    wanted = range(len(signature.outputs))
    for each in golden:
        _Comparison(signature, each.tolerances, "alone", [each.name]).check(run(each.inputs, wanted), each.outputs)
    runs = len(golden)
    if signature.max_batch_size > 1:
        for mates in _batch_mates(golden):
            pool = _Pool(mates)
            for rows in buckets:
                for chosen in pool.batches(rows):
                    owners = [pool.owners[row] for row in chosen]
                    comparison = _Comparison(signature, mates[0].tolerances, f"in a batch of {rows}", owners)
                    comparison.check(run(pool.take(pool.inputs, chosen), wanted), pool.take(pool.outputs, chosen))
                    runs += 1
    return runs


class _Pool:
    """The rows of examples that may share a batch, as one long example."""

    def __init__(self, mates: Sequence[Golden]) -> None:
        self.inputs = [_concatenated([each.inputs[i] for each in mates]) for i in range(len(mates[0].inputs))]
        self.outputs = [_concatenated([each.outputs[i] for each in mates]) for i in range(len(mates[0].outputs))]
        self.owners = [each.name for each in mates for _ in range(_rows(each))]
        self.rows = len(self.owners)

    def batches(self, rows: int) -> list[np.ndarray]:
        """Row numbers of batches of so many rows in which every row of the pool appears, in order and reversed."""
        starts = range(0, self.rows, rows)
        forward = [(start + np.arange(rows)) % self.rows for start in starts]
        return [*forward, forward[0][::-1]] if rows > 1 else forward

    @staticmethod
    def take(arrays: Arrays, chosen: np.ndarray) -> Arrays:
        """Those rows of each array."""
        return [None if array is None else np.ascontiguousarray(array[chosen]) for array in arrays]


def _batch_mates(golden: Sequence[Golden]) -> list[list[Golden]]:
    """Examples that may share a batch: the same inputs present, the same shapes behind the rows, one tolerance."""
    groups: dict[object, list[Golden]] = {}
    for each in golden:
        shapes = tuple(None if a is None else a.shape[1:] for a in (*each.inputs, *each.outputs))
        groups.setdefault((shapes, each.tolerances), []).append(each)
    return [mates for mates in groups.values() if all(_rows(each) for each in mates)]


def _rows(example: Golden) -> int:
    """Rows of an example, 0 when its tensors do not agree on a number: then it stays alone."""
    rows = {len(a) if a.ndim else 0 for a in (*example.inputs, *example.outputs) if a is not None}
    return rows.pop() if len(rows) == 1 else 0


def _concatenated(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if present else None


@dataclass(frozen=True)
class _Comparison:
    """Answers of one run against recorded ones.

    Args:
        tolerances: of each output.
        circumstance: how it was run, for the message.
        owners: name of the example that each row comes from; one name when all rows do.
    """

    signature: Signature
    tolerances: tuple[Tolerance, ...]
    circumstance: str
    owners: Sequence[str]

    def check(self, answers: Sequence[np.ndarray], recorded: Arrays) -> None:
        for spec, tolerance, got, want in zip(self.signature.outputs, self.tolerances, answers, recorded, strict=True):
            if want is None:
                continue
            if got.shape != want.shape:
                raise ProofFailed(f"{self._where(spec, ())}: shape {list(got.shape)}, recorded {list(want.shape)}")
            if np.issubdtype(want.dtype, np.floating) or spec.dtype is dtypes.BF16:
                self._check_numbers(spec, _widened(got, spec), _widened(want, spec), tolerance)
            elif not np.array_equal(got, want):
                at = tuple(int(i) for i in np.argwhere(np.asarray(got != want))[0])
                raise ProofFailed(f"{self._where(spec, at)}: {got[at]!r:.80}, recorded {want[at]!r:.80}; must be equal")

    def _check_numbers(self, spec: TensorSpec, got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> None:
        with np.errstate(invalid="ignore"):
            error = np.abs(got - want)
        # The same infinity, or NaN where NaN was recorded, is no error; NaN in one place only is one beyond measure.
        error = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, error)
        error = np.where(np.isnan(error), np.inf, error)
        allowed = tolerance.atol + tolerance.rtol * np.abs(np.nan_to_num(want, posinf=0.0, neginf=0.0))
        if (error > allowed).any():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmax(error - allowed)), error.shape))
            raise ProofFailed(
                f"{self._where(spec, at)}: max error {error[at]:.3g} (got {got[at]:.6g}, recorded {want[at]:.6g}), "
                f"tolerance {allowed[at]:.3g} (atol {tolerance.atol:g} + rtol {tolerance.rtol:g} relative); "
                "this device or this file does not reproduce the trained model"
            )

    def _where(self, spec: TensorSpec, at: tuple[int, ...]) -> str:
        owner = self.owners[at[0]] if at and at[0] < len(self.owners) else self.owners[0]
        place = f" at {list(at)}" if at else ""
        return f"golden example {owner!r}, output {spec.name!r}{place}, {self.circumstance}"


def _widened(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Numbers as float64, in which errors are measured; BF16 comes as bit patterns."""
    if spec.dtype is dtypes.BF16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def _read_one(folder: Path, golden: GoldenSet, signature: Signature) -> Golden:
    inputs = _tensors(folder, "input", signature.inputs)
    missing = [s.name for s, a in zip(signature.inputs, inputs, strict=True) if a is None and not s.optional]
    if missing:
        raise ProofFailed(f"golden example {golden.folder!r} has no input {', '.join(map(repr, missing))}")
    outputs = _tensors(folder, "output", signature.outputs)
    if all(array is None for array in outputs):
        raise ProofFailed(f"golden example {golden.folder!r} records no output; it would prove nothing")
    tolerances = tuple(golden.tolerance(spec.name) for spec in signature.outputs)
    return Golden(name=golden.folder, inputs=inputs, outputs=outputs, tolerances=tolerances)


def _tensors(folder: Path, kind: str, specs: Sequence[TensorSpec]) -> Arrays:
    """`<kind>_<number>.pb` in the order of `specs`, None for those that are not there."""
    arrays: Arrays = [None] * len(specs)
    by_name = {spec.name: index for index, spec in enumerate(specs)}
    for path in sorted(folder.glob(f"{kind}_*.pb")):
        number = re.fullmatch(rf"{kind}_(\d+)\.pb", path.name)
        if not number:
            continue
        where = f"golden example {folder.name!r}: {path.name}"
        try:
            tensor = onnx.TensorProto.FromString(path.read_bytes())
        except DecodeError as exc:
            raise ProofFailed(f"{where} is not a tensor: {exc}") from exc
        index = by_name.get(tensor.name) if tensor.name else int(number[1])
        if index is None or index >= len(specs) or arrays[index] is not None:
            names = ", ".join(repr(spec.name) for spec in specs)
            raise ProofFailed(f"{where} is {tensor.name!r}, which is unknown or there twice; the model has {names}")
        if tensor.data_type != specs[index].dtype.onnx:
            expected, got = (onnx.TensorProto.DataType.Name(n) for n in (specs[index].dtype.onnx, tensor.data_type))
            raise ProofFailed(f"{where} is of type {got}; the model's {specs[index].name!r} is {expected}")
        arrays[index] = _array(tensor, where)
    return arrays


def _array(tensor: onnx.TensorProto, where: str) -> np.ndarray:
    if tensor.external_data:
        raise ProofFailed(f"{where} keeps its data in another file; golden examples hold theirs")
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as exc:
        raise ProofFailed(f"{where} cannot be read: {exc}") from exc
    return array.view(np.uint16) if tensor.data_type == onnx.TensorProto.BFLOAT16 else array
