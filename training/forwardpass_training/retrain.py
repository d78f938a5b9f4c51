"""Retraining: the settings of the version that serves now, on the data of today; published only if it is not worse.

Both are judged on the same rows, those that the data of today holds out: the new network in torch, the version that
serves through ONNX Runtime, as the file that it is. Whatever the verdict, it says why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.repository import VersionFolder
from forwardpass_training import metrics, run
from forwardpass_training.config import RunConfig, from_json
from forwardpass_training.data import Dataset
from forwardpass_training.errors import BadSetting, PublishFailed
from forwardpass_training.evaluate import HEADLINE, LOWER_IS_BETTER, ROWS_AT_ONCE
from forwardpass_training.publish import publish


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        published: the new version; None where the old one goes on serving.
        reasons: one sentence each.
        run_folder: of the new network.
        metric: by which both were told apart.
        before: of the version that served, on the rows held out today.
        after: of the new network, on the same rows.
    """

    published: VersionFolder | None
    reasons: tuple[str, ...]
    run_folder: Path
    metric: str
    before: float
    after: float


def last_config(root: Path, model: str) -> tuple[VersionFolder, RunConfig]:
    """The newest version of a model, and the settings it was trained with.

    Raises:
        PublishFailed: the repository has none, or it does not say how it was trained.
    """
    try:
        found = repository.scan(root).models.get(model)
    except repository.RepositoryUnreadable as exc:
        raise PublishFailed(str(exc)) from exc
    if not found or not found.versions:
        raise PublishFailed(f"{root} has no version of {model!r}; publish a run of it first")
    newest = found.versions[max(found.versions)]
    said = newest.manifest.provenance if newest.manifest else {}
    if "config" not in said:
        raise PublishFailed(
            f"{newest.path} does not say how it was trained (no provenance.config in its manifest.json); "
            "publish a run of its recipe first"
        )
    return newest, from_json(said["config"])


def retrain(
    serving: VersionFolder, config: RunConfig, root: Path, runs_dir: Path, surroundings: run.Surroundings
) -> Verdict:
    """Train `config`, compare with `serving`, and publish if every gate holds and the headline metric is not worse.

    Args:
        serving: the version to beat.
        config: its settings, with what is new about the data.
        root: of the model repository.
        runs_dir: where the run folder is made.
        surroundings: of the run.

    Raises:
        TrainingError: see `errors`; nothing is published then.
    """
    if config.task == "language":
        raise BadSetting("retrain compares models on rows; train and publish a language model by itself")
    folder = run.start(config, runs_dir, surroundings)
    dataset = folder.config().data.load(surroundings.store)
    metric = HEADLINE[config.task]
    before = served_metrics(serving.model_file(), config, dataset)[metric]
    after = run.metrics(folder.path)["held_out"]
    reasons = [f"{gate} is missed: {after[gate.metric]:.4g}" for gate in config.gates if not gate.holds(after)]
    told = (
        f"{metric} on {len(dataset.test):,} held-out rows: {after[metric]:.4f}, version {serving.version} {before:.4f}"
    )
    worse = after[metric] > before if metric in LOWER_IS_BETTER else after[metric] < before
    reasons.append(f"{told}: {'worse' if worse else 'not worse'}")
    published = None if len(reasons) > 1 or worse else publish(folder.path, root, model=serving.model)
    return Verdict(published, tuple(reasons), folder.path, metric, before, after[metric])


def served_metrics(file: Path, config: RunConfig, dataset: Dataset) -> dict[str, float]:
    """Held-out metrics of an ONNX file, by name.

    Raises:
        BadSetting: it cannot take today's rows: they have other columns, sizes or classes.
    """
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    rows, targets = dataset.test.inputs.numpy(), dataset.test.targets.numpy()
    if tuple(taken.shape[1:]) != rows.shape[1:]:
        raise BadSetting(f"the version that serves takes rows of {taken.shape[1:]}, today's are {rows.shape[1:]}")
    parts = [rows[begin : begin + ROWS_AT_ONCE] for begin in range(0, len(rows), ROWS_AT_ONCE)]
    answers = np.concatenate([session.run(None, {taken.name: part})[0] for part in parts]).astype(np.float64)
    judges: dict[str, Callable[[], Any]] = {
        "regression": lambda: metrics.regression(answers, targets),
        "binary": lambda: metrics.binary(answers[:, 0], targets[:, 0].astype(np.int64)),
        "multiclass": lambda: metrics.multiclass(answers, targets),
    }
    if config.task == "multiclass" and answers.shape[1] != len(dataset.labels):
        raise BadSetting(
            f"the version that serves tells {answers.shape[1]} classes apart, today's data has {len(dataset.labels)}"
        )
    found: dict[str, float] = judges[config.task]()
    return found
