"""Retraining: better data are published, worse are not, and the verdict says why."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forwardpass_server.lifecycle import repository
from forwardpass_training import run
from forwardpass_training.__main__ import FAILED, MISSED_GATE, OK, main
from forwardpass_training.data import DataStore, TableData
from forwardpass_training.errors import BadSetting, PublishFailed
from forwardpass_training.publish import publish
from forwardpass_training.recipes import Gate, RunConfig, table_classifier
from forwardpass_training.retrain import last_config, served_metrics
from forwardpass_training.run import Surroundings

QUIET = Surroundings(store=DataStore.from_environment({}), device="cpu", threads=1)


def points(count: int, *, seed: int, wrong: float = 0.0) -> list[str]:
    """Points inside and outside a circle; a share of those named wrongly."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 2, generator=generator) * 2 - 1
    inside = (x.square().sum(1) < 0.6) ^ (torch.rand(count, generator=generator) < wrong)
    return [f"{a:.6f},{b:.6f},{'in' if i else 'out'}" for (a, b), i in zip(x.tolist(), inside.tolist(), strict=True)]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(["a,b,side", *lines]) + "\n")
    return path


def circle(path: Path) -> RunConfig:
    config = replace(table_classifier(), name="circle", epochs=25, data=TableData(path=path, target="side"))
    return replace(config, gates=(Gate(metric="accuracy", at_least=0.4),))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `models/circle/1`, trained on 300 points, and the files of worse and better data."""
    home = tmp_path_factory.mktemp("retrain")
    some = points(300, seed=1)
    write(home / "some.csv", some)
    write(home / "better.csv", some + points(900, seed=2))
    write(home / "worse.csv", points(150, seed=4, wrong=0.3))
    folder = run.start(circle(home / "some.csv"), home / "runs", QUIET)
    publish(folder.path, home / "models", force=True)
    return home


def retrained(home: Path, *arguments: str) -> int:
    where = ["--repository", str(home / "models"), "--runs-dir", str(home / "runs")]
    return main(["retrain", "circle", *where, "--threads", "1", "--device", "cpu", "--quiet", *arguments])


def versions(home: Path) -> list[int]:
    return sorted(repository.scan(home / "models").models["circle"].versions)


def test_worse_data_publish_nothing_and_better_data_the_next_version(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrained(served, "--data.path", str(served / "worse.csv")) == MISSED_GATE
    told = capsys.readouterr().out
    assert ": worse\n" in told
    assert "missed" not in told
    assert "nothing is published; version 1 of circle goes on serving" in told
    assert versions(served) == [1]
    assert retrained(served, "--data.path", str(served / "better.csv")) == OK
    told = capsys.readouterr().out
    assert "version 1 0." in told
    assert "not worse" in told
    assert "circle version 2" in told
    assert versions(served) == [1, 2]
    newest, config = last_config(served / "models", "circle")
    assert newest.version == 2
    assert config.data == TableData(path=served / "better.csv", target="side")


def test_a_missed_gate_publishes_nothing_though_it_be_better(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = served
    strict = replace(circle(home / "some.csv"), name="strict", gates=(Gate(metric="accuracy", at_least=0.999),))
    folder = run.start(replace(strict, epochs=1), home / "runs", QUIET)
    publish(folder.path, home / "models", force=True)
    arguments = ["--repository", str(home / "models"), "--runs-dir", str(home / "runs"), "--threads", "1", "--quiet"]
    assert main(["retrain", "strict", *arguments, "--epochs", "30"]) == MISSED_GATE
    assert "accuracy >= 0.999 is missed" in capsys.readouterr().out
    assert sorted(repository.scan(home / "models").models["strict"].versions) == [1]


def test_the_file_that_serves_is_judged_as_the_network_was(served: Path) -> None:
    newest, config = last_config(served / "models", "circle")
    dataset = config.data.load(QUIET.store)
    assert newest.manifest is not None
    found = served_metrics(newest.model_file(), config, dataset)
    assert found["accuracy"] == newest.manifest.metrics["accuracy"]


def test_rows_of_another_form_are_refused(served: Path, tmp_path: Path) -> None:
    newest, config = last_config(served / "models", "circle")
    wide = tmp_path / "wide.csv"
    wide.write_text("a,b,c,side\n" + "\n".join(f"{n},{n},{n},{'in' if n % 2 else 'out'}" for n in range(50)))
    with pytest.raises(BadSetting, match=r"takes rows of .*today's are \(3,\)"):
        served_metrics(newest.model_file(), config, replace(config.data, path=wide).load(QUIET.store))  # type: ignore[type-var]


def test_a_model_that_is_not_there_is_told(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PublishFailed, match="has no version of 'square'"):
        last_config(served / "models", "square")
    with pytest.raises(PublishFailed, match="cannot be listed"):
        last_config(served / "nowhere", "circle")
    assert main(["retrain", "square", "--repository", str(served / "models")]) == FAILED
    assert "publish a run of it first" in capsys.readouterr().err
