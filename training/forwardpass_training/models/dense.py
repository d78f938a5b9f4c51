"""Fully connected layers: a line, a logistic regression or a perceptron, by how many layers are hidden."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from forwardpass_training.data import Dataset
from forwardpass_training.errors import BadSetting


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Layers of `hidden` units with ReLU between; none hidden: one affine map."""

    inputs: int
    """Numbers in a row."""
    hidden: tuple[int, ...] = ()
    """Units of each hidden layer."""
    outputs: int = 1
    """Numbers out."""

    def check_fits(self, dataset: Dataset) -> None:
        """Raises BadSetting where the network cannot take the data."""
        shape = tuple(dataset.train.inputs.shape[1:])
        if shape != (self.inputs,):
            raise BadSetting(f"the network takes rows of {self.inputs} numbers (model.inputs), the data has {shape}")
        targets = tuple(dataset.train.targets.shape[1:])
        if targets != (self.outputs,):
            raise BadSetting(f"the network gives {self.outputs} numbers (model.outputs), the targets have {targets}")

    def build(self) -> "Dense":
        """The network, freshly initialised from torch's global generator."""
        return Dense(self)


class Dense(nn.Module):
    """x [batch, inputs] float32 → [batch, outputs] float32: numbers, or logits where the task is a classification."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        widths = (config.inputs, *config.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], config.outputs))

    @property
    def is_affine(self) -> bool:
        """Whether nothing is hidden: y = wx + b."""
        return len(self.layers) == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y
