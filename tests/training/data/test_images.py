"""A folder of images as data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from forwardpass_training.data import DataStore, ImageFolderData
from forwardpass_training.errors import BadSetting, DataError

Image = pytest.importorskip("PIL.Image", reason="pip install 'forwardpass[images]'")

STORE = DataStore(Path("never"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty images each of `dark` and `light`, of several sizes; a hidden folder and a text are passed over."""
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (tmp_path / name).mkdir()
        for number in range(30):
            pixels = generator.integers(low, low + 128, (10 + number, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "dark" / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_come_in_one_size_with_their_folder_as_label(folder: Path) -> None:
    dataset = ImageFolderData(path=folder, height=8, width=12).load(STORE)
    assert dataset.labels == ("dark", "light")
    images = torch.cat([dataset.train.inputs, dataset.test.inputs])
    targets = torch.cat([dataset.train.targets, dataset.test.targets])
    assert (images.dtype, images.shape) == (torch.uint8, (60, 8, 12))
    assert torch.equal(images.float().mean((1, 2)) > 127, targets == 1)
    colour = ImageFolderData(path=folder, height=8, width=12, colour=True).load(STORE)
    assert colour.train.inputs.shape[1:] == (8, 12, 3)


def test_an_image_stays_held_out_when_others_come(folder: Path) -> None:
    before = ImageFolderData(path=folder).load(STORE)
    Image.new("L", (20, 20), 200).save(folder / "light" / "aaa.png")
    after = ImageFolderData(path=folder).load(STORE)
    assert len(after.train) + len(after.test) == 61
    kept = {tuple(image.flatten().tolist()) for image in after.test.inputs}
    assert {tuple(image.flatten().tolist()) for image in before.test.inputs} <= kept


def test_mistakes_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 folders"):
        ImageFolderData(path=tmp_path / "nowhere").load(STORE)
    (folder / "light" / "broken.png").write_bytes(b"\x89PNG nothing more")
    with pytest.raises(DataError, match=r"broken.png is not an image"):
        ImageFolderData(path=folder).load(STORE)
    with pytest.raises(BadSetting, match="at least 1"):
        ImageFolderData(path=folder, height=0)
