"""Checkpoints: whole or refused, and never code."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from forwardpass_training import checkpoint
from forwardpass_training.checkpoint import Checkpoint, Epoch
from forwardpass_training.errors import CheckpointError
from forwardpass_training.folder import write_whole


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = nn.Linear(64, 64)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(Checkpoint(network.state_dict(), optimizer.state_dict(), (Epoch(0.5, 0.6, 0.9, 1.5),)), path)
    return path


def test_what_is_saved_is_loaded(saved: Path) -> None:
    found = checkpoint.load(saved)
    assert found.epochs == 1
    assert found.history == (Epoch(0.5, 0.6, 0.9, 1.5),)
    network = nn.Linear(64, 64)
    checkpoint.restore(found.answering, network)
    assert torch.equal(network.weight, found.network["weight"])
    torch.optim.Adam(network.parameters()).load_state_dict(found.optimizer)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_one_of_the_first_format_is_read(saved: Path) -> None:
    values = torch.load(saved, weights_only=True)
    first = {name: values[name] for name in ("network", "optimizer", "history")}
    torch.save({**first, "format": 1}, saved)
    found = checkpoint.load(saved)
    assert found.history == (Epoch(0.5, 0.6, 0.9, 1.5),)
    assert (found.average, found.best) == (None, None)


def test_a_flipped_bit_anywhere_in_the_weights_is_noticed(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        weights = max(archive.infolist(), key=lambda info: info.file_size)
    whole[weights.header_offset + 500] ^= 1
    saved.write_bytes(whole)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(saved)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_off_file_is_noticed(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(saved)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path(__file__).with_name("evil"),))  # type: ignore[return-value]


def test_a_checkpoint_that_is_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": checkpoint.FORMAT, "network": Evil(), "optimizer": {}, "history": []}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    assert not Path(__file__).with_name("evil").exists()


@pytest.mark.parametrize("values", [{"format": checkpoint.FORMAT + 1}, {}, [1, 2]])
def test_another_format_is_refused(tmp_path: Path, values: object) -> None:
    torch.save(values, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=f"format {checkpoint.FORMAT}"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_another_networks_weights_are_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="another network"):
        checkpoint.restore(checkpoint.load(saved).answering, nn.Linear(64, 32))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(saved: Path) -> None:
    before = saved.read_bytes()

    def write(file: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(saved, write)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
