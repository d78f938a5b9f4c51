"""Arguments that several commands share, and how they are read; and what a command's exit code says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

OK, FAILED, MISUSED, MISSED_GATE, STOPPED = 0, 1, 2, 3, 130

RunArgument = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]

Command = TypeVar("Command")


@dataclass(frozen=True, kw_only=True)
class RunsDir:
    """Where runs are kept."""

    runs_dir: Path = Path("runs")
    """Folder of the run folders."""


def parse(command: type[Command], name: str, arguments: Sequence[str], default: Command | None = None) -> Command:
    """A command's arguments; tyro prints help or the mistake, and exits 0 or 2."""
    options = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
    prog = f"forwardpass-train {name}"
    if default is None:
        return tyro.cli(command, prog=prog, args=arguments, config=options)
    return tyro.cli(command, prog=prog, args=arguments, config=options, default=default)
