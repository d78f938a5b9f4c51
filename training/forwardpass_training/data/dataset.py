"""What a data set is to the rest of training: two splits of tensors, what they mean, and where they came from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from forwardpass_training.data.augmentation import Augmentation
from forwardpass_training.data.store import DataStore
from forwardpass_training.errors import BadSetting


@dataclass(frozen=True)
class Split:
    """Inputs beside their targets.

    Tables and images: `inputs` [rows, ...], `targets` [rows] int64 (classes) or [rows, 1] float32 (numbers, 0 or 1).
    Text: `inputs` [characters - 1] int64 and `targets` the same text one character later.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> "Split":
        """The same split on another device."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Provenance:
    """Where data came from, in enough detail to notice that it changed.

    Attributes:
        source: one sentence: the collection, or the law that generated it.
        counts: rows (or characters) by split.
        sha256: of every tensor, in the order train inputs, train targets, test inputs, test targets.
        files: SHA-256 of each source file, by name.
    """

    source: str
    counts: Mapping[str, int]
    sha256: str
    files: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `data.json` and the exported file's metadata."""
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """A training split, a held-out split that training never sees, and their provenance.

    Attributes:
        labels: class names, by index; empty where there are no classes.
        vocabulary: characters, by token; empty where there is no text.
        augmentation: how training rows are distorted, anew in every epoch.

    Raises:
        BadSetting: a split is empty.
    """

    train: Split
    test: Split
    provenance: Provenance
    labels: tuple[str, ...] = ()
    vocabulary: str = ""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("held-out", self.test)):
            if not len(split):
                raise BadSetting(f"the {name} split is empty ({self.provenance.source}); ask for more data")

    def for_choosing(self, share: float) -> "Dataset":
        """What a run learns from and watches: with a share above 0, that share of the training rows is held out in
        the place of the held-out split, which then decides nothing and stays an honest judge.

        Args:
            share: of the training rows, drawn with a seed of its own; of a text, its end.
        """
        if not share:
            return self
        kept = round(len(self.train) * (1 - share))
        order = torch.arange(len(self.train))
        if not self.vocabulary:
            order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        learnt, watched = (
            Split(self.train.inputs[rows], self.train.targets[rows]) for rows in (order[:kept], order[kept:])
        )
        return replace(self, train=learnt, test=watched)


class DataConfig(ABC):
    """A frozen dataclass that names a data set and loads it. Its fields are settings, and go to `config.json`."""

    @abstractmethod
    def load(self, store: DataStore) -> Dataset:
        """Both splits, equal for equal settings.

        Raises:
            DataError: they cannot be had.
        """


def digest(*splits: Split) -> str:
    """SHA-256 (hex) over dtype, shape and bytes of every tensor of `splits`."""
    sha256 = hashlib.sha256()
    for split in splits:
        for tensor in (split.inputs, split.targets):
            sha256.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha256.update(tensor.contiguous().numpy().data)
    return sha256.hexdigest()
