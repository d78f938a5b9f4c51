"""What a person sees while a run goes on: a bar on a terminal, plain lines in a log, or nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from forwardpass_training.data.download import OnProgress

LINES_A_RUN = 20


class Reporter:
    """Writes to stderr, so that stdout stays for results. Used from one thread."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def line(self, text: str) -> None:
        """One line, above a bar where there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[Callable[[str], None]]:
        """A bar over `total` steps, of which `done` are done; call what it gives once a step, with a note."""
        with self._bar(MofNCompleteColumn()) as progress:
            task = progress.add_task("", total=total, completed=done)
            yield lambda note: progress.update(task, advance=1, description=note)

    @contextmanager
    def download(self, title: str) -> Iterator[OnProgress]:
        """A bar over bytes; also said as a line, since a log should show that the network was used."""
        self.line(title)
        with self._bar(DownloadColumn()) as progress:
            task = progress.add_task("", total=None)
            yield lambda got_bytes, size_bytes: progress.update(task, completed=got_bytes, total=size_bytes)

    def _bar(self, amount: ProgressColumn) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)


def is_told(epoch: int, epochs: int) -> bool:
    """Whether this epoch (counted from 1) gets a line: all of a few, evenly chosen ones of many, always the last."""
    return epoch == epochs or epoch % max(1, epochs // LINES_A_RUN) == 0
