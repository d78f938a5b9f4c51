"""What a figure depends on and cannot be seen in it: the machine, the Python, the versions, the commit."""

import json
import os
import platform
import re
import subprocess
import sysconfig
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import HERE, ROOT

PACKAGES = ("onnxruntime", "grpcio", "numpy", "protobuf")


def facts() -> dict[str, Any]:
    """All of it, as JSON has it."""
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    built = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": head.stdout.strip() or "not a git checkout",
        "changed_files": _changed_files(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "python_optimized": "--enable-optimizations" in built,
        "packages": {name: version(name) for name in PACKAGES},
    }


def record(result: Mapping[str, Any]) -> Path:
    """Write a result to `results/DATE-MACHINE.json`; the path."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{result['cores']}x-{result['cpu']}".lower()).strip("-")
    path = HERE / "results" / f"{result['date'][:10]}-{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _changed_files() -> int:
    """Files of the server that differ from the commit: not 0 means that these figures are not the commit's alone."""
    shown = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "server", "proto"]
    return len(subprocess.run(shown, capture_output=True, text=True).stdout.splitlines())


def _cpu() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()
