"""What each data set holds."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from forwardpass_training.data import (
    ClustersData,
    DataConfig,
    DataStore,
    DigitsData,
    LineData,
    MnistData,
    ShakespeareData,
    SumData,
)
from forwardpass_training.data.dataset import digest
from forwardpass_training.data.shakespeare import split_text
from forwardpass_training.errors import BadSetting

Bundled = LineData | ClustersData | SumData | DigitsData
BUNDLED: tuple[Bundled, ...] = (LineData(), ClustersData(), SumData(), DigitsData())


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(tmp_path / "never")


@pytest.mark.parametrize("config", BUNDLED, ids=lambda config: type(config).__name__)
def test_loading_is_repeatable_needs_no_file_and_says_its_source(config: DataConfig, store: DataStore) -> None:
    first, second = config.load(store), config.load(store)
    assert first.provenance == second.provenance
    assert first.provenance.sha256 == digest(second.train, second.test)
    assert first.provenance.counts == {"train": len(first.train), "test": len(first.test)}
    assert first.provenance.source
    assert not store.cache.exists()


@pytest.mark.parametrize("config", BUNDLED, ids=lambda config: type(config).__name__)
def test_another_seed_is_other_data(config: Bundled, store: DataStore) -> None:
    other = dataclasses.replace(config, seed=7).load(store)
    assert other.provenance.sha256 != config.load(store).provenance.sha256


@pytest.mark.parametrize("config", BUNDLED, ids=lambda config: type(config).__name__)
def test_no_training_row_is_held_out(config: DataConfig, store: DataStore) -> None:
    dataset = config.load(store)
    train = {tuple(row.flatten().tolist()) for row in dataset.train.inputs}
    assert not train & {tuple(row.flatten().tolist()) for row in dataset.test.inputs}


def test_the_line_is_the_line(store: DataStore) -> None:
    dataset = LineData(noise=0).load(store)
    torch.testing.assert_close(dataset.train.targets, 2 * dataset.train.inputs + 1)
    assert dataset.train.inputs.shape == (100, 1)
    noisy = LineData(train_rows=100_000).load(store).train
    assert (noisy.targets - 2 * noisy.inputs - 1).std().item() == pytest.approx(0.1, rel=0.02)


def test_the_clusters_are_where_they_should_be(store: DataStore) -> None:
    split = ClustersData(train_rows=100_000).load(store).train
    ones = split.inputs[split.targets[:, 0] == 1]
    torch.testing.assert_close(ones.mean(0), torch.tensor([1.5, 1.5]), atol=0.02, rtol=0)
    best = ((split.inputs.sum(1, keepdim=True) > 0) == split.targets.bool()).float().mean().item()
    assert best == pytest.approx(0.5 * (1 + math.erf(1.5)), abs=0.002)  # Φ(√2 · 1.5)


def test_the_sum_decides_the_class(store: DataStore) -> None:
    split = SumData().load(store).train
    assert torch.equal(split.targets, (split.inputs.sum(1, keepdim=True) > 5).float())
    assert 0.48 < split.targets.mean().item() < 0.52


def test_digits_are_bytes_up_to_16_and_every_digit_is_held_out_in_its_share(store: DataStore) -> None:
    dataset = DigitsData().load(store)
    assert dataset.train.inputs.dtype == torch.uint8
    assert dataset.train.inputs.shape[1:] == (8, 8)
    assert dataset.train.inputs.max() == 16
    assert len(dataset.train) + len(dataset.test) == 1797
    assert dataset.labels == tuple("0123456789")
    assert torch.bincount(dataset.test.targets).tolist() == pytest.approx([36] * 10, abs=2)


@pytest.mark.parametrize("config", [LineData(train_rows=0), ClustersData(test_rows=0), SumData(train_rows=0)])
def test_an_empty_split_is_refused(config: DataConfig, store: DataStore) -> None:
    with pytest.raises(BadSetting, match="split is empty"):
        config.load(store)


def test_text_becomes_tokens_in_order_with_targets_one_later() -> None:
    text = "to be or not to be"
    dataset = split_text(text, ShakespeareData(test_share=0.5))
    assert dataset.vocabulary == "".join(sorted(set(text)))
    said = "".join(dataset.vocabulary[token] for token in dataset.train.inputs)
    assert said == text[:8]
    assert "".join(dataset.vocabulary[token] for token in dataset.train.targets) == text[1:9]
    assert "".join(dataset.vocabulary[token] for token in dataset.test.inputs) == text[9:-1]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(BadSetting, match="test_share"):
        split_text("some text", ShakespeareData(test_share=share))


@pytest.mark.data
def test_mnist_is_mnist(downloads: DataStore) -> None:
    dataset = MnistData().load(downloads)
    assert dataset.train.inputs.shape == (60_000, 28, 28)
    assert dataset.test.inputs.shape == (10_000, 28, 28)
    assert dataset.train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert len(dataset.provenance.files) == 4
    assert len(MnistData(train_rows=10).load(downloads).train) == 10


@pytest.mark.data
def test_shakespeare_is_split_as_in_char_rnn(downloads: DataStore) -> None:
    dataset = ShakespeareData().load(downloads)
    assert dataset.provenance.counts == {"train": 1_003_854, "test": 111_540}
    assert len(dataset.vocabulary) == 65
    assert "".join(dataset.vocabulary[token] for token in dataset.train.inputs[:14]) == "First Citizen:"
