"""The fixture that starts servers."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# `served` is imported by its name: folders of tests have no __init__.py.
sys.path.insert(0, str(Path(__file__).parent))

from served import Served


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers; each is stopped at the end, and must then have answered everything."""
    started: list[Served] = []

    def start(*args: Any, **kwargs: Any) -> Served:
        served = Served(*args, **kwargs)
        started.append(served)
        return served

    yield start
    for served in started:
        served.__exit__(None, None, None)
