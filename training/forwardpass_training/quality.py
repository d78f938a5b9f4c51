"""How good a file's answers to held-out inputs are, by the metrics of its task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forwardpass_training import metrics
from forwardpass_training.task import Task

LOWER_IS_BETTER = frozenset({"nats_per_character", "mse", "mae"})


def quality(task: Task, answers: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
    """The held-out metrics of a task, as `evaluate` gives them for the network.

    Args:
        answers: as served, [rows, outputs]; of a language model, logits [1, characters, vocabulary].
        targets: [rows], [rows, 1] or [characters].
    """
    values = answers.astype(np.float64)
    match task:
        case "regression":
            return metrics.regression(values, targets)
        case "binary":
            return metrics.binary(values[:, 0], targets[:, 0].astype(np.int64))
        case "multiclass":
            return metrics.multiclass(values, targets)
        case "language":
            (logits,) = values
            shifted = logits - logits.max(axis=-1, keepdims=True)
            normaliser = np.log(np.exp(shifted).sum(axis=-1))
            nats = normaliser - shifted[np.arange(len(targets)), targets]
            return metrics.language(nats, logits.argmax(axis=-1) == targets)


def loss_of(metric: str, got: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """By how much `got` is worse than `reference` in one metric; negative when better, NaN when one lacks it."""
    change = got.get(metric, float("nan")) - reference.get(metric, float("nan"))
    return change if metric in LOWER_IS_BETTER else -change
