"""Reference statistics: what a server can compute from its traffic too, and nothing of the training rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from forwardpass_training.data import ClustersData, Dataset, DataStore, DigitsData, LineData, Provenance, Split
from forwardpass_training.data.shakespeare import ShakespeareData, split_text
from forwardpass_training.evaluate import evaluate
from forwardpass_training.models import CharLstmConfig, CnnConfig, DenseConfig
from forwardpass_training.reference_statistics import BINS, FEATURES, of

STORE = DataStore.from_environment({})


def test_numbers_are_described_by_their_deciles() -> None:
    dataset = ClustersData(test_rows=1_000).load(STORE)
    network = DenseConfig(inputs=2).build()
    found = of("binary", dataset, network, evaluate(network, "binary", dataset))
    assert found["rows"] == 1_000
    features = found["inputs"]["x"]["features"]
    rows = dataset.test.inputs.numpy().astype(np.float64)
    for feature, column in zip(features, rows.T, strict=True):
        assert feature["counts"] == [100] * BINS
        assert (feature["mean"], feature["std"]) == pytest.approx((column.mean(), column.std()))
    classes = found["outputs"]["probability"]
    assert classes["labels"] == ["0", "1"]
    assert sum(classes["shares"]) == pytest.approx(1)
    assert sum(classes["confidence"]["counts"]) == 1_000
    assert sum(classes["confidence"]["counts"][:5]) == 0  # of two classes, the likelier has half at least
    json.dumps(found, allow_nan=False)


def test_a_feature_of_few_values_has_few_bins_and_many_features_are_bounded() -> None:
    torch.manual_seed(0)
    rows = torch.cat([torch.ones(50, 1), torch.randn(50, 999)], dim=1)
    split = Split(rows, rows[:, :1])
    dataset = Dataset(split, split, Provenance("made up", {}, "0" * 64))
    network = DenseConfig(inputs=1_000).build()
    found = of("regression", dataset, network, evaluate(network, "regression", dataset))["inputs"]["x"]
    assert found["features"][0]["edges"] == [1.0]
    assert found["features"][0]["counts"] == [0, 50]
    assert len(found["features"]) == FEATURES
    assert found["features_left_out"] == 1_000 - FEATURES


def test_images_are_described_block_by_block() -> None:
    images = torch.zeros(20, 8, 8, dtype=torch.uint8)
    images[:, :2, 2:4] = 16  # the second block of the first row
    split = Split(images, torch.arange(20) % 10)
    dataset = Dataset(split, split, Provenance("made up", {}, "0" * 64), labels=tuple("0123456789"))
    network = CnnConfig(height=8, width=8, white=16, channels=2, hidden=4).build()
    found = of("multiclass", dataset, network, evaluate(network, "multiclass", dataset))
    blocks = found["inputs"]["image"]["blocks"]
    assert len(blocks) == 16
    assert [block["mean"] for block in blocks] == [0, 1, *[0] * 14]
    assert blocks[0]["counts"] == [20, *[0] * 9]
    assert blocks[1]["counts"] == [*[0] * 9, 20]


def test_real_images_shares_and_confidence_agree_with_the_evaluation() -> None:
    torch.manual_seed(0)
    dataset = DigitsData().load(STORE)
    network = CnnConfig(height=8, width=8, white=16, channels=2, hidden=4).build()
    held_out = evaluate(network, "multiclass", dataset)
    found = of("multiclass", dataset, network, held_out)["outputs"]["probabilities"]
    assert held_out.confusion is not None
    assert found["shares"] == pytest.approx((held_out.confusion.sum(axis=0) / 360).tolist())
    assert found["confidence"]["mean"] == pytest.approx(held_out.answers.max(axis=1).mean())


def test_text_is_described_by_its_characters(tmp_path: Path) -> None:
    dataset = split_text("aab" * 200, ShakespeareData(test_share=0.5))
    network = CharLstmConfig(vocabulary=2, hidden=4).build()
    found = of("language", dataset, network, evaluate(network, "language", dataset))
    assert found["inputs"]["tokens"]["shares"] == pytest.approx([2 / 3, 1 / 3], abs=0.01)
    assert found["outputs"] == {}


def test_nothing_is_said_of_the_training_rows() -> None:
    dataset = LineData().load(STORE)
    network = DenseConfig(inputs=1).build()
    held_out = evaluate(network, "regression", dataset)
    elsewhere = Dataset(Split(dataset.train.inputs + 100, dataset.train.targets), dataset.test, dataset.provenance)
    assert of("regression", dataset, network, held_out) == of("regression", elsewhere, network, held_out)
