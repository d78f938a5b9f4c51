"""Pictures: written, of a readable size, and about the right run."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from forwardpass_training.checkpoint import Epoch
from forwardpass_training.report import save_confusion, save_curves


def history(losses: list[float]) -> list[Epoch]:
    return [Epoch(loss, loss * 1.1, 1 - loss / 10, 0.1) for loss in losses]


@pytest.mark.parametrize(
    "losses",
    [[0.5], [1.0, 0.5, 0.4], [10.0, 0.01, 0.001], [0.0, 0.0], [1 / (1 + epoch) for epoch in range(500)]],
    ids=["one epoch", "few", "decades", "zero", "many"],
)
def test_curves_of_any_history_are_drawn(tmp_path: Path, losses: list[float]) -> None:
    save_curves(history(losses), tmp_path / "loss.png", title="a run", loss="loss", metric="accuracy")
    pixels = image.imread(tmp_path / "loss.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1_000
    assert pixels[..., :3].std() > 0.01


@pytest.mark.parametrize("classes", [2, 10, 26])
def test_confusion_of_any_number_of_classes_is_drawn(tmp_path: Path, classes: int) -> None:
    confusion = np.diag(np.arange(classes, dtype=np.int64))  # class 0 never occurs
    save_confusion(confusion, [str(label) for label in range(classes)], tmp_path / "c.png", title="a run")
    assert min(image.imread(tmp_path / "c.png").shape[:2]) > 400
