"""A folder of images as a data set: a folder for each class, named by it. Held out by content, as in `table`."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from forwardpass_training.data.augmentation import Augmentation
from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split, digest
from forwardpass_training.data.store import DataStore
from forwardpass_training.data.table import is_held_out
from forwardpass_training.errors import BadSetting, DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class ImageFolderData(DataConfig):
    """`path/<class>/<any name>.png`; every image is brought to one size, bytes 0 to 255."""

    path: Path
    """The folder of the classes' folders."""
    height: int = 28
    """Pixels."""
    width: int = 28
    """Pixels."""
    colour: bool = False
    """Red, green and blue; otherwise grey."""
    test_share: float = 0.2
    """Share of the images held out."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random distortions of the images to train on."""

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise BadSetting(f"data.test_share is {self.test_share}; it must lie between 0 and 1")
        if min(self.height, self.width) < 1:
            raise BadSetting(f"data.height and data.width are {self.height} and {self.width}; both must be at least 1")

    def load(self, store: DataStore) -> Dataset:  # noqa: ARG002  the folder is the user's
        """Inputs uint8 [rows, height, width] or, in colour, [rows, height, width, 3]; targets int64 [rows].

        Raises:
            DataError: Pillow is missing, there are no two classes, or a file is no image; the text says which.
        """
        classes = sorted(folder for folder in self.path.glob("[!.]*") if folder.is_dir())
        if len(classes) < 2:
            raise DataError(f"{self.path} holds {len(classes)} folders; put each class into one of its own")
        images, targets, held_out = [], [], []
        for number, folder in enumerate(classes):
            for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES):
                images.append(self._read(file))
                targets.append(number)
                held_out.append(is_held_out(file.read_bytes(), self.test_share))
        if not images:
            raise DataError(f"the folders in {self.path} hold no images ({', '.join(SUFFIXES)})")
        inputs, classes_of, aside = torch.stack(images), torch.tensor(targets), torch.tensor(held_out)
        train, test = Split(inputs[~aside], classes_of[~aside]), Split(inputs[aside], classes_of[aside])
        counts = {"train": len(train), "test": len(test)}
        source = f"folder of images, {len(classes)} classes, brought to {self.height} x {self.width}"
        return Dataset(
            train,
            test,
            Provenance(source, counts, digest(train, test)),
            labels=tuple(folder.name for folder in classes),
            augmentation=self.augmentation,
        )

    def _read(self, file: Path) -> Tensor:
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError as exc:
            raise DataError("reading images needs Pillow: pip install 'forwardpass[images]'") from exc
        import numpy as np

        try:
            with Image.open(file) as image:
                pixels = image.convert("RGB" if self.colour else "L").resize((self.width, self.height))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as exc:
            raise DataError(f"{file} is not an image that can be read: {exc}") from exc
        return torch.from_numpy(np.array(pixels, dtype=np.uint8))
