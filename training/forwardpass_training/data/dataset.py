"""What a data set is to the rest of training: two splits of tensors, what they mean, and where they came from."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

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

    Raises:
        BadSetting: a split is empty.
    """

    train: Split
    test: Split
    provenance: Provenance
    labels: tuple[str, ...] = ()
    vocabulary: str = ""

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("held-out", self.test)):
            if not len(split):
                raise BadSetting(f"the {name} split is empty ({self.provenance.source}); ask for more data")


def digest(*splits: Split) -> str:
    """SHA-256 (hex) over dtype, shape and bytes of every tensor of `splits`."""
    sha256 = hashlib.sha256()
    for split in splits:
        for tensor in (split.inputs, split.targets):
            sha256.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha256.update(tensor.contiguous().numpy().data)
    return sha256.hexdigest()
