"""MNIST: 70,000 handwritten digits of 28 by 28 pixels (LeCun, Cortes, Burges), as its four original files."""

from dataclasses import dataclass, field

import torch

from forwardpass_training.data.augmentation import Augmentation
from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split, digest
from forwardpass_training.data.idx import read_idx
from forwardpass_training.data.store import DataStore, RemoteFile

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def _file(name: str, size_bytes: int, sha256: str) -> RemoteFile:
    return RemoteFile(f"mnist/{name}", size_bytes, sha256, tuple(mirror + name for mirror in MIRRORS))


TRAIN_IMAGES = _file(
    "train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
)
TRAIN_LABELS = _file(
    "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
)
TEST_IMAGES = _file(
    "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
)
TEST_LABELS = _file(
    "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
)
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


@dataclass(frozen=True, kw_only=True)
class MnistData(DataConfig):
    """MNIST's own split: 60,000 images to train on, 10,000 held out."""

    train_rows: int | None = None
    """Train on the first so many images only; None: all 60,000."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random distortions of the images to train on."""

    def load(self, store: DataStore) -> Dataset:
        """Images uint8 [rows, 28, 28], grey 0 (paper) to 255 (ink); targets int64 [rows], 0 to 9."""
        arrays = [torch.from_numpy(read_idx(store.path(file))) for file in FILES]
        train = Split(arrays[0][: self.train_rows], arrays[1].long()[: self.train_rows])
        test = Split(arrays[2], arrays[3].long())
        provenance = Provenance(
            "MNIST (LeCun, Cortes, Burges), its own split",
            {"train": len(train), "test": len(test)},
            digest(train, test),
            {file.name: file.sha256 for file in FILES},
        )
        return Dataset(train, test, provenance, labels=tuple("0123456789"), augmentation=self.augmentation)
