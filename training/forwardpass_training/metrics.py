"""Held-out metrics, as pure functions of arrays. A ratio whose denominator is 0 (no row predicted positive) is 0."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def regression(predictions: Floats, targets: Floats) -> dict[str, float]:
    """Mean squared and absolute error, and R², of numbers of one shape. Constant targets: R² is 1 if exact, else 0."""
    errors = predictions.astype(np.float64) - targets
    residual, total = np.sum(errors**2), np.sum((targets - targets.mean(dtype=np.float64)) ** 2)
    r2 = 1 - residual / total if total > 0 else float(residual == 0)
    return {"mse": float(np.mean(errors**2)), "mae": float(np.mean(np.abs(errors))), "r2": float(r2)}


def binary(probabilities: Floats, targets: Integers) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of class 1 at threshold 0.5, and log loss (nats); arrays [rows]."""
    confusion = confusion_matrix((probabilities > 0.5).astype(np.int64), targets, classes=2)
    precision, recall, f1 = (scores[1] for scores in per_class(confusion))
    both = np.stack([1 - probabilities, probabilities], axis=1)
    return {
        "accuracy": _accuracy(confusion),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "log_loss": log_loss(both, targets),
    }


def multiclass(probabilities: Floats, targets: Integers) -> dict[str, float]:
    """Accuracy, precision, recall and F1 averaged over classes (macro), and log loss (nats).

    Args:
        probabilities: [rows, classes].
        targets: [rows], 0 to classes - 1.
    """
    confusion = confusion_matrix(probabilities.argmax(axis=1), targets, classes=probabilities.shape[1])
    precision, recall, f1 = per_class(confusion)
    return {
        "accuracy": _accuracy(confusion),
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "f1_macro": float(f1.mean()),
        "log_loss": log_loss(probabilities, targets),
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


def log_loss(probabilities: Floats, targets: Integers) -> float:
    """Mean of -ln(probability of the true class); a probability of 0 counts as the smallest normal float64."""
    of_truth = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean())


def _accuracy(confusion: NDArray[np.int64]) -> float:
    return float(np.trace(confusion) / confusion.sum())


def _ratio(part: Floats, whole: NDArray[np.integer[Any]]) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return ratio
