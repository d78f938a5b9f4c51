"""Held-out evaluation of networks whose right figures are known."""

import math

import pytest
import torch
from torch import nn

from forwardpass_training import evaluate as evaluation
from forwardpass_training.data import ClustersData, DataStore, DigitsData, LineData, ShakespeareData
from forwardpass_training.data.shakespeare import split_text
from forwardpass_training.evaluate import evaluate
from forwardpass_training.models import CharLstm, CharLstmConfig, Cnn, CnnConfig, Dense, DenseConfig

STORE = DataStore.from_environment({})


def affine(weight: list[float], bias: float) -> Dense:
    network = DenseConfig(inputs=len(weight)).build()
    layer = network.layers[-1]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
        layer.bias.fill_(bias)
    return network


def test_the_true_line_has_the_error_of_the_noise() -> None:
    dataset = LineData(train_rows=1_000_000, test_rows=100_000).load(STORE)
    found = evaluate(affine([2.0], 1.0), "regression", dataset)
    assert found.loss == found.metrics["mse"] == pytest.approx(0.01, rel=0.02)
    assert found.metrics["mae"] == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.02)
    assert found.metrics["distance_to_least_squares"] < 1e-3
    assert found.confusion is None


def test_the_distance_is_that_of_the_worst_parameter() -> None:
    dataset = LineData(noise=0).load(STORE)
    assert evaluate(affine([2.0], 1.5), "regression", dataset).metrics["distance_to_least_squares"] == pytest.approx(
        0.5
    )
    assert evaluate(affine([2.7], 1.5), "regression", dataset).metrics["distance_to_least_squares"] == pytest.approx(
        0.7
    )


def test_the_best_separator_reaches_the_bound_of_its_data() -> None:
    dataset = ClustersData(test_rows=50_000).load(STORE)
    found = evaluate(affine([3.0, 3.0], 0.0), "binary", dataset)  # log-odds of the two clusters: 2 c (x1 + x2)
    assert found.metrics["accuracy"] == pytest.approx(0.983, abs=0.002)
    assert found.confusion is not None
    assert found.confusion.sum() == 50_000
    assert found.confusion.trace() / 50_000 == found.metrics["accuracy"]


def test_an_untrained_classifier_guesses() -> None:
    torch.manual_seed(0)
    network = CnnConfig(height=8, width=8, white=16).build()
    found = evaluate(network, "multiclass", DigitsData().load(STORE))
    assert found.loss == pytest.approx(math.log(10), abs=0.1)
    assert found.metrics["accuracy"] < 0.3
    assert found.confusion is not None
    assert found.confusion.shape == (10, 10)
    assert not network.training


def test_pixels_are_scaled_inside_the_network() -> None:
    torch.manual_seed(0)
    network: Cnn = CnnConfig(height=8, width=8, white=16).build()
    image = torch.full((1, 8, 8), 16, dtype=torch.uint8)
    torch.testing.assert_close(network(image), network.layers(torch.ones(1, 1, 8, 8)))


def language_model() -> CharLstm:
    torch.manual_seed(0)
    return CharLstmConfig(vocabulary=4, hidden=8).build()


def test_text_is_read_in_one_breath_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = split_text("abca" * 500 + "d" * 20, ShakespeareData(test_share=0.5))
    network = language_model()
    whole = evaluate(network, "language", dataset)
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 7)
    assert evaluate(network, "language", dataset).loss == pytest.approx(whole.loss, rel=1e-6)
    tokens = dataset.test.inputs.unsqueeze(0)
    with torch.no_grad():
        logits, _, _ = network(tokens, *network.zero_state(1))
    by_hand = nn.functional.cross_entropy(logits[0], dataset.test.targets)
    assert whole.loss == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_language_task_needs_a_language_model() -> None:
    dataset = split_text("abcd" * 50, ShakespeareData())
    with pytest.raises((TypeError, RuntimeError)):
        evaluate(DenseConfig(inputs=1).build(), "language", dataset)
