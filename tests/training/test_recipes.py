"""Every recipe reaches what it promises; the quick ones always, the long ones when asked."""

from pathlib import Path

import pytest

from forwardpass_training import run
from forwardpass_training.data import DataStore
from forwardpass_training.errors import UnknownRecipe
from forwardpass_training.recipes import RECIPES, find
from forwardpass_training.run import Surroundings

QUICK = ["linear_regression", "logistic_regression", "mlp_classifier", "digits_cnn"]
LONG = ["mnist_cnn", "mnist_cnn_best", "mnist_cnn_robust", "mnist_cnn_private", "shakespeare_lstm"]
HOURS = ["shakespeare_lstm_large"]
"""Longer than any test: what they reached stands in training/README.md."""
OWN_DATA = ["table_classifier", "table_regression", "image_classifier"]

METRICS = {
    "regression": {"mse", "mae", "r2"},
    "binary": {"accuracy", "precision", "recall", "f1"},
    "multiclass": {"accuracy", "precision_macro", "recall_macro", "f1_macro"},
    "language": {"nats_per_character", "perplexity"},
}


def reach(name: str, runs_dir: Path, store: DataStore) -> None:
    folder = run.start(find(name)(), runs_dir, Surroundings(store=store, device="cpu", threads=1))
    found = run.metrics(folder.path)
    assert found["gates"]
    assert all(gate["passed"] for gate in found["gates"]), found["held_out"]
    assert METRICS[found["task"]] <= set(found["held_out"])
    assert (folder.path / "loss.png").is_file()
    assert (folder.path / "confusion.png").is_file() == (found["task"] in ("binary", "multiclass"))


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_recipe_reaches_its_bound_and_needs_no_file(name: str, tmp_path: Path) -> None:
    reach(name, tmp_path, DataStore.from_environment({"XDG_CACHE_HOME": str(tmp_path / "cache")}))
    assert not (tmp_path / "cache").exists()


@pytest.mark.training
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LONG)
def test_a_long_recipe_reaches_its_bound(name: str, tmp_path: Path, downloads: DataStore) -> None:
    reach(name, tmp_path, downloads)


def test_there_is_nothing_else() -> None:
    assert set(RECIPES) == {*QUICK, *LONG, *HOURS, *OWN_DATA}
    assert all(RECIPES[name]().name == name and RECIPES[name].__doc__ for name in RECIPES)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownRecipe, match="did you mean mnist_cnn"):
        find("minst_cnn")
    with pytest.raises(UnknownRecipe, match=r"there are linear_regression, .*shakespeare_lstm"):
        find("")


def test_a_config_is_fresh_and_frozen() -> None:
    config = find("mnist_cnn")()
    assert config == find("mnist_cnn")()
    with pytest.raises(AttributeError):
        config.epochs = 3  # type: ignore[misc]
