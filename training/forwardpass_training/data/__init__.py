"""Data sets. A frozen config names one and loads it; `store` finds, downloads and verifies the files behind it."""

from forwardpass_training.data.augmentation import Augmentation
from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split
from forwardpass_training.data.digits import DigitsData
from forwardpass_training.data.mnist import MnistData
from forwardpass_training.data.shakespeare import ShakespeareData
from forwardpass_training.data.store import DataStore
from forwardpass_training.data.synthetic import ClustersData, LineData, SumData

__all__ = [
    "Augmentation",
    "ClustersData",
    "DataConfig",
    "DataStore",
    "Dataset",
    "DigitsData",
    "LineData",
    "MnistData",
    "Provenance",
    "ShakespeareData",
    "Split",
    "SumData",
]
