"""Held-out metrics, as pure functions of arrays. A ratio whose denominator is 0 (no row predicted positive) is 0.

One row has one class here, so precision, recall and F1 averaged over rows (micro) all equal the accuracy; they are not
repeated under other names.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

BINS = 15
"""Of the calibration error, equally wide (Guo et al. 2017)."""


def regression(predictions: Floats, targets: Floats) -> dict[str, float]:
    """Mean squared and absolute error, and R², of numbers of one shape. Constant targets: R² is 1 if exact, else 0."""
    errors = predictions.astype(np.float64) - targets
    residual, total = np.sum(errors**2), np.sum((targets - targets.mean(dtype=np.float64)) ** 2)
    r2 = 1 - residual / total if total > 0 else float(residual == 0)
    return {"mse": float(np.mean(errors**2)), "mae": float(np.mean(np.abs(errors))), "r2": float(r2)}


def binary(probabilities: Floats, targets: Integers) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of class 1 at threshold 0.5, and what needs no threshold; arrays [rows]."""
    both = np.stack([1 - probabilities, probabilities], axis=1)
    predictions = (probabilities > 0.5).astype(np.int64)
    confusion = confusion_matrix(predictions, targets, classes=2)
    precision, recall, f1 = (scores[1] for scores in per_class(confusion))
    return {
        "accuracy": _accuracy(confusion),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": roc_auc(probabilities, targets == 1),
        "log_loss": log_loss(both, targets),
        "ece": calibration(both.max(axis=1), predictions == targets).error,
    }


def multiclass(probabilities: Floats, targets: Integers) -> dict[str, float]:
    """Accuracy; precision, recall, F1 and ROC AUC (one class against the rest) averaged over classes; log loss; ECE.

    Args:
        probabilities: [rows, classes].
        targets: [rows], 0 to classes - 1.
    """
    classes = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    confusion = confusion_matrix(predictions, targets, classes=classes)
    precision, recall, f1 = per_class(confusion)
    return {
        "accuracy": _accuracy(confusion),
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "f1_macro": float(f1.mean()),
        "roc_auc_macro": float(np.mean([roc_auc(probabilities[:, n], targets == n) for n in range(classes)])),
        "log_loss": log_loss(probabilities, targets),
        "ece": calibration(probabilities.max(axis=1), predictions == targets).error,
    }


def language(nats: Floats, hits: NDArray[np.bool_]) -> dict[str, float]:
    """Nats and bits per character, perplexity, and how often the likeliest character was right; arrays [characters]."""
    nats_per_character = float(nats.mean(dtype=np.float64))
    return {
        "nats_per_character": nats_per_character,
        "bits_per_character": nats_per_character / float(np.log(2)),
        "perplexity": float(np.exp(nats_per_character)),
        "accuracy": float(hits.mean()),
    }


def confusion_matrix(predictions: Integers, targets: Integers, *, classes: int) -> NDArray[np.int64]:
    """Counts [true class, predicted class]."""
    return np.bincount(targets * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def per_class(confusion: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of every class, each [classes]."""
    hits = np.diag(confusion).astype(np.float64)
    predicted, actual = confusion.sum(axis=0), confusion.sum(axis=1)
    return _ratio(hits, predicted), _ratio(hits, actual), _ratio(2 * hits, predicted + actual)


def roc_auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The chance that a positive row scores above a negative one, a tie counting half (Mann, Whitney); arrays [rows].

    With rows of one kind only there is nothing to rank: 0.5, as guessing gets.
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return 0.5
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = ties.cumsum() - (ties - 1) / 2  # of each distinct score, counted from 1; ties share their mean
    wins = ranks[place[positive]].sum() - positives * (positives + 1) / 2
    return float(wins / positives / negatives)


def log_loss(probabilities: Floats, targets: Integers) -> float:
    """Mean of -ln(probability of the true class); a probability of 0 counts as the smallest normal float64."""
    of_truth = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean())


@dataclass(frozen=True)
class Calibration:
    """Confidence against what it was worth, in equal bins of confidence from 0 to 1; each array is [bins].

    Attributes:
        rows: in each bin.
        confidence: their mean; 0 in an empty bin.
        accuracy: share of them that is right; 0 in an empty bin.
    """

    rows: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: mean over rows of the distance between their bin's confidence and accuracy."""
        return float(np.sum(self.rows * np.abs(self.confidence - self.accuracy)) / self.rows.sum())


def calibration(confidence: Floats, hits: NDArray[np.bool_], *, bins: int = BINS) -> Calibration:
    """Put rows into bins by the probability of the class that was answered; arrays [rows]. Edges belong to the left."""
    edges = np.arange(1, bins) / bins
    of_row = np.searchsorted(edges, confidence, side="left")
    rows = np.bincount(of_row, minlength=bins)
    sums = (np.bincount(of_row, weights=of, minlength=bins).astype(np.float64) for of in (confidence, hits))
    return Calibration(rows, *(_ratio(of, rows) for of in sums))


def _accuracy(confusion: NDArray[np.int64]) -> float:
    return float(np.trace(confusion) / confusion.sum())


def _ratio(part: Floats, whole: NDArray[np.integer[Any]]) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return ratio
