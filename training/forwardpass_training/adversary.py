"""Adversarial training (Madry et al. 2018): learn from the worst image near each, not from the image itself.

The worst image is sought by projected gradient ascent on the loss, from a random point within epsilon. From scratch, a
large epsilon leaves a small network where it began, at one guess for every image; so epsilon grows from 0 over the
first epochs. Steps may grow too: a strong adversary is worth its price only once the network resists a weak one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from forwardpass_training.errors import BadSetting

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """How the worst image near each is sought. Distances are shares of the pixel range, in the maximum norm."""

    epsilon: float
    """The farthest that any pixel may move."""
    steps: tuple[int, ...] = (2, 5)
    """Steps of ascent, for each equal part of the run in turn."""
    growing: float = 0.3
    """Share of the run over which epsilon grows from 0."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise BadSetting(
                f"adversary.epsilon is {self.epsilon}; it is a share of the pixel range, above 0, at most 1"
            )
        if not 0 <= self.growing <= 1:
            raise BadSetting(f"adversary.growing is {self.growing}; it is a share of the run, from 0 to 1")
        if min(self.steps, default=0) < 1:
            raise BadSetting(f"adversary.steps is {self.steps}; it takes at least one number, and each at least 1 step")

    def at(self, done: float) -> tuple[float, int]:
        """Epsilon and steps when `done` (0 to below 1) of the run is behind."""
        grown = min(1.0, done / self.growing) if self.growing else 1.0
        return self.epsilon * grown, self.steps[math.floor(done * len(self.steps))]


def worst_images(
    network: nn.Module,
    loss_of: Loss,
    images: Tensor,
    targets: Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: Generator,
) -> Tensor:
    """Float images within `epsilon` of `images`, for which the loss is large.

    Args:
        network: has `white`, its largest pixel value; its parameters get no gradient from here.
        loss_of: (logits, targets) → mean loss.
        images: [batch, …], bytes or floats from 0 to white.
        targets: of the images.
        epsilon: share of white.
        steps: of ascent. Together they can cross the ball 1.75 times.
        generator: of the random start; on the CPU.

    Returns:
        float32, the shape of `images`, from 0 to white.
    """
    white = white_of(network)
    reach, step = epsilon * white, 1.75 * epsilon * white / steps
    clean = images.float()
    start = torch.rand(clean.shape, generator=generator).to(clean.device) * 2 - 1
    moved = start * reach
    for _ in range(steps):
        seen = (clean + moved).clamp(0, white).requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(network(seen), targets), seen)
        moved = (moved + step * gradient.sign()).clamp(-reach, reach)
    return (clean + moved).clamp(0, white).detach()


def white_of(network: nn.Module) -> float:
    """The largest pixel value of a network on images.

    Raises:
        BadSetting: the network does not tell, so nobody knows how far an input may move.
    """
    white = getattr(network, "white", None)
    if not isinstance(white, int | float):
        raise BadSetting(
            f"an adversary needs a network on images that tells its largest pixel value as `white`; "
            f"{type(network).__name__} has none"
        )
    return float(white)
