"""Work in a child process: what crashes takes only the child with it, and the crash gets its name.

`in_child` is for the parent; `python -m forwardpass_training.child MODULE FUNCTION RESULT` is the child.
"""

import importlib
import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forwardpass_training.errors import ChildFailed

_STAGE = "stage: "

Work = Callable[[dict[str, Any]], dict[str, Any]]


def in_child(work: Work, job: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Call a function of ours in a process of its own. Blocks.

    Args:
        work: a function at the top of a module; both its job and its result have a JSON form.
        job: its argument.
        timeout_s: how long it may take, its start included.

    Raises:
        ChildFailed: it crashed (with the signal's name), raised (with the last line), or took too long; and where.
    """
    with tempfile.TemporaryDirectory(prefix="forwardpass-") as folder:
        result = Path(folder) / "result.json"
        # -P: whatever lies in the current folder is not to be imported in place of the real thing
        command = [sys.executable, "-P", "-m", __name__, work.__module__, work.__name__, str(result), str(timeout_s)]
        try:
            child = subprocess.run(
                command, input=json.dumps(job), capture_output=True, timeout=timeout_s, text=True, errors="replace"
            )
        except subprocess.TimeoutExpired as exc:
            said = exc.stdout.decode(errors="replace") if isinstance(exc.stdout, bytes) else exc.stdout or ""
            raise ChildFailed(f"not done within {timeout_s:g} s{_where(said)}") from exc
        if child.returncode < 0:
            raise ChildFailed(f"crashed ({signal.Signals(-child.returncode).name}){_where(child.stdout)}")
        if child.returncode != 0:
            lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"it ended with status {child.returncode}"
            raise ChildFailed(f"failed{_where(child.stdout)}: {reason[:500]}")
        answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return answer


def stage(doing: str) -> None:
    """Called by the work: what it is about to do, so that a crash can be placed."""
    sys.stdout.write(f"{_STAGE}{doing}\n")
    sys.stdout.flush()


def _where(said: str) -> str:
    stages = [line.removeprefix(_STAGE) for line in said.splitlines() if line.startswith(_STAGE)]
    return f" while {stages[-1]}" if stages else ""


def _main(module: str, function: str, result: str, timeout_s: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, float(timeout_s))  # should the parent die, do not outlive it for long
    work: Work = getattr(importlib.import_module(module), function)
    Path(result).write_text(json.dumps(work(json.load(sys.stdin)), allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
