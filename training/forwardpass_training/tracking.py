"""Tracking: the figures of a run, told epoch by epoch to a tool that compares runs. Nothing is tracked unless asked.

`tensorboard` writes event files into the run folder (`tensorboard --logdir runs`). `mlflow` tells the server that
`MLFLOW_TRACKING_URI` names. Either comes with `pip install 'forwardpass[tracking]'`, and neither is imported before.
The run folder stays the record: whatever is tracked is in it too.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any, Literal, Protocol

from forwardpass_training.checkpoint import Epoch
from forwardpass_training.errors import BadSetting

TrackerName = Literal["tensorboard", "mlflow"]

SERVER_VARIABLE = "MLFLOW_TRACKING_URI"
SETTING_CHARACTERS_MAX = 500
"""MLflow's own bound on a parameter's value."""


class Tracker(Protocol):
    """What is told of one run, in this order; called from one thread."""

    def begin(self, run_folder: Path, name: str, settings: Mapping[str, str]) -> None:
        """A run of the recipe `name` begins in its folder, or goes on there."""

    def epoch(self, number: int, epoch: Epoch) -> None:
        """Epoch `number`, counted from 1, is finished."""

    def finish(self, held_out: Mapping[str, float], report: Path) -> None:
        """The run is finished, and reported at `report`."""

    def close(self, *, finished: bool) -> None:
        """Always the last call; `finished` is False where the run was stopped or failed."""


class NoTracker:
    """The default."""

    def begin(self, run_folder: Path, name: str, settings: Mapping[str, str]) -> None: ...

    def epoch(self, number: int, epoch: Epoch) -> None: ...

    def finish(self, held_out: Mapping[str, float], report: Path) -> None: ...

    def close(self, *, finished: bool) -> None: ...


class TensorBoardTracker:
    """Event files in the run folder, which TensorBoard shows as one run.

    Raises:
        BadSetting: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise _missing("tensorboard") from exc
        self._open: Any = SummaryWriter
        self._writer: Any = None

    def begin(self, run_folder: Path, name: str, settings: Mapping[str, str]) -> None:
        self._writer = self._open(str(run_folder))
        rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
        self._writer.add_text("settings", f"{name}\n\n| setting | value |\n|---|---|\n{rows}")

    def epoch(self, number: int, epoch: Epoch) -> None:
        for key, value in _figures(epoch).items():
            self._writer.add_scalar(key, value, number)

    def finish(self, held_out: Mapping[str, float], report: Path) -> None:
        for key, value in held_out.items():
            self._writer.add_scalar(f"held_out/{key}", value, 0)
        self._writer.add_text("report", report.name)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002  TensorBoard has no word for it
        if self._writer:
            self._writer.close()


class MlflowTracker:
    """One MLflow run in the experiment of the recipe's name; the report becomes its artefact.

    Raises:
        BadSetting: MLflow is not installed, or no server is named.
    """

    def __init__(self) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as exc:
            raise _missing("mlflow") from exc
        uri = environ.get(SERVER_VARIABLE)
        if not uri:
            raise BadSetting(
                f"--track mlflow needs a server: set {SERVER_VARIABLE}, as http://127.0.0.1:5000 (`mlflow server`)"
            )
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._run = ""

    def begin(self, run_folder: Path, name: str, settings: Mapping[str, str]) -> None:
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run = self._client.create_run(number, run_name=run_folder.name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value[:SETTING_CHARACTERS_MAX])

    def epoch(self, number: int, epoch: Epoch) -> None:
        for key, value in _figures(epoch).items():
            self._client.log_metric(self._run, key, value, step=number)

    def finish(self, held_out: Mapping[str, float], report: Path) -> None:
        for key, value in held_out.items():
            self._client.log_metric(self._run, f"held_out/{key}", value)
        self._client.log_artifact(self._run, str(report))

    def close(self, *, finished: bool) -> None:
        if self._run:
            self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


TRACKERS: Mapping[TrackerName, Callable[[], Tracker]] = {"tensorboard": TensorBoardTracker, "mlflow": MlflowTracker}


@contextmanager
def tracked(tracker: Tracker, run_folder: Path, name: str, settings: Mapping[str, str]) -> Iterator[Tracker]:
    """Begin, and close whatever happens."""
    finished = False
    try:
        tracker.begin(run_folder, name, settings)
        yield tracker
        finished = True
    finally:
        tracker.close(finished=finished)


def _figures(epoch: Epoch) -> dict[str, float]:
    return {
        "loss/training": epoch.train_loss,
        "loss/held_out": epoch.test_loss,
        "metric": epoch.metric,
        "epoch_s": epoch.seconds,
    }


def _missing(package: str) -> BadSetting:
    return BadSetting(f"--track {package} needs {package}: pip install 'forwardpass[tracking]'")
