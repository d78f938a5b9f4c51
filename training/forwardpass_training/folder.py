"""The folder of one run: which files it has, and that each of them is always whole.

config.json      every setting
data.json        provenance of the data: source, counts, hashes
checkpoint.pt    weights, optimiser and history at the end of the last finished epoch
metrics.json     held-out metrics, gates, history, machine
loss.png         curves; classifiers also have confusion.png
report.html      all of it to look at; report.json, card.md and reference_statistics.json are written with it
"""

import glob
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from forwardpass_training.config import RunConfig, from_json, to_json
from forwardpass_training.errors import BadSetting, RunFolderError


@dataclass(frozen=True)
class RunFolder:
    """Paths and JSON files of one run."""

    path: Path

    @classmethod
    def create(cls, runs_dir: Path, config: RunConfig, now: datetime) -> "RunFolder":
        """Make `<runs_dir>/<recipe>-<time>` with its `config.json`; a second run in one second gets `-2`.

        Raises:
            RunFolderError: it cannot be written.
        """
        stem = f"{config.name}-{now:%Y%m%dT%H%M%SZ}"
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            number, path = 1, runs_dir / stem
            while not _made(path):
                number += 1
                path = runs_dir / f"{stem}-{number}"
            folder = cls(path)
            folder.write_json("config.json", to_json(config))
        except OSError as exc:
            raise RunFolderError(
                f"cannot write a run into {runs_dir} ({exc}); name a folder you may write with --runs-dir"
            ) from exc
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run.

        Raises:
            RunFolderError: there is none at `path`.
        """
        if not (path / "config.json").is_file():
            raise RunFolderError(
                f"{path} is not a run folder: it has no config.json; `run` makes one and says its name"
            )
        return cls(path)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def config(self) -> RunConfig:
        """The settings.

        Raises:
            RunFolderError: `config.json` is damaged, or of another version.
        """
        try:
            return from_json(self.read_json("config.json"))
        except BadSetting as exc:
            raise RunFolderError(f"{self.path / 'config.json'}: {exc}") from exc

    def read_json(self, name: str) -> Any:
        """One of the folder's JSON files.

        Raises:
            RunFolderError: missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise RunFolderError(f"{self.path} has no {name}: the run did not finish; resume it") from exc
        except (OSError, ValueError) as exc:
            raise RunFolderError(f"cannot read {self.path / name}: {exc}") from exc

    def write_json(self, name: str, values: Any) -> None:
        """Write one of the folder's JSON files."""
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
        write_whole(self.path / name, lambda file: file.write(text.encode()))


def find_run(run: str, runs_dir: Path, *, finished: bool = True) -> Path:
    """The run folder that a person means: a path, or a recipe's name for its newest run below `runs_dir`.

    Args:
        run: what was typed.
        runs_dir: where to look for a recipe's runs.
        finished: for a name, pass over runs that have no `metrics.json` yet.

    Raises:
        RunFolderError: neither.
    """
    if Path(run).is_dir():
        return Path(run)
    needed = "metrics.json" if finished else "config.json"
    runs = [path.parent for path in runs_dir.glob(f"{glob.escape(run)}-*/{needed}")]
    if not runs:
        kind = "finished run" if finished else "run"
        raise RunFolderError(f"{run!r} is not a run folder, and {runs_dir} has no {kind} of a recipe of that name")
    return max(runs, key=lambda path: (path / "config.json").stat().st_mtime_ns)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file that is never seen half-written: beside it first, flushed to disk, then renamed over it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
