"""A sweep: many short trainings that search the settings of a recipe (Optuna), judged by rows kept aside.

The held-out rows choose nothing: they judge the best settings at the end, beside the recipe's own. Everything is in the
sweep's folder, so a sweep that was stopped, or killed, goes on where it was:

    sweep.json    recipe, settings that are searched, and the seed
    study.db      every trial, as it happens
    trials.csv    the table                    sweep.png    the plot
"""

import csv
import fcntl
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forwardpass_training import run
from forwardpass_training.checkpoint import Checkpoint
from forwardpass_training.config import RunConfig, from_json, to_json
from forwardpass_training.data import Dataset
from forwardpass_training.device import choose, make_repeatable
from forwardpass_training.errors import BadSetting, Diverged
from forwardpass_training.evaluate import HEADLINE, LOWER_IS_BETTER
from forwardpass_training.folder import RunFolder, write_whole
from forwardpass_training.train import train

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

KEPT_ASIDE = 0.15
"""Share of the training rows that judges the trials, where the recipe keeps none aside."""
UNPRUNED_TRIALS = 4
"""Trials that run to their end before any is cut short."""
GUESSED_RATE = 5
"""Times the recipe's learning rate, in the second trial (Smith 2018, super-convergence)."""


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, all orders of magnitude alike where `log`."""

    low: float
    high: float
    log: bool = False


Choice = tuple[Any, ...]
Space = dict[str, Range | Choice]
"""What to search, by the setting's path in `config.json`, as `model.hidden`."""


def default_space(config: RunConfig) -> Space:
    """Learning rate within ten times, batch size within four times, schedule and weight decay of any recipe."""
    space: Space = {
        "learning_rate": Range(config.learning_rate / 10, config.learning_rate * 10, log=True),
        "schedule": ("constant", "cosine", "one_cycle"),
        "weight_decay": (0.0, 1e-4, 1e-2),
    }
    if config.batch_size:
        sizes = sorted({max(1, round(config.batch_size * factor)) for factor in (0.25, 0.5, 1, 2, 4)})
        space["batch_size"] = tuple(sizes)
    return space


def parse_space(searched: Sequence[str], config: RunConfig) -> Space:
    """`learning_rate=1e-4..1e-1` (logarithmic), `average=0.5..0.9/linear`, `model.hidden=[16],[64],[64,64]`.

    Raises:
        BadSetting: not of that form, or no setting of the recipe.
    """
    import json

    space: Space = {}
    for text in searched:
        path, equals, values = text.partition("=")
        get(config, path)
        try:
            if not equals:
                raise ValueError("no = in it")
            if ".." in values:
                low, high = values.removesuffix("/linear").split("..")
                found = Range(float(low), float(high), log=not values.endswith("/linear"))
                if not (found.low < found.high and (found.low > 0 or not found.log)):
                    raise ValueError("the first number must be below the second, and above 0 unless /linear")
                space[path] = found
            else:
                space[path] = tuple(json.loads(f"[{values}]"))
        except ValueError as exc:
            raise BadSetting(
                f"--search {text!r} is not understood ({exc}); write learning_rate=1e-4..1e-1, or "
                'batch_size=16,32,64, or schedule="constant","cosine"'
            ) from exc
    return space


def get(config: RunConfig, path: str) -> Any:
    """The setting at `path`, as it stands in `config.json`.

    Raises:
        BadSetting: there is none.
    """
    values: Any = to_json(config)
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values or name == "kind":
            raise BadSetting(f"{config.name} has no setting {path!r}")
        values = values[name]
    return values


def with_settings(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """The config with some settings replaced, by path.

    Raises:
        BadSetting: a value that the setting cannot have.
    """
    values = to_json(config)
    for path, value in settings.items():
        *outer, last = path.split(".")
        inner = values
        for name in outer:
            inner = inner[name]
        inner[last] = value
    return from_json(values)


class Sweep:
    """The sweep in one folder; only one process at a time may run it.

    Args:
        folder: made where it is not there; else the sweep in it goes on.
        config: of the recipe.
        space: what to search.

    Raises:
        BadSetting: Optuna is not installed, or the folder holds another sweep, or one that runs.
    """

    def __init__(self, folder: Path, config: RunConfig, space: Space) -> None:
        self._optuna = _import_optuna()
        self.folder = folder
        self.space = space
        self.config = config
        if not config.validation_share:
            self.config = replace(config, validation_share=KEPT_ASIDE)
        self.metric = HEADLINE[config.task]
        self.direction = "minimize" if self.metric in LOWER_IS_BETTER else "maximize"
        folder.mkdir(parents=True, exist_ok=True)
        self._check_same()

    def run(
        self, *, trials: int, seconds: float, surroundings: run.Surroundings, told: Callable[[str], None]
    ) -> "FrozenTrial":
        """Go on to `trials` in all, or for `seconds`. Returns the best; leaves table and plot in the folder.

        Raises:
            TrainingError: see `errors`; a trial that diverges is only a bad trial.
        """
        make_repeatable(surroundings.threads or 1)
        device = choose(surroundings.device)
        dataset = self.config.data.load(surroundings.store)
        until = time.monotonic() + seconds
        with _locked(self.folder):
            study = self._study()
            self._forget_the_killed(study)
            while len(_finished(study)) < trials and time.monotonic() < until:
                trial = study.ask()
                value, state = self._try(trial, dataset, device)
                told(_line(study.tell(trial, value, state=state), self.metric))
            self._write_table(study)
            self._draw(study)
            if not any(trial.state.name == "COMPLETE" for trial in study.trials):
                raise BadSetting(f"no trial of the sweep in {self.folder} came to its end yet; give it more time")
            return study.best_trial

    def best_config(self, best: "FrozenTrial") -> RunConfig:
        """The recipe with the settings of a trial, and no rows kept aside but the recipe's own."""
        found = with_settings(self.config, self._values(best))
        return replace(found, validation_share=self._share)

    @property
    def _share(self) -> float:
        return 0.0 if self.config.validation_share == KEPT_ASIDE else self.config.validation_share

    def _try(self, trial: "Trial", dataset: Dataset, device: torch.device) -> tuple[float | None, Any]:
        """One training; gives the metric on the rows kept aside, or how the trial ended without one."""
        states = self._optuna.trial.TrialState
        config = with_settings(self.config, self._suggest(trial))
        config = replace(config, model=config.model.fitted(dataset))
        values: list[float] = []

        def watch(state: Checkpoint) -> None:
            if state.history:
                values.append(state.history[-1].metric)
                trial.report(values[-1], state.epochs)
                if trial.should_prune():
                    raise self._optuna.TrialPruned

        try:
            train(config, dataset, device, on_epoch=watch)
        except (self._optuna.TrialPruned, Diverged):
            return None, states.PRUNED
        return values[-1], states.COMPLETE

    def _suggest(self, trial: "Trial") -> dict[str, Any]:
        for path, values in self.space.items():
            if isinstance(values, Range):
                trial.suggest_float(path, values.low, values.high, log=values.log)
            else:
                trial.suggest_categorical(path, range(len(values)))  # a list is no category; its place is
        return self._values(trial)

    def _values(self, trial: "Trial | FrozenTrial") -> dict[str, Any]:
        return {
            path: trial.params[path] if isinstance(values, Range) else values[trial.params[path]]
            for path, values in self.space.items()
        }

    def _study(self) -> "Study":
        optuna = self._optuna
        study: Study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'study.db'}",
            study_name=self.config.name,
            load_if_exists=True,
            direction=self.direction,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED_TRIALS, n_warmup_steps=1),
        )
        # a sampler has no memory but the trials: seeded by their number, it goes on as if never stopped
        study.sampler = optuna.samplers.TPESampler(seed=self.config.seed + len(study.trials))
        if not study.trials:
            for settings in ({}, self._guess()):  # the recipe's own come first, to be compared with
                if (parameters := self._parameters(settings)) is not None:
                    study.enqueue_trial(parameters, skip_if_exists=True)
        return study

    def _guess(self) -> dict[str, Any]:
        """What helps many recipes: a rate too high to end with, on a schedule that ends low."""
        return {"learning_rate": GUESSED_RATE * self.config.learning_rate, "schedule": "one_cycle"}

    def _parameters(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """These settings, and for the rest the recipe's own, as parameters of a trial; None where the space leaves
        one of them out."""
        parameters: dict[str, Any] = {}
        for path, values in self.space.items():
            value = settings.get(path, get(self.config, path))
            if isinstance(values, Range):
                if not values.low <= value <= values.high:
                    return None
                parameters[path] = value
            elif value not in values:
                return None
            else:
                parameters[path] = values.index(value)
        return parameters

    def _forget_the_killed(self, study: "Study") -> None:
        """A trial that still runs belongs to a process that is gone: its settings are tried again."""
        states = self._optuna.trial.TrialState
        for trial in study.get_trials(states=(states.RUNNING,)):
            study.tell(trial.number, state=states.FAIL)
            study.enqueue_trial(trial.params)

    def _check_same(self) -> None:
        folder = RunFolder(self.folder)
        space = {path: to_json(values) for path, values in self.space.items()}
        values = {"config": to_json(self.config), "space": space}
        if not (self.folder / "sweep.json").is_file():
            folder.write_json("sweep.json", values)
        elif folder.read_json("sweep.json") != values:
            raise BadSetting(
                f"{self.folder} holds a sweep of other settings (sweep.json); repeat the command it was begun with, or "
                "name another folder with --folder"
            )

    def table(self) -> str:
        """The best ten trials, as text; all of them are in `trials.csv`."""
        with (self.folder / "trials.csv").open(newline="", encoding="utf-8") as file:
            rows = [[f"{float(cell):.5g}" if _is_decimal(cell) else cell for cell in row] for row in csv.reader(file)]
        widths = [max(map(len, column)) for column in zip(*rows[:11], strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows[:11]]
        return "\n".join(line.rstrip() for line in lines)

    def _write_table(self, study: "Study") -> None:
        ranked = sorted(_finished(study), key=lambda trial: _rank(trial, self.direction))
        text: list[list[Any]] = [["trial", "state", self.metric, "epochs", "seconds", *self.space]]
        for trial in ranked:
            took = trial.duration.total_seconds() if trial.duration else math.nan
            values = self._values(trial).values()
            text.append([trial.number, trial.state.name.lower(), trial.value, trial.last_step, round(took, 2), *values])
        with (self.folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(text)

    def _draw(self, study: "Study") -> None:
        """Each setting against the metric, and the metric from trial to trial."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 * (len(self.space) + 1), 3), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(self.space) + 1, sharey=True, squeeze=False)[0]
        done = [trial for trial in _finished(study) if trial.value is not None]
        values = [trial.value for trial in done]
        colours = ["tab:blue" if trial.state.name == "COMPLETE" else "lightgrey" for trial in done]
        axes[0].scatter([trial.number for trial in done], values, c=colours)
        axes[0].set(xlabel="trial (grey: cut short)", ylabel=f"{self.metric}, rows kept aside")
        for axis, (path, searched) in zip(axes[1:], self.space.items(), strict=True):
            axis.scatter([trial.params[path] for trial in done], values, c=colours)
            axis.set(xlabel=path)
            if isinstance(searched, Range):
                axis.set_xscale("log" if searched.log else "linear")
            else:
                axis.set_xticks(range(len(searched)), [str(value) for value in searched])
        write_whole(self.folder / "sweep.png", lambda file: figure.savefig(file, format="png", dpi=120))


def _is_decimal(cell: str) -> bool:
    return "." in cell and cell.replace(".", "", 1).replace("e-", "", 1).isdigit()


def _finished(study: "Study") -> "list[FrozenTrial]":
    """Trials that came to an end; one that failed was killed, and its settings are tried again."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def _rank(trial: "FrozenTrial", direction: str) -> tuple[bool, float]:
    """Complete trials first, the best before the others."""
    value = math.inf if trial.value is None else trial.value
    return trial.state.name != "COMPLETE", value if direction == "minimize" or value == math.inf else -value


def _line(trial: "FrozenTrial", metric: str) -> str:
    value = "diverged" if trial.value is None else f"{metric} {trial.value:.4f} after {trial.last_step} epochs"
    return f"trial {trial.number}: {value}{', cut short' if trial.state.name == 'PRUNED' else ''}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process runs a sweep; the kernel lets go of the lock when that process dies."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise BadSetting(f"another process runs the sweep in {folder}; wait for it") from exc
        yield


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as exc:
        raise BadSetting("a sweep needs Optuna, which is not installed: pip install 'forwardpass[sweep]'") from exc
    logging.getLogger("optuna").setLevel(logging.WARNING)
    return optuna
