"""The state of a run at the end of an epoch: save, load. Reading one executes no code, and damage is noticed."""

import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from forwardpass_training.errors import CheckpointError
from forwardpass_training.folder import write_whole

FORMAT = 2
READABLE = (1, 2)
"""1 knew neither average nor best."""


@dataclass(frozen=True)
class Epoch:
    """One line of the history.

    Attributes:
        train_loss: mean over the epoch's steps, while the weights were moving.
        test_loss: held-out, after the epoch.
        metric: the task's headline metric, held-out, after the epoch.
        seconds: wall time of the epoch and its evaluation.
    """

    train_loss: float
    test_loss: float
    metric: float
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next epoch depends on, besides config and data.

    Attributes:
        network: the network's `state_dict`.
        optimizer: the optimiser's `state_dict`.
        history: one entry for each finished epoch.
        average: the moving average of `network` over the steps; None where the config wants none.
        best: what answered in the epoch of the lowest loss; None where nothing stops early.
    """

    network: dict[str, Any]
    optimizer: dict[str, Any]
    history: tuple[Epoch, ...] = ()
    average: dict[str, Any] | None = None
    best: dict[str, Any] | None = None

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def answering(self) -> dict[str, Any]:
        """The weights that are evaluated and served."""
        return self.best or self.average or self.network


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Replace the file at `path`, whole or not at all."""
    values = {
        "format": FORMAT,
        "network": checkpoint.network,
        "optimizer": checkpoint.optimizer,
        "history": [asdict(epoch) for epoch in checkpoint.history],
        "average": checkpoint.average,
        "best": checkpoint.best,
    }
    write_whole(path, lambda file: torch.save(values, file))


def restore(weights: dict[str, Any], network: nn.Module) -> nn.Module:
    """Give `network` weights of a checkpoint, and return it.

    Raises:
        CheckpointError: they are another network's.
    """
    try:
        network.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError) as exc:
        raise CheckpointError(f"the checkpoint belongs to another network: {exc}") from exc
    return network


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; tensors arrive on the CPU.

    Raises:
        CheckpointError: none there, damaged, or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself does not check the CRCs
        if damaged:
            raise CheckpointError(f"{path} is damaged (wrong CRC in {damaged}); restore it, or run the recipe again")
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path} does not exist: the run was stopped before it began; run it again") from exc
    except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as exc:
        raise CheckpointError(f"{path} is damaged ({exc}); restore it, or run the recipe again") from exc
    if not isinstance(values, dict) or values.get("format") not in READABLE:
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT} or before")
    history = tuple(Epoch(**epoch) for epoch in values["history"])
    return Checkpoint(values["network"], values["optimizer"], history, values.get("average"), values.get("best"))
