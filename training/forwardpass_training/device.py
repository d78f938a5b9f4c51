"""Where a run computes: the device, the number of threads, and what to write down about the machine."""

import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch

from forwardpass_training.errors import BadSetting

DeviceName = Literal["auto", "cpu", "cuda"]


def choose(name: DeviceName) -> torch.device:
    """`auto`: CUDA where torch sees a GPU, else the CPU.

    Raises:
        BadSetting: `cuda` was asked for and torch sees none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise BadSetting(
            "--device cuda: torch sees no CUDA GPU here; use --device cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


SMALL_STEP = 100_000_000
"""Weights times rows of a step, below which one thread trains it."""


def sensible_threads(parameters: int, rows: int) -> int:
    """Threads for training on the CPU, where nobody says: one for small steps, else one a core.

    A small step is over before a second thread has begun, and where other work keeps the cores busy, each of its
    operators waits for that thread to get its turn: on two busy cores `mlp_classifier` (4e3) took 20 times as long with
    two threads as with one. The figures are in `training/README.md`.
    """
    return 1 if parameters * rows < SMALL_STEP else os.cpu_count() or 1


def make_repeatable(threads: int) -> None:
    """Settings of the whole process under which equal seeds give equal weights.

    Args:
        threads: of torch on the CPU. Sums split over another number of threads round differently, so weights are
            equal only at equal numbers.
    """
    if threads < 1:
        raise BadSetting(f"threads is {threads}; it must be at least 1")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware and versions, for `metrics.json`."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The CPU's name; Linux tells it only in /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
