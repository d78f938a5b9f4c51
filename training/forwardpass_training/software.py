"""Which software a run is trained by: the commit of this code, and the versions of what it stands on.

Recorded when training begins, in `metrics.json`, and read from there ever after: an export made from another commit
says the same.
"""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("forwardpass", "torch", "numpy")


def describe() -> dict[str, Any]:
    """For `metrics.json`."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"commit": commit(), "versions": versions}


def commit() -> str | None:
    """The commit of the code, `-dirty` where files differ from it; None where it does not run from its git checkout."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # installed, perhaps below somebody else's checkout
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    """What git answers about the folder of this file; None where there is no git, or it refuses."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
