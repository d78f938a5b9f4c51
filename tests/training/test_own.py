"""The user's own recipe, network and data: named by module, kept in the run's config, told apart from mistakes."""

import json
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from forwardpass_training import own, run
from forwardpass_training.__main__ import FAILED, OK, main
from forwardpass_training.config import from_json, to_json
from forwardpass_training.data import DataStore
from forwardpass_training.errors import BadSetting
from forwardpass_training.recipes import find
from forwardpass_training.run import Surroundings

RECIPE = """
    from dataclasses import dataclass
    from torch import nn
    from forwardpass_training.config import RunConfig
    from forwardpass_training.data import SumData
    from forwardpass_training.models import ModelConfig

    @dataclass(frozen=True, kw_only=True)
    class Mine(ModelConfig):
        hidden: int = 6

        def build(self):
            return nn.Sequential(nn.Linear(10, self.hidden), nn.GELU(), nn.Linear(self.hidden, 1))

    def config():
        return RunConfig(name="mine", task="binary", epochs=2, batch_size=32, optimizer="adam", learning_rate=1e-2,
                         data=SumData(train_rows=300, test_rows=50), model=Mine())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    return tmp_path


def write(folder: Path, module: str, text: str) -> None:
    (folder / f"{module}.py").write_text(dedent(text))


def test_an_own_recipe_trains_with_flags_and_is_found_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, "own_recipe_a", RECIPE)
    arguments = ["run", "own_recipe_a:config", "--model.hidden", "4", "--threads", "1", "--device", "cpu"]
    assert main(arguments) == OK
    (folder,) = (here / "runs").iterdir()
    assert json.loads((folder / "config.json").read_text())["model"] == {"kind": "own_recipe_a:Mine", "hidden": 4}
    assert main(["evaluate", "mine", "--threads", "1", "--device", "cpu"]) == OK
    assert "accuracy" in capsys.readouterr().out


def test_an_own_config_survives_json(here: Path) -> None:
    write(here, "own_recipe_b", RECIPE)
    config = find("own_recipe_b:config")()
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_recipe_none:config", "there is no module 'own_recipe_none'"),
        ("own_recipe_c:other", "has no 'other'"),
        ("own_recipe_c.deeper:config", "there is no module"),
        (":config", "names no module"),
    ],
)
def test_what_is_not_there_is_told(here: Path, name: str, words: str) -> None:
    write(here, "own_recipe_c", "config = 1\n")
    with pytest.raises(BadSetting, match=words):
        own.load(name)


def test_what_an_own_module_lacks_is_its_own_error(here: Path) -> None:
    write(here, "own_recipe_d", "import own_recipe_gone\n")
    with pytest.raises(ModuleNotFoundError, match="own_recipe_gone"):
        own.load("own_recipe_d:config")


def test_a_recipe_that_gives_something_else_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(here, "own_recipe_e", "def config():\n    return {'epochs': 3}\n\nnumber = 3\n")
    assert main(["run", "own_recipe_e:config"]) == FAILED
    assert "gave a dict, not a RunConfig" in capsys.readouterr().err
    assert main(["run", "own_recipe_e:number"]) == FAILED
    assert "is a int, not a function that gives a RunConfig" in capsys.readouterr().err


def test_a_csv_becomes_a_model_without_code(here: Path) -> None:
    lines = [f"{a},{b},{'above' if a + b > 1000 else 'below'}" for a in range(0, 1000, 40) for b in range(0, 1000, 40)]
    (here / "rows.csv").write_text("\n".join(["a,b,side", *lines]))
    config = find("table_classifier")()
    config = replace(config, epochs=15, data=replace(config.data, path=here / "rows.csv", target="side"))  # type: ignore[type-var]
    surroundings = Surroundings(store=DataStore.from_environment({}), device="cpu", threads=1)
    folder = run.start(config, here / "runs", surroundings)
    assert run.metrics(folder.path)["held_out"]["accuracy"] > 0.95
    assert folder.config().model.means  # type: ignore[attr-defined]
