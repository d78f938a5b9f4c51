"""How far a held-out figure may be from the truth, because the held-out rows are only so many.

Shares of rows get Wilson's interval (1927), which stays inside 0 to 1 and holds for few rows and for shares near 1. All
others are bootstrapped: drawn again and again from the rows there are. Neither knows of other seeds or other data.
The calibration error gets none: it is a sum of distances, which drawing with repeats only enlarges.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forwardpass_training import metrics
from forwardpass_training.task import Task

Interval = tuple[float, float]
Array = NDArray[Any]

CONFIDENCE = 0.95
Z = 1.959964
"""Standard deviations of a normal law that hold CONFIDENCE of it, on both sides."""
RESAMPLES = 300
VALUES_DRAWN = 30_000_000
"""Rows drawn in all at most: of more than 100,000 rows fewer resamples are taken, whose spread is then tiny anyhow."""
BLOCK_CHARACTERS = 500
"""Neighbouring characters share their fate, so a text is drawn by pieces of it."""


def wilson(hits: int, rows: int) -> Interval:
    """Of a share: `hits` of `rows` (at least 1)."""
    share, spread = hits / rows, Z * Z / rows
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt((share * (1 - share) + spread / 4) / rows) / (1 + spread)
    # with no hit, or only hits, rounding may leave the bound a hair inside
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == rows else centre + half)


def bootstrap(rows: int, figures: Callable[[Array], Mapping[str, float]], *, seed: int = 0) -> dict[str, Interval]:
    """The middle 95 % of each figure over samples of the rows, drawn with repeats.

    Args:
        rows: to draw from.
        figures: row numbers [rows] → figures by name.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    resamples = max(20, min(RESAMPLES, VALUES_DRAWN // rows))
    drawn = [figures(generator.integers(rows, size=rows)) for _ in range(resamples)]
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    found = {}
    for name in drawn[0].keys() - {"ece"}:
        low, high = np.quantile([sample[name] for sample in drawn], tails)
        found[name] = (float(low), float(high))
    return found


def intervals(task: Task, answers: Array, targets: Array) -> dict[str, Interval]:
    """Of every metric of a task but the calibration error, with 95 % confidence.

    Args:
        task: of the network.
        answers: predictions or probabilities, as `metrics` takes them; of a language model, nats [characters].
        targets: likewise; of a language model, whether the likeliest character was right [characters].
    """
    match task:
        case "regression":
            return bootstrap(len(targets), lambda rows: metrics.regression(answers[rows], targets[rows]))
        case "binary":
            found = bootstrap(len(targets), lambda rows: metrics.binary(answers[rows], targets[rows]))
            confusion = metrics.confusion_matrix((answers > 0.5).astype(np.int64), targets, classes=2)
            (_, wrong), (missed, hits) = confusion.tolist()
            shares = {"precision": (hits, hits + wrong), "recall": (hits, hits + missed)}
            wilsons = {name: wilson(hits, whole) for name, (hits, whole) in shares.items() if whole}
            return {**found, "accuracy": wilson(int(np.trace(confusion)), len(targets)), **wilsons}
        case "multiclass":
            found = bootstrap(len(targets), lambda rows: metrics.multiclass(answers[rows], targets[rows]))
            return {**found, "accuracy": wilson(int((answers.argmax(axis=1) == targets).sum()), len(targets))}
        case "language":
            blocks = [np.array_split(values, max(1, len(values) // BLOCK_CHARACTERS)) for values in (answers, targets)]

            def figures(drawn: Array) -> Mapping[str, float]:
                nats, hits = (np.concatenate([pieces[number] for number in drawn]) for pieces in blocks)
                return metrics.language(nats, hits)

            return bootstrap(len(blocks[0]), figures)
