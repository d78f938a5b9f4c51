"""Tracking: the real tools hold what the run folder holds; a run that stops or fails is closed; nothing by default."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from forwardpass_training import __main__ as command_line
from forwardpass_training import run
from forwardpass_training.checkpoint import Epoch
from forwardpass_training.data import DataStore
from forwardpass_training.errors import BadSetting, Interrupted
from forwardpass_training.recipes import linear_regression
from forwardpass_training.run import Surroundings
from forwardpass_training.tracking import MlflowTracker, TensorBoardTracker, Tracker

STORE = DataStore.from_environment({})


def tracked_run(tmp_path: Path, tracker: Tracker) -> Path:
    surroundings = Surroundings(store=STORE, device="cpu", threads=1, tracker=tracker)
    return run.start(replace(linear_regression(), epochs=3), tmp_path, surroundings).path


class Notes:
    """A tracker that writes down what it is told."""

    def __init__(self, stop_at: int = 0) -> None:
        self.told: list[str] = []
        self.stop_at = stop_at

    def begin(self, run_folder: Path, name: str, settings: Mapping[str, str]) -> None:
        self.told.append(f"begin {name} in {run_folder.name[:17]}: {settings['epochs']} epochs of {settings['data']}")

    def epoch(self, number: int, epoch: Epoch) -> None:
        if number == self.stop_at:
            raise KeyboardInterrupt
        self.told.append(f"epoch {number}")

    def finish(self, held_out: Mapping[str, float], report: Path) -> None:
        assert report.is_file()
        self.told.append(f"finish {sorted(held_out)[0]}")

    def close(self, *, finished: bool) -> None:
        self.told.append(f"close {finished}")


BEGIN = "begin linear_regression in linear_regression: 3 epochs of LineData"


def test_a_tracker_is_told_everything_in_order(tmp_path: Path) -> None:
    notes = Notes()
    tracked_run(tmp_path, notes)
    assert notes.told == [BEGIN, "epoch 1", "epoch 2", "epoch 3", "finish distance_to_least_squares", "close True"]


def test_a_stopped_run_is_closed_and_resumes_with_the_epochs_that_are_left(tmp_path: Path) -> None:
    notes = Notes(stop_at=2)
    with pytest.raises(Interrupted):
        tracked_run(tmp_path, notes)
    assert notes.told == [BEGIN, "epoch 1", "close False"]
    (path,) = tmp_path.iterdir()
    again = Notes()
    run.resume(path, Surroundings(store=STORE, device="cpu", threads=1, tracker=again))
    assert again.told == [BEGIN, "epoch 3", "finish distance_to_least_squares", "close True"]


@pytest.mark.filterwarnings("default")  # TensorBoard's own
def test_tensorboard_reads_the_history_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tracked_run(tmp_path, TensorBoardTracker())
    events = EventAccumulator(str(path))
    events.Reload()
    history = run.metrics(path)["history"]
    losses = events.Scalars("loss/held_out")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([epoch["test_loss"] for epoch in history])
    assert events.Scalars("held_out/r2")[0].value == pytest.approx(run.metrics(path)["held_out"]["r2"])


@pytest.mark.filterwarnings("default")  # MLflow's own
def test_mlflow_holds_settings_history_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    path = tracked_run(tmp_path / "runs", MlflowTracker())
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("linear_regression").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == path.name
    assert (
        found.data.params["data.train_rows"]
        == json.loads((path / "config.json").read_text())["data"]["train_rows"].__str__()
    )
    losses = client.get_metric_history(found.info.run_id, "loss/held_out")
    assert [loss.value for loss in losses] == [epoch["test_loss"] for epoch in run.metrics(path)["history"]]
    assert [artefact.path for artefact in client.list_artifacts(found.info.run_id)] == ["report.html"]


def test_mlflow_without_a_server_is_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arguments = ["run", "linear_regression", "--track", "mlflow", "--runs-dir", str(tmp_path / "runs")]
    assert command_line.main(arguments) == 1
    assert "set MLFLOW_TRACKING_URI" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("module", "make"), [("torch.utils.tensorboard", TensorBoardTracker), ("mlflow", MlflowTracker)]
)
def test_a_tool_that_is_not_there_is_named_with_its_cure(
    module: str, make: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadSetting, match=r"pip install 'forwardpass\[tracking\]'"):
        make()
