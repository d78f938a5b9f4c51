"""`forwardpass-train`: train recipes, and ship what they make.

    list                        the recipes, with what each must reach
    run RECIPE [--epochs …]     train into a new run folder; `run RECIPE --help` shows every setting
    sweep RECIPE [--minutes …]  search its settings, and train the best into a run folder
    resume RUN [--epochs …]     go on with a stopped run, or train a finished one further
    evaluate RUN                held-out metrics of a run's checkpoint
    report RUN                  its report.html, written anew
    export RUN [--out FILE]     write it as ONNX
    verify RUN [--file FILE]    compare the ONNX file with the network
    publish RUN --repository DIR   export, prove, and add the next version to a model repository
    optimise RUN                try smaller and faster forms of it: int8, fp16; publish one that passes
    explain RUN                 export a graph that answers and says why, and publish it beside the model
    sample RUN [--prompt …]     text that a language model writes
    generator RUN               export a graph that writes text, for a server, and publish it
    attack RUN                  accuracy under adversarial attack, of a file or of a running server
    retrain MODEL --repository DIR   train the serving version anew, and publish if it is not worse

RECIPE is a name of `list`, or `module:function` of yours. RUN is a run folder, or the name of a recipe, which means its
newest finished run below --runs-dir.
Results go to stdout, progress to stderr. Exit codes: 0 done; 1 an error, said in one message; 2 wrong usage;
3 done, but a held-out metric misses its bound; 130 stopped, and resumable.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from inspect import getdoc
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import tyro

from forwardpass_training import finished, run, writing
from forwardpass_training.arguments import FAILED, MISSED_GATE, MISUSED, OK, STOPPED, RunArgument, RunsDir, parse
from forwardpass_training.config import Gate, RunConfig
from forwardpass_training.data import DataStore
from forwardpass_training.device import DeviceName
from forwardpass_training.errors import Interrupted, TrainingError
from forwardpass_training.folder import RunFolder, find_run
from forwardpass_training.progress import Reporter
from forwardpass_training.recipes import RECIPES, find
from forwardpass_training.tracking import TRACKERS, NoTracker, TrackerName


@dataclass(frozen=True, kw_only=True)
class Machine(RunsDir):
    """How to use the machine; changes no setting of the recipe."""

    device: DeviceName = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""
    threads: int | None = None
    """Threads on the CPU; None: one for a small network, else one a core."""
    quiet: bool = False
    """No progress; errors and results only."""

    def surroundings(self) -> run.Surroundings:
        """The same, in the form that `run` takes."""
        reporter = Reporter(quiet=self.quiet)
        store = DataStore.from_environment(progress=reporter.download)
        return run.Surroundings(store=store, device=self.device, threads=self.threads, reporter=reporter)


@dataclass(frozen=True, kw_only=True)
class Tracked(Machine):
    """Where to follow a run, beside its folder."""

    track: TrackerName | None = None
    """tensorboard: event files in the run folder. mlflow: the server at MLFLOW_TRACKING_URI. None: nowhere."""

    def surroundings(self) -> run.Surroundings:
        """See `Machine.surroundings`."""
        tracker = TRACKERS[self.track]() if self.track else NoTracker()
        return replace(super().surroundings(), tracker=tracker)


@dataclass(frozen=True, kw_only=True)
class Run(Tracked):
    """Train a recipe into a new run folder."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Sweep(Machine):
    """Search the settings of a recipe, and train the best into a run folder. A stopped sweep goes on."""

    trials: int = 30
    """Trials in all, those of earlier calls included."""
    minutes: float = 10.0
    """Begin no trial after so long."""
    search: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUES")] = ()
    """What to search: learning_rate=1e-4..1e-1, or batch_size=16,32,64; nothing: rate, schedule, decay and batch."""
    folder: Path | None = None
    """Folder of the sweep; None: sweep-<recipe> in --runs-dir."""
    publish: Path | None = None
    """Publish the best run into this model repository."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Retrain(Machine):
    """Train the serving version anew, with other data or settings, and publish if it is not worse."""

    repository: Path
    """The model repository."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Resume(Tracked):
    """Go on with a stopped run, or train a finished one further."""

    run: RunArgument
    """A run folder, or a recipe: its newest run."""
    epochs: int | None = None
    """Epochs in all; None: as many as the run was meant to have."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Machine):
    """Held-out metrics of a run's checkpoint."""

    run: RunArgument
    """A run folder, or a recipe: its newest finished run."""


@dataclass(frozen=True, kw_only=True)
class Report(Machine):
    """Write the report of a finished run anew."""

    run: RunArgument
    """A run folder, or a recipe: its newest finished run."""


@dataclass(frozen=True, kw_only=True)
class Export(RunsDir):
    """Write a run's network as ONNX."""

    run: RunArgument
    """A run folder, or a recipe: its newest finished run."""
    out: Path | None = None
    """The file; None: model.onnx in the run folder."""


@dataclass(frozen=True, kw_only=True)
class Verify(RunsDir):
    """Compare an exported file with the network it came from."""

    run: RunArgument
    """A run folder, or a recipe: its newest finished run."""
    file: Path | None = None
    """The file; None: model.onnx in the run folder."""


@dataclass(frozen=True, kw_only=True)
class Publish(RunsDir):
    """Export, prove, and add the next version to a model repository."""

    run: RunArgument
    """A run folder, or a recipe: its newest finished run."""
    repository: Path
    """The model repository; made where there is none."""
    model: str | None = None
    """Name to publish under; None: the recipe's."""
    force: bool = False
    """Publish although a held-out metric misses its bound; parity is never waived."""
    sequences: bool = False
    """Let the server keep the state of the network from request to request of a sequence."""


def list_recipes(arguments: Sequence[str]) -> int:
    """`list`"""
    if arguments:
        return _misused(f"list takes no arguments, got {' '.join(arguments)}")
    for name, recipe in RECIPES.items():
        config = recipe()
        print(f"{name}\n    {(getdoc(recipe) or '').splitlines()[0]}")
        bounds = ", ".join(map(str, config.gates))
        print(f"    {config.epochs} epochs; " + (f"must reach {bounds} on held-out data" if bounds else "no bound"))
    return OK


def run_recipe(arguments: Sequence[str]) -> int:
    """`run RECIPE [settings]`"""
    if not arguments or arguments[0].startswith("-"):
        return _misused(f"run needs the name of a recipe first: {', '.join(RECIPES)}", asked=_asks_help(arguments))
    name, *settings = arguments
    default = Run(config=find(name)())
    command = parse(Run, f"run {name}", settings, default=default)
    folder = run.start(command.config, command.runs_dir, command.surroundings())
    return _told(folder)


def sweep(arguments: Sequence[str]) -> int:
    """`sweep RECIPE [settings]`"""
    from forwardpass_training.sweep import Sweep as Search
    from forwardpass_training.sweep import default_space, parse_space

    if not arguments or arguments[0].startswith("-"):
        return _misused(f"sweep needs the name of a recipe first: {', '.join(RECIPES)}", asked=_asks_help(arguments))
    name, *settings = arguments
    command = parse(Sweep, f"sweep {name}", settings, default=Sweep(config=find(name)()))
    config, surroundings = command.config, command.surroundings()
    space = parse_space(command.search, config) or default_space(config)
    search = Search(command.folder or command.runs_dir / f"sweep-{config.name}", config, space)
    best = search.run(
        trials=command.trials,
        seconds=command.minutes * 60,
        surroundings=surroundings,
        told=surroundings.reporter.line,
    )
    print(search.table())
    print(f"sweep folder  {search.folder}")
    folder = run.start(search.best_config(best), command.runs_dir, surroundings)
    code = _told(folder)
    if command.publish:
        _publish(folder.path, command.publish)
    return code


def retrain(arguments: Sequence[str]) -> int:
    """`retrain MODEL --repository DIR [settings]`"""
    from forwardpass_training.retrain import last_config
    from forwardpass_training.retrain import retrain as retrain_into

    if not arguments or arguments[0].startswith("-"):
        return _misused("retrain needs the name of a model first", asked=_asks_help(arguments))
    model, *settings = arguments
    repository = argparse.ArgumentParser(prog="forwardpass-train retrain", add_help=False, allow_abbrev=False)
    repository.add_argument("--repository", type=Path, required=True)
    root = repository.parse_known_args(settings)[0].repository
    serving, config = last_config(root, model)
    command = parse(Retrain, f"retrain {model}", settings, default=Retrain(repository=root, config=config))
    verdict = retrain_into(serving, command.config, root, command.runs_dir, command.surroundings())
    print("\n".join(verdict.reasons))
    print(f"run folder  {verdict.run_folder}")
    if verdict.published is None:
        print(f"nothing is published; version {serving.version} of {model} goes on serving")
        return MISSED_GATE
    print(f"{model} version {verdict.published.version}: {verdict.published.path}")
    return OK


def resume(arguments: Sequence[str]) -> int:
    """`resume RUN`"""
    command = parse(Resume, "resume", arguments)
    path = find_run(command.run, command.runs_dir, finished=False)
    return _told(run.resume(path, command.surroundings(), epochs=command.epochs))


def evaluate(arguments: Sequence[str]) -> int:
    """`evaluate RUN`"""
    command = parse(Evaluate, "evaluate", arguments)
    folder, found = run.reevaluate(find_run(command.run, command.runs_dir), command.surroundings())
    return _print_metrics(found.metrics, folder.config().gates)


def report(arguments: Sequence[str]) -> int:
    """`report RUN`"""
    command = parse(Report, "report", arguments)
    print(run.look_again(find_run(command.run, command.runs_dir), command.surroundings()))
    return OK


def export(arguments: Sequence[str]) -> int:
    """`export RUN`"""
    from forwardpass_training.export import export as export_to

    command = parse(Export, "export", arguments)
    path = find_run(command.run, command.runs_dir)
    print(export_to(run.exportable(path), command.out or path / "model.onnx"))
    return OK


def verify(arguments: Sequence[str]) -> int:
    """`verify RUN`"""
    from forwardpass_training.verify import parity

    command = parse(Verify, "verify", arguments)
    path = find_run(command.run, command.runs_dir)
    print(parity(command.file or path / "model.onnx", run.exportable(path)))
    return OK


def publish(arguments: Sequence[str]) -> int:
    """`publish RUN --repository DIR`"""
    command = parse(Publish, "publish", arguments)
    path = find_run(command.run, command.runs_dir)
    _publish(path, command.repository, model=command.model, force=command.force, sequences=command.sequences)
    return OK


def _publish(
    run_folder: Path, root: Path, *, model: str | None = None, force: bool = False, sequences: bool = False
) -> None:
    from forwardpass_training.publish import publish as publish_to

    version = publish_to(run_folder, root, model=model, force=force, sequences=sequences)
    print(f"{version.model} version {version.version}: {version.path}")


COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "list": list_recipes,
    "run": run_recipe,
    "sweep": sweep,
    "retrain": retrain,
    "resume": resume,
    "evaluate": evaluate,
    "report": report,
    "export": export,
    "verify": verify,
    "publish": publish,
    "optimise": finished.optimise,
    "explain": finished.explain,
    "attack": finished.attack,
    "sample": writing.sample,
    "generator": writing.generator,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; says errors on stderr.

    Args:
        arguments: of the command line; None: this process's own, whose SIGTERM then stops a run as Ctrl-C does.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        signal.signal(signal.SIGTERM, _interrupt)
    if not arguments or _asks_help(arguments[:1]):
        print((__doc__ or "").strip())
        return OK if arguments else MISUSED
    name, *rest = arguments
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        return _misused(f"no command {name!r}; {hint}")
    try:
        return COMMANDS[name](rest)
    except Interrupted as exc:
        print(exc, file=sys.stderr)
        return STOPPED
    except TrainingError as exc:
        print(f"forwardpass-train: {exc}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("forwardpass-train: stopped", file=sys.stderr)
        return STOPPED


def _told(folder: RunFolder) -> int:
    """Print what a finished run reached and where it is."""
    code = _print_metrics(run.metrics(folder.path)["held_out"], folder.config().gates)
    print(f"run folder  {folder.path}")
    return code


def _print_metrics(found: Mapping[str, float], gates: Sequence[Gate]) -> int:
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value:.6g}")
    missed = [gate for gate in gates if not gate.holds(found)]
    for gate in gates:
        print(f"{'MISSED' if gate in missed else 'reached'}: {gate}")
    return MISSED_GATE if missed else OK


def _asks_help(arguments: Sequence[str]) -> bool:
    return bool(arguments) and arguments[0] in ("-h", "--help", "help")


def _misused(text: str, *, asked: bool = False) -> int:
    print(f"forwardpass-train: {text}", file=sys.stdout if asked else sys.stderr)
    return OK if asked else MISUSED


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
