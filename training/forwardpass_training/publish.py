"""From a finished run to a served version: gates, export, parity, golden examples, and one rename into the repository.

The one thing to know: whatever fails, fails before the repository changes. A version that is there has met the recipe's
gates (or says in its manifest which it missed), answers as the network in torch does, and carries the examples with
which the server proves it again on its own device.
"""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.numpy_helper
import torch

from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.repository import (
    CONFIG_FILE,
    MODEL_FILE,
    Contents,
    GoldenSet,
    Tolerance,
    VersionFolder,
)
from forwardpass_training import run
from forwardpass_training.config import Gate
from forwardpass_training.errors import BadSetting, PublishFailed
from forwardpass_training.export import export
from forwardpass_training.exportable import Exportable
from forwardpass_training.folder import RunFolder, write_whole
from forwardpass_training.portable import not_portable
from forwardpass_training.report import draw
from forwardpass_training.verify import ParityReport, measure

PARITY_FILE = "parity.json"

SEQUENCES = 256
"""At a time, of a model that is published for sequences."""
SEQUENCE_IDLE_S = 60
"""After which a sequence without requests is forgotten."""

GOLDEN_BATCHES = (1, 3, 8)
# The server may run on another processor, or on a GPU, whose kernels add in yet another order: three times the
# tolerance of parity, which is measured on one machine.
GOLDEN_TOLERANCE = Tolerance(atol=1e-4, rtol=1e-4)


def publish(
    run_folder: Path, root: Path, *, model: str | None = None, force: bool = False, sequences: bool = False
) -> VersionFolder:
    """Export a finished run, prove the export, and put it into a repository as the model's next version.

    Leaves `model.onnx` and `parity.json` in the run folder, and draws its report again.

    Args:
        run_folder: of a finished run.
        root: of the model repository; made when it is not there.
        model: name to publish under; the recipe's when None.
        force: publish although held-out metrics miss the recipe's gates; parity is never waived.
        sequences: let the server keep the network's state from request to request of a sequence.

    Raises:
        ShipError: a gate is missed, the export fails, parity fails, or the repository refuses; nothing is published.
        BadSetting: sequences, of a network that has no state.
        RunError: the folder holds no finished run.
        DataError: the run's held-out data cannot be had.
    """
    folder = RunFolder.open(run_folder)
    metrics, notes = passed_gates(folder, force=force)
    exportable, name = run.exportable(run_folder), model or folder.config().name
    if sequences and not exportable.states:
        raise BadSetting(f"{name} keeps no state, so there is nothing to a sequence of its requests")
    file = export(exportable, run_folder / MODEL_FILE)
    report = measure(file, exportable)
    report.write(run_folder / PARITY_FILE)
    draw(folder)
    report.check()
    if sequences:
        configure(root, name, sequence_config(exportable.states))
    return publish_export(
        run_folder / MODEL_FILE,
        exportable,
        report,
        root,
        model=name,
        metrics=metrics,
        notes=notes,
    )


def passed_gates(folder: RunFolder, *, force: bool = False) -> tuple[dict[str, float], dict[str, Any]]:
    """A finished run's held-out metrics, and what the manifest must say about the gates: which were missed.

    Raises:
        PublishFailed: one is missed, and nobody forces it.
    """
    config = folder.config()
    metrics: dict[str, float] = run.metrics(folder.path)["held_out"]
    missed = [gate for gate in config.gates if not gate.holds(metrics)]
    if missed and not force:
        raise PublishFailed(
            f"{folder.path} does not reach what {config.name} asks: {_explain(missed, metrics)}; "
            "train longer or differently, or publish it nevertheless with --force"
        )
    return metrics, {"gates_missed": [str(gate) for gate in missed]} if missed else {}


def configure(root: Path, model: str, text: str) -> None:
    """Write a model's config.pbtxt where it has none: before its first version, so that no server loads it without.

    Raises:
        PublishFailed: that is no model name, or the disk refuses.
    """
    if not repository.is_model_name(model):
        raise PublishFailed(f"{model!r:.160} is no model name: use letters, digits, '_', '.', '-'")
    config = root / model / CONFIG_FILE
    if config.exists():
        return
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
        write_whole(config, lambda file: file.write(text.encode()))
    except OSError as exc:
        raise PublishFailed(f"cannot write {config}: {exc}; nothing was published") from exc


def sequence_config(states: Mapping[str, str]) -> str:
    """The config.pbtxt of a model whose states (output by input name) the server keeps."""
    pairs = ",\n".join(f'    {{ input_name: "{before}" output_name: "{after}" }}' for before, after in states.items())
    return f"""# the server keeps these states: requests belong to a sequence and give the other inputs alone
sequence_batching {{
  oldest {{ max_candidate_sequences: {SEQUENCES} }}
  max_sequence_idle_microseconds: {SEQUENCE_IDLE_S * 1_000_000}
  state [
{pairs}
  ]
}}
"""


def publish_export(
    exported: Path,
    exportable: Exportable,
    report: ParityReport,
    root: Path,
    *,
    model: str,
    metrics: Mapping[str, float],
    notes: Mapping[str, Any] | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
) -> VersionFolder:
    """Put an exported network into a repository, with golden examples made from its held-out inputs.

    Args:
        exported: what `export` wrote: an ONNX file, or a folder that holds it and its weights.
        exportable: the network it was written from.
        report: that the two agree.
        root: of the model repository; made when it is not there.
        model: name to publish under.
        metrics: held-out metrics, for the manifest.
        notes: further provenance, for the manifest.
        tolerances: of the golden examples, for outputs that need their own.

    Raises:
        ParityFailed: the report is not a good one.
        PublishFailed: the repository refuses the name, or the disk the files.
    """
    report.check()
    proof = {key: value for key, value in report.to_json().items() if key != "comparisons"}
    provenance = {**origin(exportable), "parity": {**proof, "comparisons": len(report.comparisons)}, **(notes or {})}
    return place(exported, exportable, root, model=model, metrics=metrics, provenance=provenance, tolerances=tolerances)


def place(
    exported: Path,
    exportable: Exportable,
    root: Path,
    *,
    model: str,
    metrics: Mapping[str, float],
    provenance: Mapping[str, Any],
    tolerance: Tolerance = GOLDEN_TOLERANCE,
    tolerances: Mapping[str, Tolerance] | None = None,
    foreign_operators: Collection[str] = (),
) -> VersionFolder:
    """Put a file into a repository as the model's next version; whoever calls has proved that it is a good one.

    Args:
        exported: an ONNX file, or a folder that holds it and its weights.
        exportable: whose inputs and `reference` make the golden examples.
        root: of the model repository; made when it is not there.
        model: name to publish under.
        metrics: held-out metrics, for the manifest.
        provenance: for the manifest.
        tolerance: of the golden examples.
        tolerances: of single outputs.
        foreign_operators: beyond ONNX's own, that the file is known to hold; any other is refused.

    Raises:
        PublishFailed: the file holds what runs on one kind of processor, or undeclared in one runtime; the repository
            refuses the name, or the disk the files.
    """

    def build(folder: Path) -> Contents:
        if exported.is_dir():
            shutil.copytree(exported, folder / MODEL_FILE)
        else:
            shutil.copyfile(exported, folder / MODEL_FILE)
        for name, text in exportable.companions.items():
            (folder / name).write_text(text, encoding="utf-8")
        golden = [
            GoldenSet(folder=name, atol=tolerance.atol, rtol=tolerance.rtol, outputs=tolerances or {})
            for name in _write_golden(folder, exportable)
        ]
        return {"golden": golden, "provenance": provenance, "metrics": dict(metrics)}

    try:
        if reason := not_portable(exported, declared=foreign_operators):
            raise PublishFailed(f"{exported} is not published: {reason}")
        return repository.publish(root, model, build)
    except repository.PublishFailed as exc:
        raise PublishFailed(str(exc)) from exc
    except OSError as exc:
        raise PublishFailed(f"cannot write a version of {model!r} into {root}: {exc}; nothing was published") from exc


def origin(exportable: Exportable) -> dict[str, Any]:
    """What the ONNX file says about where it comes from, as values instead of text."""
    said = {key.removeprefix("forwardpass."): value for key, value in exportable.metadata.items()}
    return {key: _value(text) for key, text in said.items() if key not in ("labels", "vocabulary", "metrics", "card")}


def _explain(missed: Sequence[Gate], metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{gate.metric} is {metrics.get(gate.metric, float('nan')):.4g}, asked is {gate}" for gate in missed
    )


def _write_golden(folder: Path, exportable: Exportable) -> list[str]:
    """Real held-out inputs at several batch sizes, and what the reference answers, in the ONNX test-data layout.

    Returns the folders' names.
    """
    golden: list[str] = []
    for examples in (exportable.examples, *exportable.further_examples.values()):
        for batch in GOLDEN_BATCHES:
            name = f"test_data_set_{len(golden)}"
            (folder / name).mkdir()
            # Parity seeds with the batch size; a seed of our own gives inputs that parity has not seen.
            inputs = examples(batch, torch.Generator().manual_seed(1000 + len(golden)))
            outputs = exportable.reference(*inputs)
            _write_tensors(folder / name, "input", exportable.input_names, inputs)
            _write_tensors(folder / name, "output", exportable.output_names, outputs)
            golden.append(name)
    return golden


def _write_tensors(folder: Path, kind: str, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
    for index, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        array = np.ascontiguousarray(tensor.detach().numpy())
        proto = onnx.numpy_helper.from_array(array, name)
        (folder / f"{kind}_{index}.pb").write_bytes(proto.SerializeToString())


def _value(text: str) -> Any:
    return json.loads(text) if text.startswith(("{", "[")) else text
