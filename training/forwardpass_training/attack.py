"""Adversarial attacks in the maximum norm, on arrays: how far must inputs move before a classifier errs?

Here are those that follow a gradient; `square` asks for answers alone. The one thing to know: success is judged by the
answers of the artefact under attack, at every step, on inputs that it could really be sent: in its own dtype, within
its range, never farther than epsilon. Gradients only propose.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Answer = Callable[[Array], Array]
"""x [rows, …] → probabilities [rows, classes]."""
Gradient = Callable[[Array, Array], Array]
"""x [rows, …], direction [rows, classes] → gradient of scores · direction with respect to x."""
Loss = Callable[[Array, Array], Array]
"""probabilities [rows, classes], classes [rows] → the direction of scores in which the loss grows."""

CROSSINGS = 2.5
"""How often the steps of pgd together could cross the ball's radius (Madry et al.)."""
MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Ball:
    """Inputs within epsilon of a given one, in the maximum norm.

    Args:
        epsilon: the farthest that an element may move, as a share of the range.
        low: smallest value of an element.
        high: largest value of an element.
        integral: elements are whole numbers, so the radius is rounded down to one.
    """

    epsilon: float
    low: float
    high: float
    integral: bool

    @property
    def radius(self) -> float:
        """The same in units of the input."""
        radius = self.epsilon * (self.high - self.low)
        return float(np.floor(radius + 1e-9)) if self.integral else radius

    def clip(self, moved: Array, x: Array) -> Array:
        """The nearest allowed float64 array."""
        centre = x.astype(np.float64)
        return np.clip(moved, np.maximum(centre - self.radius, self.low), np.minimum(centre + self.radius, self.high))

    def land(self, moved: Array, x: Array) -> Array:
        """The same as something that can be sent: of x's dtype."""
        clipped = self.clip(moved, x)
        return (np.rint(clipped) if self.integral else clipped).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is attacked.

    Args:
        answer: of the artefact itself.
        gradient: of the network behind it, or of one that is near it.
    """

    answer: Answer
    gradient: Gradient


Attack = Callable[[Target, Array, Array, Ball, np.random.Generator], Array]
"""(target, x, classes, ball, generator) → inputs within the ball; those that fool the target where any were found."""


def cross_entropy(probabilities: Array, classes: Array) -> Array:
    """Its gradient with respect to scores: probabilities minus one for the right class, scaled to the same size a row.

    What the right class has is taken as what the others lack, and where a float32 softmax says that the others have
    nothing at all, as if they shared it: sure networks would otherwise look flat, and therefore safe.
    """
    rows = np.arange(len(classes))
    direction = probabilities.astype(np.float64)
    direction[rows, classes] = 0.0
    sure = direction.sum(axis=1) <= 0
    direction[sure] = 1.0
    direction[rows, classes] = 0.0
    direction /= direction.sum(axis=1, keepdims=True)
    direction[rows, classes] = -1.0
    return direction


def margin(probabilities: Array, classes: Array) -> Array:
    """Towards the best wrong class, away from the right one."""
    rows = np.arange(len(classes))
    direction = np.zeros(probabilities.shape)
    direction[rows, best_wrong(probabilities, classes)] = 1.0
    direction[rows, classes] = -1.0
    return direction


def fgsm(target: Target, x: Array, classes: Array, ball: Ball, _: np.random.Generator) -> Array:
    """One step of the whole radius along the sign of the gradient (Goodfellow et al. 2015)."""
    gradient = target.gradient(x, cross_entropy(target.answer(x), classes))
    return ball.land(x + ball.radius * np.sign(gradient), x)


def iterative(*, steps: int, restarts: int, loss: Loss, momentum: float = 0.0, shrinking: bool = False) -> Attack:
    """`steps` steps uphill, from each of `restarts` random points of the ball; rows that are fooled are done.

    Args:
        steps: each CROSSINGS · radius / steps long, or, `shrinking`, from twice that down to nearly nothing.
        restarts: starts.
        loss: to climb.
        momentum: share of the earlier direction that is kept.
        shrinking: see `steps`.
    """

    def attack(target: Target, x: Array, classes: Array, ball: Ball, generator: np.random.Generator) -> Array:
        found = x.copy()
        left = np.arange(len(x))
        for _ in range(restarts):
            place = ball.clip(x[left] + generator.uniform(-ball.radius, ball.radius, x[left].shape), x[left])
            velocity = np.zeros_like(place)
            for step in range(steps + 1):
                sent = ball.land(place, x[left])
                answers = target.answer(sent)
                found[left] = sent
                held = answers.argmax(axis=1) == classes[left]
                left, place, velocity = left[held], place[held], velocity[held]
                if not len(left):
                    return found
                if step == steps:
                    break
                gradient = target.gradient(sent[held], loss(answers[held], classes[left]))
                velocity = momentum * velocity + gradient / _mean_size(gradient)
                length = CROSSINGS * ball.radius / steps
                if shrinking:
                    length *= 2 * (1 - step / steps)
                place = ball.clip(place + length * np.sign(velocity), x[left])
        return found

    return attack


def best_wrong(probabilities: Array, classes: Array) -> Array:
    """The likeliest class of each row that is not the right one."""
    others = probabilities.astype(np.float64)
    others[np.arange(len(classes)), classes] = -np.inf
    best: Array = others.argmax(axis=1)
    return best


def _mean_size(gradient: Array) -> Array:
    """Mean absolute value of each row, at least a little."""
    sizes = np.abs(gradient).mean(axis=tuple(range(1, gradient.ndim)), keepdims=True)
    at_least: Array = np.maximum(sizes, np.finfo(np.float32).tiny)
    return at_least
