"""Compatibility: clients and models that nobody here wrote, each as published, against a real server process.

What is marked `compat` downloads packages into `build/compat` and takes minutes; `make compat` runs it.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Modules below are imported as `compat.…` and `conformance.…`: folders of tests have no __init__.py.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compat.environments import Downloads
from conformance.process import ServerProcess

REPORT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def downloads(pytestconfig: pytest.Config) -> Downloads:
    """What the tests fetch; kept between runs in `build/compat`."""
    return Downloads(pytestconfig.rootpath / "build" / "compat")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`start(repository, *flags)`: a server that is ready; ended with the test whatever happens."""
    servers: list[ServerProcess] = []

    def started(repository: Path, *flags: str) -> ServerProcess:
        servers.append(ServerProcess(repository, tmp_path / f"server-{len(servers)}.log", *flags))
        return servers[-1].wait_until_ready()

    yield started
    for server in servers:
        server.kill()


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Callable[..., None]:
    """`report(line)`: a line for the end of the run."""
    lines = pytestconfig.stash.setdefault(REPORT, [])
    return lambda *words: lines.append(" ".join(map(str, words)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(REPORT, [])
    if lines:
        terminalreporter.section("compatibility")
        for line in lines:
            terminalreporter.line(line)
