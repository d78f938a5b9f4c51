"""Data sets. A frozen config names one and loads it; `store` finds, downloads and verifies the files behind it."""

from forwardpass_training.data.augmentation import Augmentation
from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split
from forwardpass_training.data.digits import DigitsData
from forwardpass_training.data.images import ImageFolderData
from forwardpass_training.data.mnist import MnistData
from forwardpass_training.data.shakespeare import ShakespeareData
from forwardpass_training.data.store import DataStore
from forwardpass_training.data.synthetic import ClustersData, LineData, SumData
from forwardpass_training.data.table import TableData

__all__ = [
    "Augmentation",
    "ClustersData",
    "DataConfig",
    "DataStore",
    "Dataset",
    "DigitsData",
    "ImageFolderData",
    "LineData",
    "MnistData",
    "Provenance",
    "ShakespeareData",
    "Split",
    "SumData",
    "TableData",
]
