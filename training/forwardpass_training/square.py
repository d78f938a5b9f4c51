"""The square attack (Andriushchenko et al. 2020): random squares of plus or minus the radius, kept where they help.

It asks the target for answers and never for a gradient, so it finds what the others miss where gradients lie.
"""

import numpy as np

from forwardpass_training.attack import Array, Attack, Ball, Target, best_wrong

SQUARE_SHARE = 0.8
"""Share of the picture that the first squares cover; shrinks as the queries are used up (the paper's schedule)."""
SQUARE_SCHEDULE = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def square(*, queries: int) -> Attack:
    """Random squares of plus or minus the radius, each kept where it narrows the margin; `queries` answers a row."""

    def attack(target: Target, x: Array, classes: Array, ball: Ball, generator: np.random.Generator) -> Array:
        pictures = _as_pictures(x)
        columns = generator.choice([-1.0, 1.0], (len(x), pictures.shape[1], 1, pictures.shape[3]))
        best = ball.land(_like(np.broadcast_to(columns, pictures.shape), x) * ball.radius + x, x)
        margins = _margins(target.answer(best), classes)
        height, width = pictures.shape[2:]
        for query in range(1, queries):
            left = np.flatnonzero(margins >= 0)
            if not len(left):
                break
            side = _side(query / queries, height, width)
            rows, columns_ = min(side, height), min(side, width)
            top = generator.integers(0, height - rows + 1, (len(left), 1, 1, 1))
            beginning = generator.integers(0, width - columns_ + 1, (len(left), 1, 1, 1))
            down, across = np.arange(height)[:, None], np.arange(width)[None]
            inside = (down >= top) & (down < top + rows) & (across >= beginning) & (across < beginning + columns_)
            signs = generator.choice([-1.0, 1.0], (len(left), pictures.shape[1], 1, 1))
            painted = np.where(inside, pictures[left] + signs * ball.radius, _as_pictures(best[left]))
            sent = ball.land(_like(painted, x[left]), x[left])
            now = _margins(target.answer(sent), classes[left])
            better = now <= margins[left]  # and not `<`, which would stand still where a sure softmax is flat
            best[left[better]], margins[left[better]] = sent[better], now[better]
        return best

    return attack


def _side(done: float, height: int, width: int) -> int:
    """Pixels of a square's side when a share `done` of the queries is used up."""
    halvings = sum(done > mark for mark in SQUARE_SCHEDULE)
    return max(1, round(float(np.sqrt(SQUARE_SHARE * 0.5**halvings * height * width))))


def _margins(probabilities: Array, classes: Array) -> Array:
    """How much surer the target is of the right class than of the best wrong one, in nats; below 0 it errs."""
    rows = np.arange(len(classes))
    logs = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).smallest_subnormal))
    wrong = logs[rows, best_wrong(probabilities, classes)]
    # an equal one that comes first is the one answered
    fooled = probabilities.argmax(axis=1) != classes
    gaps = logs[rows, classes] - wrong
    margins: Array = np.where(fooled, np.minimum(gaps, -1e-9), gaps)
    return margins


def _as_pictures(x: Array) -> Array:
    """[rows, height, width] or [rows, height, width, planes] → float64 [rows, planes, height, width]."""
    pictures = x.astype(np.float64)
    return pictures[:, None] if x.ndim == 3 else np.moveaxis(pictures, -1, 1)


def _like(pictures: Array, x: Array) -> Array:
    """The inverse."""
    return pictures[:, 0] if x.ndim == 3 else np.moveaxis(pictures, 1, -1)
