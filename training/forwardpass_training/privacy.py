"""Differentially private training (DP-SGD, Abadi et al. 2016), by Opacus: little is given away about any one row.

Each row's gradient is clipped to a norm, and noise in proportion to that norm is added to their sum, so that no row
moves the weights by more than the noise can hide. Epsilon follows from the noise, the share of rows in a step and the
number of steps. It holds for rows drawn by chance, each on its own, and not in turn; so that is how they are drawn.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from forwardpass_training.errors import BadSetting

SMALLEST_BATCH = 16
"""Expected rows of a step, from which on a step without any row does not happen (probability below 2e-7)."""


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Clipping and noise of each step. Epsilon is reported as a held-out metric, so a gate can bound it."""

    noise: float
    """Standard deviation of the noise, in multiples of the clipping norm."""
    clip_norm: float = 1.0
    """The largest norm of one row's gradient."""
    delta: float = 1e-5
    """Probability with which the promise may fail; below one over the number of rows."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise BadSetting(f"privacy.noise is {self.noise}; without noise nothing is private")
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise BadSetting(f"privacy.clip_norm is {self.clip_norm}; it must be above 0")
        if not 0 < self.delta < 1:
            raise BadSetting(f"privacy.delta is {self.delta}; it is a probability, between 0 and 1")

    def epsilon(self, *, rows: int, batch_size: int, steps: int) -> float:
        """The privacy spent after `steps`, by Rényi accounting (Mironov et al. 2019); 0 before the first.

        Raises:
            BadSetting: Opacus is not installed.
        """
        if not steps:
            return 0.0
        _import_opacus()
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(self.noise, batch_size / rows, steps)]
        return float(accountant.get_epsilon(self.delta))


class PrivateOptimizer:
    """Makes an optimiser private: hooks that keep each row's gradient, and steps that clip and blur them.

    Args:
        network: gets hooks until `release`; its layers must treat every row by itself (no batch normalisation).
        optimizer: what moves its weights.
        batch_size: rows of a step, on average.

    Raises:
        BadSetting: Opacus is not installed, or refuses the network.
    """

    def __init__(self, privacy: Privacy, network: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
        _import_opacus()
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer
        from opacus.validators import ModuleValidator

        network.train()
        if refused := ModuleValidator.validate(network, strict=False):
            raise BadSetting(f"this network cannot be trained privately: {refused[0]}")
        # as Opacus lays out its gradients
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._hooks = GradSampleModule(network)
        self.optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=privacy.noise,
            max_grad_norm=privacy.clip_norm,
            expected_batch_size=batch_size,
        )

    def draw_noise_from(self, generator: Generator) -> None:
        """Where the next steps' noise comes from: repeatable, which is what a run wants and a secret would not."""
        self.optimizer.generator = generator

    def release(self) -> None:
        """Take the hooks off the network."""
        self._hooks.remove_hooks()


def drawn_by_chance(rows: int, batch_size: int, generator: Generator) -> Tensor:
    """Row numbers of one step: each row with probability batch_size / rows, on its own (Poisson sampling)."""
    return (torch.rand(rows, generator=generator) < batch_size / rows).nonzero().squeeze(1)


def _import_opacus() -> None:
    try:
        import opacus  # noqa: F401
    except ImportError as exc:
        raise BadSetting(
            "private training needs Opacus, which is not installed: pip install 'forwardpass[privacy]'"
        ) from exc
