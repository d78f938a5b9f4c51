"""Data sets. A frozen config names one and loads it; `store` finds, downloads and verifies the files behind it."""

from forwardpass_training.data.dataset import Dataset, Provenance, Split
from forwardpass_training.data.digits import DigitsData
from forwardpass_training.data.mnist import MnistData
from forwardpass_training.data.shakespeare import ShakespeareData
from forwardpass_training.data.store import DataStore
from forwardpass_training.data.synthetic import ClustersData, LineData, SumData

DataConfig = LineData | ClustersData | SumData | DigitsData | MnistData | ShakespeareData

__all__ = [
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
