"""A sweep finds better settings by rows kept aside, goes on after kill -9, and refuses to mix with another."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forwardpass_training import sweep
from forwardpass_training.config import RunConfig
from forwardpass_training.data import DataStore, SumData
from forwardpass_training.errors import BadSetting
from forwardpass_training.recipes import mlp_classifier
from forwardpass_training.run import Surroundings
from forwardpass_training.sweep import Range, Sweep, default_space, parse_space, with_settings

pytest.importorskip("optuna", reason="pip install 'forwardpass[sweep]'")

QUIET = Surroundings(store=DataStore.from_environment({}), device="cpu", threads=1)


def tiny() -> RunConfig:
    """Too few steps at too small a rate: almost any other rate is better."""
    data = SumData(train_rows=600, test_rows=100)
    return replace(mlp_classifier(), epochs=3, learning_rate=1e-3, data=data)


SPACE: sweep.Space = {"learning_rate": Range(1e-3, 1e-1, log=True), "model.hidden": ([10], [20, 20])}


def ran(folder: Path, trials: int, seconds: float = 600) -> tuple[Sweep, Any, list[str]]:
    told: list[str] = []
    search = Sweep(folder, tiny(), SPACE)
    return search, search.run(trials=trials, seconds=seconds, surroundings=QUIET, told=told.append), told


def test_a_sweep_beats_the_recipe_and_leaves_table_and_plot(tmp_path: Path) -> None:
    search, best, told = ran(tmp_path / "sweep", 8)
    assert len(told) == 8
    assert [line.partition(": ")[0] for line in told] == [f"trial {number}" for number in range(8)]
    assert all(": accuracy 0." in line for line in told)
    with (tmp_path / "sweep" / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    own = next(row for row in table if row["trial"] == "0")
    assert (own["learning_rate"], own["model.hidden"]) == ("0.001", "[10]")
    assert float(table[0]["accuracy"]) == best.value > float(own["accuracy"]) + 0.05
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "learning_rate" in search.table()
    config = search.best_config(best)
    assert config.learning_rate == best.params["learning_rate"]
    assert config.model.hidden in ((10,), (20, 20))  # type: ignore[attr-defined]
    assert config.validation_share == 0


def test_a_sweep_goes_on_to_its_number_of_trials(tmp_path: Path) -> None:
    ran(tmp_path / "sweep", 3)
    assert len(ran(tmp_path / "sweep", 5)[2]) == 2
    assert ran(tmp_path / "sweep", 5)[2] == []


def test_time_ends_a_sweep_between_trials(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"no trial of the sweep .* give it more time"):
        ran(tmp_path / "sweep", 5, seconds=0)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_sweep import QUIET, SPACE, tiny
from forwardpass_training.sweep import Sweep
search = Sweep(Path({folder!r}), tiny(), SPACE)
search.run(trials=1000, seconds=600, surroundings=QUIET, told=lambda line: print(line, flush=True))
"""


def test_a_killed_sweep_goes_on_and_tries_again_what_it_was_trying(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in range(3):
            assert process.stdout.readline().startswith("trial")
        with pytest.raises(BadSetting, match="another process runs the sweep"):
            ran(folder, 5)
        os.kill(process.pid, signal.SIGKILL)
        rest = len(process.stdout.readlines())
    done = 3 + rest
    search, _, told = ran(folder, done + 2)
    assert len(told) == 2
    trials = search._study().trials
    assert [trial.state.name for trial in trials].count("RUNNING") == 0
    killed = [trial for trial in trials if trial.state.name == "FAIL"]
    assert len(killed) <= 1
    for trial in killed:
        again = [other for other in trials if other.number > trial.number and other.params == trial.params]
        assert len(again) == 1 or not trial.params


def test_another_sweep_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Sweep(tmp_path / "sweep", tiny(), SPACE)
    with pytest.raises(BadSetting, match="holds a sweep of other settings"):
        Sweep(tmp_path / "sweep", replace(tiny(), epochs=4), SPACE)
    with pytest.raises(BadSetting, match="holds a sweep of other settings"):
        Sweep(tmp_path / "sweep", tiny(), {"average": Range(0.1, 0.5)})


def test_a_trial_that_diverges_is_a_bad_trial_and_no_more(tmp_path: Path) -> None:
    config = replace(tiny(), task="regression", optimizer="sgd", gates=())
    search = Sweep(tmp_path, config, {"learning_rate": (1e-3, 1e30)})
    told: list[str] = []
    best = search.run(trials=4, seconds=600, surroundings=QUIET, told=told.append)
    assert search.best_config(best).learning_rate == 1e-3
    assert any("diverged" in line for line in told)


def test_what_to_search_is_read_as_written() -> None:
    found = parse_space(
        [
            "learning_rate=1e-4..1e-1",
            "average=0..0.9/linear",
            "batch_size=16,32",
            "model.hidden=[8],[8,8]",
            'schedule="cosine"',
        ],
        tiny(),
    )
    assert found == {
        "learning_rate": Range(1e-4, 1e-1, log=True),
        "average": Range(0, 0.9),
        "batch_size": (16, 32),
        "model.hidden": ([8], [8, 8]),
        "schedule": ("cosine",),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat=1..2", "has no setting 'learning_rat'"),
        ("model.kind=1,2", "has no setting 'model.kind'"),
        ("epochs.x=1", "has no setting 'epochs.x'"),
        ("learning_rate", "not understood"),
        ("learning_rate=2..1", "the first number must be below"),
        ("learning_rate=0..1", "above 0 unless /linear"),
        ("learning_rate=a..b", "not understood"),
        ("batch_size=16;32", "not understood"),
    ],
)
def test_what_cannot_be_searched_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        parse_space([text], tiny())


def test_settings_are_replaced_by_path_and_checked() -> None:
    assert with_settings(tiny(), {"batch_size": 8, "data.train_rows": 7}).data == SumData(train_rows=7, test_rows=100)
    with pytest.raises(BadSetting, match="epochs is 0"):
        with_settings(tiny(), {"epochs": 0})
    with pytest.raises(BadSetting, match=r"config.schedule is 'round'"):
        with_settings(tiny(), {"schedule": "round"})


def test_the_default_space_holds_the_recipes_own_settings() -> None:
    config = mlp_classifier()
    space = default_space(config)
    assert all(
        value in values if isinstance(values, tuple) else values.low <= value <= values.high
        for values, value in ((space[path], sweep.get(config, path)) for path in space)
    )
