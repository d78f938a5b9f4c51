"""The bench on which variants of one run are built and tried, each in child processes of its own."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from forwardpass_training.child import in_child
from forwardpass_training.data import Dataset
from forwardpass_training.data.download import sha256_of
from forwardpass_training.difference import Array
from forwardpass_training.errors import ChildFailed
from forwardpass_training.evaluate import HEADLINE
from forwardpass_training.export import export
from forwardpass_training.exportable import Exportable, Tensors
from forwardpass_training.portable import foreign_operators
from forwardpass_training.quality import loss_of, quality
from forwardpass_training.task import Task
from forwardpass_training.trial import Arrays, trial
from forwardpass_training.variant_gates import Measured, VariantGates, batch_difference, dependence, refusals
from forwardpass_training.variants import VARIANTS, build

BATCHES = (1, 8, 64)
MATES = 32
CALIBRATION_RUNS, CALIBRATION_ROWS = 10, 100
CALIBRATION_CHARACTERS = 50
TIMEOUT_S = 600.0


class Bench:
    """Builds and tries variants of one network.

    Args:
        exportable: the network.
        dataset: its data.
        task: what it is for.
        gates: what a variant must pass.
        kept: folder of the variants, `<name>.onnx`.
        scratch: folder for what children read and write.

    Raises:
        ExportFailed: the network cannot be written as ONNX.
    """

    def __init__(
        self, exportable: Exportable, dataset: Dataset, task: Task, gates: VariantGates, *, kept: Path, scratch: Path
    ) -> None:
        self._exportable = exportable
        self._task = task
        self._gates = gates
        self._kept = kept
        self._targets = dataset.test.targets.numpy()
        self._carry = _carried(exportable) if task == "language" else {}
        self._source = export(exportable, scratch / "model.onnx")
        self._inputs, self._calibration = scratch / "inputs.npz", scratch / "calibration.npz"
        self._answers = scratch / "answers.npz"
        _write(self._inputs, self._trial_inputs(dataset))
        _write(self._calibration, self._calibration_inputs(dataset))
        kept.mkdir(exist_ok=True)

    def measure(self, variant: str, baseline: Measured | None) -> Measured:
        """Build one variant, try it, and hold it against the gates; without a baseline it is the baseline.

        Raises:
            ChildFailed: the baseline itself does not run, or answers NaN.
        """
        target = self._kept / f"{variant}.onnx"
        target.unlink(missing_ok=True)
        says = VARIANTS[variant].says
        try:
            cost, answered = self._build_and_try(variant, target)
        except ChildFailed as exc:
            target.unlink(missing_ok=True)
            if baseline is None:
                raise
            return Measured(variant=variant, says=says, refused=(str(exc),))
        answers = answered[f"held_out/{self._exportable.output_names[0]}"]
        if wild := np.count_nonzero(~np.isfinite(answers)):
            target.unlink()
            reason = f"{wild:,} of {answers.size:,} answers to held-out inputs are not finite"
            if baseline is None:
                raise ChildFailed(f"float32 itself: {reason}")
            return Measured(variant=variant, says=says, refused=(reason,))
        metrics = quality(self._task, answers, self._targets)
        _write_metrics(target, metrics)
        measured = Measured(
            variant=variant,
            says=says,
            metrics=metrics,
            quality_loss=loss_of(HEADLINE[self._task], metrics, baseline.metrics if baseline else metrics),
            batch_difference=batch_difference(answered),
            file_bytes=target.stat().st_size,
            sha256=sha256_of(target),
            foreign_operators=foreign_operators(target),
            **cost,
        )
        if baseline is None:
            return measured
        depends = dependence(answered, self._gates)
        return dataclasses.replace(
            measured, refused=tuple(refusals(measured, baseline, self._gates, self._task, depends))
        )

    def _build_and_try(self, variant: str, target: Path) -> tuple[dict[str, Any], dict[str, Array]]:
        """Costs, as fields of `Measured`, and answers."""
        job = {"variant": variant, "source": str(self._source), "target": str(target)}
        in_child(build, {**job, "calibration": str(self._calibration)}, timeout_s=TIMEOUT_S)
        job = {"file": str(target), "inputs": str(self._inputs), "answers": str(self._answers)}
        cost = in_child(trial, {**job, "batches": BATCHES, "carry": self._carry}, timeout_s=TIMEOUT_S)
        by_batch = {
            name: {int(batch): value for batch, value in cost[name].items()}
            for name in ("latency_s", "cpu_s", "memory_bytes")
        }
        counted, int8 = cost["multiply_adds"], cost["int8"]
        with np.load(self._answers) as file:
            answered = {key: file[key] for key in file.files}
        share = int8 / counted if counted else 0.0
        return {"load_s": cost["load_s"], **by_batch, "multiply_adds": counted, "int8_share": share}, answered

    def _trial_inputs(self, dataset: Dataset) -> dict[str, Arrays]:
        names = self._exportable.input_names
        held_out = {names[0]: dataset.test.inputs.numpy()}
        if self._carry:  # one text from its beginning
            held_out = {names[0]: dataset.test.inputs.numpy()[None], **_zero_state(self._exportable, 1)}
        cases = {"examples": self._exportable.examples, **self._exportable.further_examples}
        timed = self._exportable.further_examples.get("step", self._exportable.examples)
        draws = {f"mates{number}": (examples, MATES) for number, examples in enumerate(cases.values())}
        draws["timed"] = (timed, max(BATCHES))
        drawn = {
            part: dict(zip(names, _arrays(examples(rows, torch.Generator().manual_seed(rows))), strict=True))
            for part, (examples, rows) in draws.items()
        }
        return {"held_out": held_out, **drawn}

    def _calibration_inputs(self, dataset: Dataset) -> dict[str, Arrays]:
        """Inputs of a few runs, drawn from the training data: held-out data must not shape what it judges."""
        generator = torch.Generator().manual_seed(0)
        name, inputs = self._exportable.input_names[0], dataset.train.inputs
        runs: dict[str, Arrays] = {}
        for number in range(CALIBRATION_RUNS):
            if self._carry:
                begin = torch.randint(len(inputs) - CALIBRATION_CHARACTERS, (CALIBRATION_ROWS, 1), generator=generator)
                rows = inputs[begin + torch.arange(CALIBRATION_CHARACTERS)]
                runs[str(number)] = {name: rows.numpy(), **_zero_state(self._exportable, CALIBRATION_ROWS)}
            else:
                rows = inputs[torch.randint(len(inputs), (CALIBRATION_ROWS,), generator=generator)]
                runs[str(number)] = {name: rows.numpy()}
        return runs


def _carried(exportable: Exportable) -> dict[str, str]:
    """A sequence model's state: each input behind the first, and the output that becomes it."""
    return dict(zip(exportable.input_names[1:], exportable.output_names[1:], strict=True))


def _zero_state(exportable: Exportable, rows: int) -> Arrays:
    examples = exportable.examples(rows, torch.Generator().manual_seed(0))
    return {name: np.zeros_like(e.numpy()) for name, e in zip(exportable.input_names[1:], examples[1:], strict=True)}


def _write_metrics(file: Path, metrics: Mapping[str, float]) -> None:
    """The file's own metrics in its metadata, where float32's were."""
    model = onnx.load(file)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    helper.set_model_props(model, {**metadata, "forwardpass.metrics": json.dumps(metrics)})
    onnx.save(model, file)


def _write(path: Path, parts: Mapping[str, Arrays]) -> None:
    arrays = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _arrays(tensors: Tensors) -> list[Array]:
    return [tensor.numpy() for tensor in tensors]
