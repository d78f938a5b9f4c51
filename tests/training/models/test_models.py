"""Networks: their shapes, their fit to data, and the serving twin of the language model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from forwardpass_training.data import Dataset, DataStore, Provenance, ShakespeareData, Split
from forwardpass_training.data.shakespeare import split_text
from forwardpass_training.errors import BadSetting
from forwardpass_training.models import (
    CharLstmConfig,
    CnnConfig,
    Conv,
    ConvStackConfig,
    DenseConfig,
    ModelConfig,
    served,
)
from forwardpass_training.recipes import RECIPES, digits_cnn, mlp_classifier


def test_the_mnist_network_is_the_tutorials() -> None:
    network = CnnConfig(height=28, width=28).build()
    assert sum(parameter.numel() for parameter in network.parameters()) == 693_962
    assert network(torch.zeros(3, 28, 28, dtype=torch.uint8)).shape == (3, 10)


def test_the_language_model_is_the_tutorials() -> None:
    network = CharLstmConfig().build()
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert weights == 512 * (65 + 128 + 2) + 512 * (128 + 128 + 2) + 128 * 65 + 65
    logits, h, c = network(torch.zeros(3, 7, dtype=torch.long), *network.zero_state(3))
    assert logits.shape == (3, 7, 65)
    assert h.shape == c.shape == (3, 2, 128)


def test_a_text_read_in_pieces_is_the_text_read_at_once() -> None:
    network = CharLstmConfig(vocabulary=5, hidden=8).build().eval()
    tokens = torch.randint(5, (2, 9))
    whole, *state = network(tokens, *network.zero_state(2))
    carried = network.zero_state(2)
    for position in range(9):
        logits, *carried = network(tokens[:, position : position + 1], *carried)
        torch.testing.assert_close(logits[:, 0], whole[:, position])
    torch.testing.assert_close(tuple(carried), tuple(state))


def test_recurrent_weights_are_left_out_while_training_and_only_then() -> None:
    torch.manual_seed(0)
    network = CharLstmConfig(vocabulary=5, hidden=8, embedding=3, recurrent_dropout=0.5).build()
    tokens, state = torch.randint(5, (2, 9)), network.zero_state(2)
    one, other = (network(tokens, *state)[0] for _ in range(2))
    assert not torch.equal(one, other)
    torch.testing.assert_close(one[:, 0], other[:, 0], msg="the first character has nothing before it")
    one.sum().backward()
    left_out = (network.lstm.weight_hh_l0.grad == 0).float().mean()
    assert 0.3 < left_out < 0.7
    assert (network.lstm.weight_ih_l0.grad != 0).all()
    network.eval()
    assert torch.equal(network(tokens, *state)[0], network(tokens, *state)[0])
    plain = CharLstmConfig(vocabulary=5, hidden=8, embedding=3).build().eval()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network(tokens, *state)[0], plain(tokens, *state)[0])


@pytest.mark.parametrize("field", ["dropout", "recurrent_dropout"])
def test_a_dropout_is_a_share(field: str) -> None:
    with pytest.raises(BadSetting, match=f"model.{field} is 1.0; it is a share"):
        CharLstmConfig(**{field: 1.0}).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (DenseConfig(inputs=9), "takes rows of 9 numbers"),
        (DenseConfig(inputs=10, outputs=2), "gives 2 numbers"),
        (CnnConfig(height=8, width=8), "takes images of"),
        (CharLstmConfig(), "knows 65 characters"),
    ],
)
def test_a_network_refuses_data_that_it_cannot_take(model: ModelConfig, words: str) -> None:
    dataset = mlp_classifier().data.load(DataStore.from_environment({}))
    with pytest.raises(BadSetting, match=words):
        model.fitted(dataset)


def test_a_network_refuses_another_number_of_classes() -> None:
    config = digits_cnn()
    dataset = config.data.load(DataStore.from_environment({}))
    config.model.fitted(dataset)
    assert isinstance(config.model, CnnConfig)
    with pytest.raises(BadSetting, match="tells 9 classes apart, the data has 10"):
        replace(config.model, classes=9).fitted(dataset)


def test_a_language_model_takes_its_vocabulary() -> None:
    CharLstmConfig(vocabulary=4).fitted(split_text("abcd" * 9, ShakespeareData()))


SERVED = {
    "linear_regression": (("x",), ("y",)),
    "logistic_regression": (("x",), ("probability",)),
    "mlp_classifier": (("x",), ("probability",)),
    "digits_cnn": (("image",), ("probabilities",)),
    "mnist_cnn": (("image",), ("probabilities",)),
    "mnist_cnn_best": (("image",), ("probabilities",)),
    "mnist_cnn_robust": (("image",), ("probabilities",)),
    "mnist_cnn_private": (("image",), ("probabilities",)),
    "shakespeare_lstm": (("tokens", "h0", "c0"), ("logits", "h1", "c1")),
    "shakespeare_lstm_large": (("tokens", "h0", "c0"), ("logits", "h1", "c1")),
}


@pytest.mark.parametrize("name", SERVED)
def test_served_names_are_the_agreed_ones(name: str) -> None:
    config = RECIPES[name]()
    outside = served(config.model.build(), config.task)
    assert (outside.input_names, outside.output_names) == SERVED[name]
    assert set(outside.dynamic) == set(outside.input_names)
    assert all(axes[0] == "batch" for axes in outside.dynamic.values())


def test_served_classifiers_answer_probabilities() -> None:
    config = digits_cnn()
    images = torch.randint(0, 17, (5, 8, 8), dtype=torch.uint8)
    (probabilities,) = served(config.model.build(), config.task).reference(images)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    (probability,) = served(mlp_classifier().model.build(), "binary").reference(torch.rand(5, 10))
    assert probability.shape == (5, 1)
    assert ((probability > 0) & (probability < 1)).all()


def test_the_fused_lstm_equals_its_twin_at_any_batch_and_time(exported: Callable[[str], Any]) -> None:
    """Weights random, so that a gate in the wrong place shows."""
    exportable, path = exported("lstm").exportable, exported("lstm").path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, time in ((1, 1), (2, 5), (7, 3), (64, 17), (1, 40)):
        tokens = torch.randint(5, (batch, time))
        h, c = torch.randn(2, batch, 2, 4).tanh()
        feeds = {"tokens": tokens.numpy(), "h0": h.numpy(), "c0": c.numpy()}
        for found, wanted in zip(session.run(None, feeds), exportable.reference(tokens, h, c), strict=True):
            assert found.shape == tuple(wanted.shape)
            np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6)


def test_a_character_outside_the_vocabulary_is_refused_by_the_graph(exported: Callable[[str], Any]) -> None:
    session = onnxruntime.InferenceSession(exported("lstm").path, providers=["CPUExecutionProvider"])
    state = np.zeros((1, 2, 4), np.float32)
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"tokens": np.full((1, 3), 5), "h0": state, "c0": state})


def conv_stack() -> ConvStackConfig:
    return ConvStackConfig(
        height=None, width=None, planes=None, classes=None, convolutions=(Conv(4, 3, stride=2), Conv(6, 3, pool=2))
    )


def images_of(*shape: int) -> Dataset:
    split = Split(torch.zeros(2, *shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))
    return Dataset(split, split, Provenance("made here", {}, ""), labels=("a", "b", "c"))


@pytest.mark.parametrize("shape", [(17, 13), (17, 13, 3)])
def test_a_stack_takes_its_sizes_from_the_data(shape: tuple[int, ...]) -> None:
    network = conv_stack().fitted(images_of(*shape)).build()
    assert network(torch.zeros(5, *shape, dtype=torch.uint8)).shape == (5, 3)
    assert network.training


def test_a_stack_that_was_not_fitted_or_does_not_fit_is_refused() -> None:
    with pytest.raises(BadSetting, match="leaves sizes to the data"):
        conv_stack().build()
    with pytest.raises(BadSetting, match="images of 6 x 6 are too small"):
        conv_stack().fitted(images_of(6, 6)).build()
    with pytest.raises(BadSetting, match="takes images of"):
        conv_stack().fitted(images_of(17, 13)).fitted(images_of(17, 13, 3))


def test_a_served_stack_has_its_normalisations_folded_and_answers_the_same() -> None:
    torch.manual_seed(0)
    network = conv_stack().fitted(images_of(17, 13)).build()
    images = torch.randint(0, 256, (64, 17, 13), dtype=torch.uint8)
    for _ in range(20):
        network(images)  # statistics that are not those of a fresh network
    outside = served(network, "multiclass")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in outside.module.modules())
    torch.testing.assert_close((outside.module(images),), outside.reference(images))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), "the network itself was changed"


def test_numbers_are_standardised_inside_the_network() -> None:
    rows = torch.tensor([[1e6, 5.0, 1e-3], [3e6, 5.0, 3e-3]])
    split = Split(rows, torch.zeros(2, 1))
    dataset = Dataset(split, split, Provenance("made here", {}, ""))
    network = DenseConfig(standardise=True).fitted(dataset).build()
    torch.testing.assert_close(network.standard(rows), torch.tensor([[-1.0, 0, -1], [1, 0, 1]]))
    with pytest.raises(BadSetting, match="leaves sizes to the data"):
        DenseConfig().build()
