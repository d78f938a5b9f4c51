"""Optimise: other forms of a trained network, each tried, measured, and offered only if it passes the gates.

The one thing to know: float32 as exported stays the default. A variant is a choice, and what it costs is written beside
what it saves. Each is built in one child process and tried in another, since some converters write files that crash
the loader (fp16 of a graph with an LSTM: SIGSEGV in ONNX Runtime 1.31).
"""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from forwardpass_server.lifecycle.repository import Tolerance, VersionFolder
from forwardpass_training import device, report, run
from forwardpass_training.bench import Bench
from forwardpass_training.data.download import sha256_of
from forwardpass_training.errors import BadSetting, PublishFailed
from forwardpass_training.evaluate import HEADLINE
from forwardpass_training.exportable import Exportable, Tensors
from forwardpass_training.folder import RunFolder
from forwardpass_training.publish import origin, place
from forwardpass_training.task import Task
from forwardpass_training.variant_gates import Measured, VariantGates
from forwardpass_training.variants import BASELINE, VARIANTS

OPTIMISE_FILE = "optimise.json"
VARIANTS_FOLDER = "variants"


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """All variants of one run; float32 as exported is the first."""

    recipe: str
    task: Task
    headline: str
    held_out: int
    gates: VariantGates
    machine: Mapping[str, Any]
    variants: tuple[Measured, ...]

    def of(self, name: str) -> Measured:
        """The variant of that name.

        Raises:
            BadSetting: it was not tried.
        """
        for measured in self.variants:
            if measured.variant == name:
                return measured
        raise BadSetting(
            f"variant {name!r} was not tried; there are {', '.join(each.variant for each in self.variants)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; each variant says whether it is offered."""
        variants = [{**asdict(measured), "offered": measured.offered} for measured in self.variants]
        return {**asdict(self), "variants": variants}


def optimise(
    run_folder: Path,
    *,
    variants: Sequence[str] | None = None,
    gates: VariantGates | None = None,
    told: Callable[[str], None] | None = None,
) -> Optimisation:
    """Make and try variants of a finished run. Leaves `variants/<name>.onnx` and `optimise.json` there, and the report.

    Args:
        run_folder: of a finished run.
        variants: names in `VARIANTS`; None: all. float32 is always among them.
        gates: what a variant must pass.
        told: gets a line before each.

    Raises:
        BadSetting: no such variant.
        ChildFailed: float32 itself does not run.
        TrainingError: the run or its data cannot be had, or not exported.
    """
    wanted = list(VARIANTS) if variants is None else variants
    if unknown := [name for name in wanted if name not in VARIANTS]:
        raise BadSetting(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    folder = RunFolder.open(run_folder)
    config = folder.config()
    exportable, dataset = run.exportable(run_folder), run.dataset(run_folder)
    asked = gates or VariantGates()
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="forwardpass-") as scratch:
        kept = run_folder / VARIANTS_FOLDER
        bench = Bench(exportable, dataset, config.task, asked, kept=kept, scratch=Path(scratch))
        for name in (BASELINE, *(name for name in wanted if name != BASELINE)):
            if told:
                told(f"{name}: {VARIANTS[name].says}")
            measured.append(bench.measure(name, measured[0] if measured else None))
    found = Optimisation(
        recipe=config.name,
        task=config.task,
        headline=HEADLINE[config.task],
        held_out=len(dataset.test),
        gates=asked,
        machine=device.describe(torch.device("cpu")),
        variants=tuple(measured),
    )
    folder.write_json(OPTIMISE_FILE, found.to_json())
    report.draw(folder)
    return found


def publish_variant(
    run_folder: Path, found: Optimisation, variant: str, root: Path, *, model: str | None = None
) -> VersionFolder:
    """Put a variant that passed into a repository, beside the float32 model or, by name, in its place.

    Its golden examples are its own answers, and their tolerance is the gate of batch invariance that it passed: a
    server whose processor computes it otherwise than what was measured here refuses it.

    Args:
        run_folder: that was optimised.
        found: by `optimise`.
        variant: its name.
        root: of the repository.
        model: to publish under; None: `<recipe>_<variant>`, so that nobody's answers change unasked.

    Raises:
        PublishFailed: it was refused, or changed since, or the repository refuses.
    """
    measured = found.of(variant)
    if not measured.offered:
        raise PublishFailed(f"{variant} of {found.recipe} is refused: {'; '.join(measured.refused)}")
    file = run_folder / VARIANTS_FOLDER / f"{variant}.onnx"
    if not file.is_file() or sha256_of(file) != measured.sha256:
        raise PublishFailed(f"{file} is not the file that was measured; run optimise again")
    exportable = run.exportable(run_folder)
    bound = found.gates.max_batch_difference
    return place(
        file,
        dataclasses.replace(exportable, reference=_answers_of(file, exportable)),
        root,
        model=model or f"{found.recipe}_{variant}",
        metrics=measured.metrics,
        provenance={**origin(exportable), "variant": {**asdict(measured), "gates": asdict(found.gates)}},
        tolerance=Tolerance(atol=bound, rtol=bound),
        foreign_operators=measured.foreign_operators,
    )


def _answers_of(file: Path, exportable: Exportable) -> Callable[..., Tensors]:
    """The file itself as a reference. Only for files that have passed their trial in a child."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def answer(*inputs: torch.Tensor) -> Tensors:
        feed = dict(zip(exportable.input_names, (tensor.numpy() for tensor in inputs), strict=True))
        return tuple(torch.from_numpy(array) for array in session.run(list(exportable.output_names), feed))

    return answer
