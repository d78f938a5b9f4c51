"""Clients of others, as published, each in an environment of its own, against a Triton repository written by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
from compat import triton_repository
from compat.environments import Downloads, run
from conformance.process import ServerProcess

pytestmark = [pytest.mark.compat, pytest.mark.timeout(1200)]

CALLERS = Path(__file__).parent / "callers"
PROTOS = Path(__file__).parents[2] / "proto"
TOKEN = "an-admin-of-these-tests"

Report = Callable[..., None]


@pytest.fixture
def server(start: Callable[..., ServerProcess], tmp_path: Path) -> ServerProcess:
    repository = triton_repository.write(tmp_path / "repository")
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    everything = ("--model-control-mode=explicit", "--load-model=*", "--enable-shared-memory")
    return start(repository, *everything, "--enable-admin", f"--admin-token-file={tokens}")


def call(python: Path, caller: str, *arguments: str) -> str:
    """Run a caller; fails with what it printed when a check of its failed. Returns its last line."""
    return run([str(python), "-W", "error", str(CALLERS / caller), *arguments]).splitlines()[-1]


@pytest.mark.parametrize("requirement", ["tritonclient[grpc]==2.50.0", "tritonclient[grpc]"], ids=["2.50.0", "newest"])
@pytest.mark.parametrize("caller", ["tritonclient_sync.py", "tritonclient_aio.py"])
def test_tritonclient(
    caller: str, requirement: str, server: ServerProcess, downloads: Downloads, report: Report
) -> None:
    name = "tritonclient-2.50.0" if "==" in requirement else "tritonclient-newest"
    report(f"{name}, {caller}:", call(downloads.environment(name, requirement), caller, server.target, TOKEN))
    server.stop()


def test_kserve(server: ServerProcess, downloads: Downloads, report: Report) -> None:
    report("KServe:", call(downloads.environment("kserve", "kserve"), "kserve_client.py", server.target))
    server.stop()


def test_stubs_made_from_our_proto_files(
    server: ServerProcess, downloads: Downloads, tmp_path: Path, report: Report
) -> None:
    python = downloads.environment("stubs", "grpcio", "grpcio-tools", "numpy")
    generated = tmp_path / "generated"
    generated.mkdir()
    report("fresh stubs:", call(python, "fresh_stubs.py", str(PROTOS), str(generated), server.target, TOKEN))
    server.stop()
