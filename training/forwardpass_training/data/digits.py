"""Handwritten digits of 8 by 8 pixels, bundled with scikit-learn: no download."""

from dataclasses import dataclass, field

import torch

from forwardpass_training.data.augmentation import Augmentation
from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split, digest
from forwardpass_training.data.store import DataStore


@dataclass(frozen=True, kw_only=True)
class DigitsData(DataConfig):
    """1,797 images, split by class (stratified), so that every digit is held out in its share."""

    test_share: float = 0.2
    """Share of the images held out."""
    seed: int = 0
    """Seed of the split."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random distortions of the images to train on."""

    def load(self, store: DataStore) -> Dataset:  # noqa: ARG002  nothing is downloaded
        """Images uint8 [rows, 8, 8], grey 0 (paper) to 16 (ink); targets int64 [rows], 0 to 9."""
        import sklearn
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        bunch = load_digits()
        images = torch.from_numpy(bunch.images).to(torch.uint8)
        targets = torch.from_numpy(bunch.target).long()
        rows = torch.arange(len(targets)).numpy()
        train_rows, test_rows = train_test_split(
            rows, test_size=self.test_share, random_state=self.seed, stratify=targets.numpy()
        )
        train = Split(images[train_rows], targets[train_rows])
        test = Split(images[test_rows], targets[test_rows])
        source = (
            "UCI Optical Recognition of Handwritten Digits, as bundled with scikit-learn "
            f"{sklearn.__version__}; stratified split, seed {self.seed}"
        )
        counts = {"train": len(train), "test": len(test)}
        labels = tuple(str(label) for label in bunch.target_names)
        provenance = Provenance(source, counts, digest(train, test))
        return Dataset(train, test, provenance, labels=labels, augmentation=self.augmentation)
