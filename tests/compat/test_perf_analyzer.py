"""perf_analyzer, the load generator that Triton's users have, measures this server as it would measure Triton."""

import ctypes.util
import os
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from compat import triton_repository
from compat.environments import Downloads, run
from conformance.process import ServerProcess

pytestmark = [pytest.mark.compat, pytest.mark.timeout(1200)]

# Windows this short do not settle on a busy machine, and how fast it is is no business of this test.
SHORT = ("--measurement-interval", "500", "--stability-percentage", "999", "--max-trials", "3")

RUNS = {
    "unary": ("-m", "halved"),
    "unary, batches, many at once": ("-m", "halved", "-b", "4", "--async", "--concurrency-range", "8"),
    "streaming": ("-m", "halved", "--streaming", "--concurrency-range", "4"),
    "system shared memory": ("-m", "halved", "--shared-memory", "system"),
    # Few a second: perf_analyzer warns when it, not the server, falls behind on a busy machine.
    "request rates": ("-m", "halved", "--async", "--request-rate-range", "20:60:20"),
    "an ensemble": ("-m", "graded"),
    "an ensemble, streaming": ("-m", "graded", "--streaming"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("perf_analyzer")
    repository = triton_repository.write(folder / "repository")
    with ServerProcess(repository, folder / "log", "--enable-shared-memory") as server:
        yield server.wait_until_ready()
        server.stop()


@pytest.fixture(scope="module")
def perf_analyzer(downloads: Downloads) -> tuple[list[str], dict[str, str]]:
    """The command, and the environment in which it finds the two libraries that it wants."""
    binary = downloads.unpacked("tritonclient==2.50.0") / "tritonclient-2.50.0.data/data/bin/perf_analyzer"
    binary.chmod(0o755)
    libraries = [downloads.unpacked("nvidia-cuda-runtime-cu12") / "nvidia/cuda_runtime/lib"]
    if ctypes.util.find_library("b64") is None:
        if shutil.which("apt-get") is None or os.uname().machine != "x86_64":
            pytest.skip("perf_analyzer is for x86 and needs the library libb64, here only had from Debian")
        libraries.append(downloads.debian("libb64-0d") / "usr/lib/x86_64-linux-gnu")
    return [str(binary)], {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}


@pytest.mark.parametrize("what", RUNS)
def test_perf_analyzer(
    what: str, server: ServerProcess, perf_analyzer: tuple[list[str], dict[str, str]], report: Callable[..., None]
) -> None:
    command, environment = perf_analyzer
    told = run(
        [*command, "-i", "grpc", "-u", server.target, *SHORT, *RUNS[what]], environment=environment, timeout_s=180
    )
    assert not re.search("warn|fail|error|unable", told, re.IGNORECASE), told
    client, of_server = numbers(told, "Request count"), numbers(told, "Inference count")
    assert client, told
    assert len(of_server) >= len(client), f"no server-side statistics:\n{told}"
    assert all(count > 0 for count in (*client, *of_server)), told
    throughput = re.findall(r"throughput: ([\d.]+) infer/sec, latency (\d+) usec", told)
    report(f"perf_analyzer, {what}:", "; ".join(f"{float(rate):.0f} infer/s, {delay} µs" for rate, delay in throughput))


def numbers(told: str, what: str) -> list[int]:
    return [int(count) for count in re.findall(rf"{what}: (\d+)", told)]
