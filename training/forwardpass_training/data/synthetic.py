"""Data drawn from a stated law, so that the right answer is known. A seed of its own: the run's seed changes no row."""

from dataclasses import dataclass

import torch

from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split, digest
from forwardpass_training.data.store import DataStore


@dataclass(frozen=True, kw_only=True)
class LineData(DataConfig):
    """y = slope · x + intercept + noise; x uniform in [-1, 1), noise normal."""

    seed: int = 0
    """Seed of the generator."""
    train_rows: int = 100
    """Rows to train on."""
    test_rows: int = 100
    """Rows held out."""
    slope: float = 2.0
    """The true w."""
    intercept: float = 1.0
    """The true b."""
    noise: float = 0.1
    """Standard deviation of the noise."""

    def load(self, store: DataStore) -> Dataset:  # noqa: ARG002  every data set takes a store; this one needs none
        """Draw inputs [rows, 1] and targets [rows, 1], float32."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(rows: int) -> Split:
            x = torch.rand(rows, 1, generator=generator) * 2 - 1
            noise = torch.randn(rows, 1, generator=generator) * self.noise
            return Split(x, self.slope * x + self.intercept + noise)

        source = f"synthetic: y = {self.slope} x + {self.intercept} + N(0, {self.noise}²), x ~ U(-1, 1)"
        return _dataset(draw(self.train_rows), draw(self.test_rows), f"{source}, seed {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ClustersData(DataConfig):
    """Two classes, each normal with unit variance, centred at (-c, -c) and (c, c), equally likely.

    The log-odds of such classes are linear in x, so logistic regression is the right model; no model can pass
    Φ(√2 c), which is 98.3 % at c = 1.5.
    """

    seed: int = 0
    """Seed of the generator."""
    train_rows: int = 1_000
    """Rows to train on."""
    test_rows: int = 1_000
    """Rows held out."""
    centre: float = 1.5
    """Distance of each class's centre from 0, along both axes, in standard deviations."""

    def load(self, store: DataStore) -> Dataset:  # noqa: ARG002
        """Draw inputs [rows, 2] and targets [rows, 1] of 0 and 1, float32."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(rows: int) -> Split:
            y = torch.randint(2, (rows, 1), generator=generator).float()
            return Split((2 * y - 1) * self.centre + torch.randn(rows, 2, generator=generator), y)

        source = f"synthetic: two unit normal classes in 2 dimensions, centred at ±({self.centre}, {self.centre})"
        return _dataset(draw(self.train_rows), draw(self.test_rows), f"{source}, seed {self.seed}", BINARY)


@dataclass(frozen=True, kw_only=True)
class SumData(DataConfig):
    """Ten features, uniform in [0, 1); the class is 1 where their sum is above 5: a rule without noise."""

    seed: int = 0
    """Seed of the generator."""
    train_rows: int = 20_000
    """Rows to train on."""
    test_rows: int = 2_000
    """Rows held out."""
    features: int = 10
    """Numbers in a row; the threshold is half of them."""

    def load(self, store: DataStore) -> Dataset:  # noqa: ARG002
        """Draw inputs [rows, features] and targets [rows, 1] of 0 and 1, float32."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(rows: int) -> Split:
            x = torch.rand(rows, self.features, generator=generator)
            return Split(x, (x.sum(1, keepdim=True) > self.features / 2).float())

        source = f"synthetic: sum of {self.features} U(0, 1) features above {self.features / 2}"
        return _dataset(draw(self.train_rows), draw(self.test_rows), f"{source}, seed {self.seed}", BINARY)


BINARY = ("0", "1")


def _dataset(train: Split, test: Split, source: str, labels: tuple[str, ...] = ()) -> Dataset:
    counts = {"train": len(train), "test": len(test)}
    return Dataset(train, test, Provenance(source, counts, digest(train, test)), labels=labels)
