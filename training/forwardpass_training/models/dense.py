"""Fully connected layers: a line, a logistic regression or a perceptron, by how many layers are hidden."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import torch
import tyro.conf
from torch import Tensor, nn

from forwardpass_training.data import Dataset
from forwardpass_training.errors import BadSetting
from forwardpass_training.models.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class DenseConfig(ModelConfig):
    """Layers of `hidden` units with ReLU between; none hidden: one affine map."""

    inputs: int | None = None
    """Numbers in a row; None: as the data has."""
    hidden: tuple[int, ...] = ()
    """Units of each hidden layer."""
    outputs: int | None = 1
    """Numbers out; None: as many as the data has targets or classes."""
    dropout: float = 0.0
    """Share of each hidden layer's units left out in each training step."""
    standardise: bool = False
    """Bring each number to mean 0 and deviation 1 first, inside the network."""
    means: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """Of each number in the training rows; found when a run begins."""
    deviations: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """Of each number in the training rows; found when a run begins."""

    def fitted(self, dataset: Dataset) -> "DenseConfig":
        """See `ModelConfig.fitted`."""
        rows, targets = dataset.train.inputs, dataset.train.targets
        shape = tuple(rows.shape[1:])
        wanted = len(dataset.labels) if targets.ndim == 1 else targets.shape[1]
        found = replace(self, inputs=self.inputs or rows.shape[-1], outputs=self.outputs or wanted)
        if shape != (found.inputs,):
            raise BadSetting(f"the network takes rows of {found.inputs} numbers (model.inputs), the data has {shape}")
        if found.outputs != wanted:
            raise BadSetting(f"the network gives {found.outputs} numbers (model.outputs), the targets have {wanted}")
        if not self.standardise:
            return found
        # a number that never varies says nothing; divided by 1 it stays finite
        deviations = rows.double().std(0, correction=0)
        deviations[deviations == 0] = 1
        return replace(found, means=tuple(rows.double().mean(0).tolist()), deviations=tuple(deviations.tolist()))

    def build(self) -> "Dense":
        """The network, freshly initialised from torch's global generator."""
        return Dense(self)


class Dense(nn.Module):
    """x [batch, inputs] float32 → [batch, outputs] float32: numbers, or logits where the task is a classification."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        if not (config.inputs and config.outputs):
            raise BadSetting(f"{config} leaves sizes to the data: build what `fitted(dataset)` gives")
        widths = (config.inputs, *config.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
            layers += [nn.Dropout(config.dropout)] if config.dropout else []
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], config.outputs))
        self.standard: nn.Module = Standardised(config.means, config.deviations) if config.means else nn.Identity()

    @property
    def is_affine(self) -> bool:
        """Whether nothing is hidden: y = wx + b."""
        return len(self.layers) == 1 and isinstance(self.standard, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(self.standard(x))
        return y


class Standardised(nn.Module):
    """x [batch, inputs] → (x − means) / deviations."""

    def __init__(self, means: tuple[float, ...], deviations: tuple[float, ...]) -> None:
        super().__init__()
        self.means = nn.Buffer(torch.tensor(means))
        self.deviations = nn.Buffer(torch.tensor(deviations))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (x - self.means) / self.deviations
        return y
