"""Commands on language models: text from a finished run, and the generator that a server makes text with."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forwardpass_training import run
from forwardpass_training.arguments import OK, parse
from forwardpass_training.data import DataStore
from forwardpass_training.errors import BadSetting
from forwardpass_training.finished import OnRun
from forwardpass_training.models import CharLstm


@dataclass(frozen=True, kw_only=True)
class GeneratorOf(OnRun):
    """Export a graph that writes text, several characters a call; with --repository, publish it as MODEL_generator."""

    repository: Path | None = None
    """The model repository to publish into."""
    model: str | None = None
    """Name to publish under; None: the recipe's, with _generator."""
    force: bool = False
    """Publish although a held-out metric misses its bound; parity is never waived."""


@dataclass(frozen=True, kw_only=True)
class Sample(OnRun):
    """Write text with a run's network."""

    prompt: str = "\n"
    """What the text goes on from."""
    characters: int = 400
    """How many."""
    temperature: float = 0.8
    """0 takes the likeliest character; 1 draws as the network learnt; above, more daring."""
    top_k: int = 0
    """Choose among so many of the likeliest; 0: all."""
    top_p: float = 1.0
    """Choose among the likeliest that together have this probability; 1: all."""
    seed: int = 0
    """Equal seeds give equal texts."""


def generator(arguments: Sequence[str]) -> int:
    """`generator RUN`"""
    from forwardpass_training.generator import export_generator, publish_generator

    command = parse(GeneratorOf, "generator", arguments)
    path = command.path()
    if command.repository is None:
        file, _, report = export_generator(path)
        sys.stdout.write(f"{report}\n{file}\n")
        report.check()
    else:
        version = publish_generator(path, command.repository, model=command.model, force=command.force)
        sys.stdout.write(f"{version.model} version {version.version}: {version.path}\n")
    return OK


def sample(arguments: Sequence[str]) -> int:
    """`sample RUN`"""
    from forwardpass_training.samples import go_on

    command = parse(Sample, "sample", arguments)
    path = command.path()
    network = run.network(path)
    if not isinstance(network, CharLstm):
        raise BadSetting(f"{path} holds a {type(network).__name__}, which writes no text")
    text = go_on(
        network,
        run.dataset(path, DataStore.from_environment()).vocabulary,
        command.prompt,
        characters=command.characters,
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        seed=command.seed,
    )
    sys.stdout.write(f"{command.prompt}{text}\n")
    return OK
