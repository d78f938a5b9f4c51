"""Parity: does the ONNX file answer as the network does, at every batch size, and whoever shares the batch?

`measure` runs both on held-out inputs and writes down every difference; `parity` refuses the file if one is too large.
The reference is the plain network in torch, on the CPU; the file runs in ONNX Runtime, on the CPU, on one thread, which
is how the server runs it there.

Tolerance of float32: |onnx − torch| <= 3e-5 + 3e-5 · |torch|. Both add the same products in another order, and float32
rounds at 6e-8 of a value. Measured with torch 2.13 and ONNX Runtime 1.31 on one AMD EPYC core: 5.2e-7 on probabilities
(mnist_cnn, sums of up to 5,408 terms), 3.8e-6 on logits of size 12 and 3.8e-5 on cell states of size 61 after 40 steps
(shakespeare_lstm), which is 7 % of the tolerance at most. That leaves room for other processors, and a wrong export is
far outside: a lost activation, a swapped gate, a weight of another epoch shows at 1e-3 or more.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from forwardpass_server.lifecycle.repository import Tolerance
from forwardpass_training.difference import Array, Difference, difference
from forwardpass_training.errors import ParityFailed, ShipError
from forwardpass_training.export import declared_shape
from forwardpass_training.exportable import Exportable

BATCHES = (1, 2, 7, 64)
ATOL = 3e-5
RTOL = 3e-5


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One output of one call.

    Args:
        output: its name.
        case: which inputs: `examples`, or the name of a further kind of call.
        batch: rows in the call.
        against: `torch`, the reference; `alone`, the file's own answers to the rows one by one; `declared`, the shape
            that the graph declares.
        difference: how far they are apart.
    """

    output: str
    case: str
    batch: int
    against: str
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Every comparison that was made.

    Args:
        atol: absolute tolerance.
        rtol: relative tolerance.
        onnxruntime: version.
        torch: version.
        comparisons: one for each output, case, batch size and opponent.
        tolerances: of outputs that have their own.
    """

    atol: float
    rtol: float
    onnxruntime: str
    torch: str
    comparisons: tuple[Comparison, ...]
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every comparison is within tolerance."""
        return not any(comparison.difference.failure for comparison in self.comparisons)

    @property
    def max_abs_error(self) -> float:
        """The largest against torch, over every output and batch that could be compared."""
        return max((d.max_abs_error or 0.0 for d in self._from_torch()), default=0.0)

    @property
    def max_rel_error(self) -> float:
        """The largest against torch, over every output and batch that could be compared."""
        return max((d.max_rel_error or 0.0 for d in self._from_torch()), default=0.0)

    @property
    def tolerance_used(self) -> float:
        """The largest share of its tolerance that any comparison uses: 0.1 leaves room, above 1 fails."""
        return max((comparison.difference.tolerance_used or 0.0 for comparison in self.comparisons), default=0.0)

    def _from_torch(self) -> Iterator[Difference]:
        return (comparison.difference for comparison in self.comparisons if comparison.against == "torch")

    def to_json(self) -> dict[str, Any]:
        """Plain values, the verdict first."""
        return {
            "passed": self.passed,
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
            "tolerance_used": self.tolerance_used,
            **asdict(self),
        }

    def __str__(self) -> str:
        batches = ", ".join(map(str, BATCHES))
        return (
            f"parity {'passed' if self.passed else 'FAILED'}: max absolute error {self.max_abs_error:.2g}, relative "
            f"{self.max_rel_error:.2g}, {self.tolerance_used:.1%} of the tolerance "
            f"{self.atol:g} + {self.rtol:g} · |y|; {len(self.comparisons)} comparisons at batch {batches}; "
            f"ONNX Runtime {self.onnxruntime} against torch {self.torch}"
        )

    def write(self, path: Path) -> None:
        """Write it as JSON, failures included."""
        path.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def check(self) -> None:
        """Let only a good report pass.

        Raises:
            ParityFailed: names output, batch, error and tolerance of the first failure, and how many there are.
        """
        failures = [comparison for comparison in self.comparisons if comparison.difference.failure]
        if failures:
            first = failures[0]
            raise ParityFailed(
                f"output {first.output!r} ({first.case}, batch {first.batch}, against {first.against}): "
                f"{first.difference.failure}; {len(failures)} of {len(self.comparisons)} comparisons fail, "
                "so nothing is published"
            )


def parity(
    path: Path,
    exportable: Exportable,
    *,
    atol: float = ATOL,
    rtol: float = RTOL,
    tolerances: Mapping[str, Tolerance] | None = None,
) -> ParityReport:
    """Compare as `measure` does, and let only a good file pass.

    Raises:
        ParityFailed: an output differs by more than the tolerance, has another shape or dtype than it should, or
            depends on its batch-mates; or ONNX Runtime refuses the file or an input.
        ShipError: there is no such file, or no ONNX Runtime.
    """
    report = measure(path, exportable, atol=atol, rtol=rtol, tolerances=tolerances)
    report.check()
    return report


def measure(
    path: Path,
    exportable: Exportable,
    *,
    atol: float = ATOL,
    rtol: float = RTOL,
    tolerances: Mapping[str, Tolerance] | None = None,
) -> ParityReport:
    """Run file and network on the same held-out inputs at batch 1, 2, 7 and 64, and the file on the 64 rows one by one.

    Args:
        path: what `export` wrote: an ONNX file, or a folder that holds it and its weights.
        exportable: the network; all its kinds of examples are compared.
        atol: absolute tolerance of floating outputs; others must be equal.
        rtol: relative tolerance, likewise.
        tolerances: of outputs that need their own, by name.

    Raises:
        ParityFailed: ONNX Runtime refuses the file or an input.
        ShipError: there is no such file, or no ONNX Runtime.
    """
    if path.is_dir():  # with its weights beside it
        path = path / "model.onnx"
    if not path.is_file():
        raise ShipError(f"there is no file {path} to verify; `forwardpass-train export` writes it")
    run, version = _runner(path, exportable.output_names)
    graph = onnx.load(path, load_external_data=False).graph
    declared = {value.name: declared_shape(value) for value in graph.output}
    own = {name: Tolerance(atol=atol, rtol=rtol) for name in exportable.output_names} | dict(tolerances or {})

    def apart(output: str, got: Array, expected: Array) -> Difference:
        return difference(got, expected, atol=own[output].atol, rtol=own[output].rtol)

    comparisons: list[Comparison] = []
    for case, examples in {"examples": exportable.examples, **exportable.further_examples}.items():
        for batch in BATCHES:
            compared = partial(Comparison, case=case, batch=batch)
            tensors = examples(batch, torch.Generator().manual_seed(batch))
            inputs = {name: tensor.numpy() for name, tensor in zip(exportable.input_names, tensors, strict=True)}
            sizes = {dim: inputs[name].shape[axis] for name, axis, dim in _dynamic_axes(exportable)}
            got = run(inputs)
            expected = [output.detach().numpy() for output in exportable.reference(*tensors)]
            for output, g, e in zip(exportable.output_names, got, expected, strict=True):
                comparisons.append(compared(output=output, against="torch", difference=apart(output, g, e)))
                if not _fits(g.shape, declared[output], sizes):
                    misfit = Difference(failure=f"got {list(g.shape)}, and the graph says {list(declared[output])}")
                    comparisons.append(compared(output=output, against="declared", difference=misfit))
        rows = [run({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(batch)]
        for output, g, alone in zip(exportable.output_names, got, zip(*rows, strict=True), strict=True):
            comparisons.append(
                compared(output=output, against="alone", difference=apart(output, g, np.concatenate(alone)))
            )
    return ParityReport(
        atol=atol,
        rtol=rtol,
        onnxruntime=version,
        torch=torch.__version__,
        comparisons=tuple(comparisons),
        tolerances=dict(tolerances or {}),
    )


def _dynamic_axes(exportable: Exportable) -> Iterator[tuple[str, int, str]]:
    for name, axes in exportable.dynamic.items():
        for axis, dim in axes.items():
            yield name, axis, dim


def _fits(shape: tuple[int, ...], declared: tuple[int | str | None, ...], sizes: Mapping[str, int]) -> bool:
    """Whether an answer has the declared shape; a name that no input has may stand for any size."""
    return len(shape) == len(declared) and all(
        size == (dim if isinstance(dim, int) else sizes.get(dim or "", size))
        for size, dim in zip(shape, declared, strict=True)
    )


def _runner(path: Path, outputs: Sequence[str]) -> tuple[Callable[[Mapping[str, Array]], list[Array]], str]:
    """A function that runs the file as the server would on the CPU, and the version of ONNX Runtime."""
    try:
        import onnxruntime
    except ImportError as exc:
        raise ShipError("parity needs ONNX Runtime: pip install 'forwardpass[training,cpu]'") from exc
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # a shape other than the declared one is reported by us
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise ParityFailed(f"ONNX Runtime refuses {path}: {exc}") from exc

    def run(inputs: Mapping[str, Array]) -> list[Array]:
        try:
            answers: list[Array] = session.run(outputs, dict(inputs))
        except Exception as exc:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ParityFailed(f"ONNX Runtime refuses {shapes}, which the network takes: {exc}") from exc
        return answers

    return run, onnxruntime.__version__
