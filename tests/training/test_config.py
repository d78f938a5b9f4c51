"""Settings: refused where they cannot work, and the same after a trip through JSON."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from forwardpass_training.adversary import Adversary
from forwardpass_training.config import Gate, RunConfig, from_json, to_json
from forwardpass_training.errors import BadSetting
from forwardpass_training.models import CnnConfig, DenseConfig
from forwardpass_training.recipes import RECIPES, linear_regression, mnist_cnn, shakespeare_lstm


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_survives_json(recipe: Any) -> None:
    config: RunConfig = recipe()
    text = json.dumps(to_json(config), allow_nan=False)
    assert from_json(json.loads(text)) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": -3}, "epochs is -3"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"window": 10}, "window is 10"),
        ({"model": DenseConfig(inputs=0)}, "model.inputs is 0"),
        ({"model": DenseConfig(inputs=1, dropout=1.0)}, "model.dropout is 1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"clip_norm": math.nan}, "clip_norm is nan"),
        ({"average": 1.0}, "average is 1.0"),
        ({"validation_share": -0.1}, "validation_share is -0.1"),
        ({"patience": 3}, "the held-out rows must not choose"),
        ({"patience": 0, "validation_share": 0.1}, "at least 1 epoch of patience"),
        ({"label_smoothing": 0.1}, r"label_smoothing is 0.1, and linear_regression \(regression\) has no classes"),
        ({"adversary": Adversary(epsilon=0.1)}, "an adversary needs images to classify"),
        ({"model": DenseConfig(inputs=1, hidden=(4, 0))}, r"model.hidden is \(4, 0\)"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_its_value(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        replace(linear_regression(), **change)


@pytest.mark.parametrize("change", [{"window": None}, {"window": 0}, {"batch_size": None}])
def test_a_language_model_needs_a_window_and_a_batch(change: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match="needs a batch_size and a window"):
        replace(shakespeare_lstm(), **change)


def test_images_too_small_for_the_network_are_refused() -> None:
    with pytest.raises(BadSetting, match="3 x 8 are too small"):
        CnnConfig(height=3, width=8)


def edited(**changes: Any) -> dict[str, Any]:
    """The JSON of `mnist_cnn`, with some fields replaced; a field set to ... is removed."""
    values: dict[str, Any] = {**to_json(mnist_cnn()), **changes}
    return {name: value for name, value in values.items() if value is not ...}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "config is"),
        ("text", "config is 'text'"),
        (edited(epochs=...), "config lacks epochs"),
        (edited(epoch=3), "config does not know epoch"),
        (edited(epochs="5"), "config.epochs is '5'"),
        (edited(epochs=5.0), "config.epochs is 5.0"),
        (edited(epochs=True), "config.epochs is True"),
        (edited(epochs=None), "config.epochs is None"),
        (edited(task="ranking"), "config.task is 'ranking'"),
        (edited(data={"kind": "Imagenet"}), "config.data.kind is 'Imagenet'"),
        (edited(data=None), "config.data.kind is None"),
        (edited(model={"kind": "ConvStackConfig", "height": 28}), "config.model lacks convolutions"),
        (edited(gates=[{"kind": "Gate", "metric": "x", "at_least": "a", "at_most": 1}]), r"config.gates\[0\].at_least"),
        (edited(epochs=0), "epochs is 0"),
    ],
)
def test_a_config_that_was_tampered_with_is_refused_with_the_path(values: Any, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        from_json(values)


def test_a_gate_holds_within_its_bounds_and_never_for_nan_or_an_absent_metric() -> None:
    gate = Gate(metric="accuracy", at_least=0.97)
    assert gate.holds({"accuracy": 0.97})
    assert not gate.holds({"accuracy": 0.9699})
    assert not gate.holds({"accuracy": math.nan})
    assert not gate.holds({})
    assert str(gate) == "accuracy >= 0.97"
    assert not Gate(metric="loss", at_most=1).holds({"loss": 1.01})
    assert str(Gate(metric="loss", at_least=0, at_most=1)) == "loss >= 0 and <= 1"
