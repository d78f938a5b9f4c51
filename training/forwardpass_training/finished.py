"""Commands on finished runs: other forms of the network, reasons for its answers, and how well it withstands attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from forwardpass_training.arguments import MISSED_GATE, OK, RunArgument, RunsDir, parse
from forwardpass_training.attack_settings import AttackSettings
from forwardpass_training.errors import BadSetting
from forwardpass_training.folder import find_run
from forwardpass_training.progress import Reporter
from forwardpass_training.variant_gates import VariantGates

PICTURE_FILE = "robustness.png"
TABLE_WIDTH = 150
"""Columns of a table that goes into a file; on a terminal, the terminal's."""


@dataclass(frozen=True, kw_only=True)
class OnRun(RunsDir):
    """What these commands share."""

    run: RunArgument
    """A run folder, or a recipe: its newest finished run."""
    quiet: bool = False
    """No progress; errors and results only."""

    def path(self) -> Path:
        """The run folder."""
        return find_run(self.run, self.runs_dir)


@dataclass(frozen=True, kw_only=True)
class Optimise(OnRun):
    """Try smaller and faster forms of a run's network: int8, fp16, folded and fused graphs."""

    variants: tuple[str, ...] = ()
    """Which; nothing: all."""
    gates: Annotated[VariantGates, tyro.conf.arg(name="")] = VariantGates()  # noqa: RUF009  frozen
    publish: str | None = None
    """Publish this variant, if it passes."""
    repository: Path | None = None
    """The model repository to publish into."""
    model: str | None = None
    """Name to publish under; None: RECIPE_VARIANT, so that nobody's answers change unasked."""


@dataclass(frozen=True, kw_only=True)
class Explain(OnRun):
    """Export a graph that answers and says why; with --repository, publish it as MODEL_explain."""

    steps: int = 32
    """Points of the integration; the time of an answer grows with them."""
    repository: Path | None = None
    """The model repository to publish into."""
    model: str | None = None
    """The model that it explains; None: the recipe's name."""


@dataclass(frozen=True, kw_only=True)
class Attack(OnRun):
    """Move held-out images within epsilon until the served artefact errs; how much is left, as a curve."""

    settings: Annotated[AttackSettings, tyro.conf.arg(name="")] = AttackSettings()  # noqa: RUF009  frozen
    file: Path | None = None
    """The ONNX file to attack, a published version or a variant; None: the run's network, exported."""
    server: str | None = None
    """host:port of a running server to attack instead."""
    model: str | None = None
    """Name of the model there; None: the recipe's."""
    at_least: float | None = None
    """End with exit code 3 where less than this share withstands every attack at the largest epsilon."""


def optimise(arguments: Sequence[str]) -> int:
    """`optimise RUN`"""
    from forwardpass_training.optimise import optimise as try_all
    from forwardpass_training.optimise import publish_variant
    from forwardpass_training.optimise_table import print_table

    command = parse(Optimise, "optimise", arguments)
    if (command.publish is None) != (command.repository is None):
        raise BadSetting("publishing takes both --publish VARIANT and --repository DIR")
    if command.publish and command.variants and command.publish not in command.variants:
        raise BadSetting(f"--publish {command.publish} is not among --variants {' '.join(command.variants)}")
    path, reporter = command.path(), Reporter(quiet=command.quiet)
    found = try_all(path, variants=command.variants or None, gates=command.gates, told=reporter.line)
    console = _console()
    print_table(found, console)
    if command.publish and command.repository:
        version = publish_variant(path, found, command.publish, command.repository, model=command.model)
        _print(console, f"{version.model} version {version.version}: {version.path}")
    return OK


def explain(arguments: Sequence[str]) -> int:
    """`explain RUN`"""
    from forwardpass_training.explain import explain as export_explanation
    from forwardpass_training.explain import publish_explanation

    command = parse(Explain, "explain", arguments)
    path, console = command.path(), _console()
    explanation = export_explanation(path, steps=command.steps)
    _print(console, f"{explanation}\n{explanation.file}")
    if command.repository is None:
        explanation.parity.check()
    else:
        version = publish_explanation(path, explanation, command.repository, model=command.model)
        _print(console, f"{version.model} version {version.version}: {version.path}")
    return OK


def attack(arguments: Sequence[str]) -> int:
    """`attack RUN`"""
    from forwardpass_training.robustness import attack as assault
    from forwardpass_training.robustness_plot import save_robustness
    from forwardpass_training.robustness_table import print_table

    command = parse(Attack, "attack", arguments)
    path, reporter = command.path(), Reporter(quiet=command.quiet)
    found = assault(
        path,
        settings=command.settings,
        file=command.file,
        server=command.server,
        model=command.model,
        told=reporter.line,
    )
    save_robustness(found, path / PICTURE_FILE)
    console = _console()
    print_table(found, console)
    if command.at_least is None:
        return OK
    reached = found.worst[-1] >= command.at_least
    _print(console, f"{'reached' if reached else 'MISSED'}: {command.at_least:g} at epsilon {found.epsilons[-1]:g}")
    return OK if reached else MISSED_GATE


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=TABLE_WIDTH, highlight=False)


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
