"""The processes of a run: servers on one core, the generator on another, all started, watched and ended here.

Nothing waits in a busy loop and nothing shares a core with what it measures: servers, the in-process ceilings and the
echoes have core 0 and are asked in turn; the generators have core 1. Before other jobs of a shared machine they go
first by a `Priority` (root only).
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVER_CORE, GENERATOR_CORE = "0", "1"
START_TIMEOUT_S = 60
_ADDRESS = re.compile(r"(?:serving\s+address=|port )(?:\S+:)?(\d+)")


class Priority(Enum):
    """How processes stand against other jobs of the machine."""

    NONE = ()
    """As everybody."""
    REALTIME = ("chrt", "-f", "10")
    """Before everybody. Not for what keeps a core busy: Linux gives 50 ms of each second of it away in one piece."""
    GROUP = ("setsid", "sh", "-c", 'echo -20 >/proc/self/autogroup && exec "$@"', "sh")
    """88 times everybody's share of the core, in small pieces: for runs of many milliseconds, and for overload."""


@dataclass(frozen=True)
class Process:
    """A server that listens on `127.0.0.1:port`."""

    popen: subprocess.Popen[bytes]
    port: int
    started_s: float
    """When it was started, in seconds of time.monotonic()."""

    def rss_mib(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
        return int(kib) / 1024


@dataclass(frozen=True)
class Bench:
    """How processes are placed, and where the generators are."""

    loadgen: Path
    priority: Priority = Priority.NONE

    def placed(self, cores: str, command: Sequence[str | Path]) -> list[str]:
        """The command, kept on these cores."""
        return [*self.priority.value, "taskset", "-c", cores, *map(str, command)]

    def for_long_runs(self) -> "Bench":
        """The same for what keeps a core busy."""
        return replace(self, priority=Priority.GROUP) if self.priority is Priority.REALTIME else self

    @contextmanager
    def serving(self, command: Sequence[str | Path], log: Path, cores: str = SERVER_CORE) -> Iterator[Process]:
        """A server that says `serving address=HOST:PORT` or `port PORT`, until the block ends.

        Raises:
            RuntimeError: it ended, or said nothing within START_TIMEOUT_S seconds; with the end of what it said.
        """
        started_s = time.monotonic()
        with log.open("wb") as out:
            popen = subprocess.Popen(
                self.placed(cores, command), stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        try:
            yield Process(popen, self._port(popen, log), started_s)
        finally:
            popen.terminate()
            try:
                popen.wait(10)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()

    def _port(self, popen: subprocess.Popen[bytes], log: Path) -> int:
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until and popen.poll() is None:
            if said := _ADDRESS.search(log.read_text(errors="replace")):
                return int(said[1])
            time.sleep(0.005)
        raise RuntimeError(f"{popen.args!r} does not serve (exit {popen.poll()}):\n{log.read_text()[-2000:]}")

    def forwardpass(self, repository: Path, *flags: str) -> list[str]:
        """The command of our server."""
        fixed = ["--grpc-port=0", "--metrics-port=none", "--model-control-mode=none"]
        return [sys.executable, "-m", "forwardpass_server", f"--model-repository={repository}", *fixed, *flags]

    def echo(self) -> list[str | Path]:
        """The command of the bare C++ echo: one thread, any free port."""
        return [self.loadgen / "echo_server", "0", "1"]

    def aio_echo(self) -> list[str | Path]:
        """The command of the bare grpc.aio echo."""
        return [sys.executable, HERE / "aio_echo.py"]

    def queue_echo(self) -> list[str | Path]:
        """The command of the bare echo on grpcio's completion queue."""
        return [sys.executable, HERE / "queue_echo.py"]

    def closed(self, port: int, model: str, shape: Sequence[int], callers: int, seconds: float) -> dict[str, Any]:
        """Closed loop, one row a request: what `closed_loop` prints. As many channels as callers up to 8."""
        text = ",".join(map(str, (1, *shape)))
        warm_s = min(0.3, seconds / 4)
        figures = [callers, seconds, warm_s, min(callers, 8)]
        found = self._generated(["closed_loop", f"127.0.0.1:{port}", model, text, *map(str, figures)])
        if found["errors"]:
            raise RuntimeError(f"{found['errors']} calls of {model} failed at {callers} callers: {found['message']}")
        return found

    def open(
        self, port: int, model: str, shape: Sequence[int], rate: float, seconds: float, deadline_ms: float
    ) -> dict[str, Any]:
        """Open loop at `rate` requests a second, one row each: what `open_loop` prints."""
        text = ",".join(map(str, (1, *shape)))
        figures = [round(rate, 2), seconds, deadline_ms, 8]
        return self._generated(["open_loop", f"127.0.0.1:{port}", model, text, *map(str, figures)])

    def _generated(self, command: Sequence[str]) -> dict[str, Any]:
        program, *arguments = command
        placed = self.placed(GENERATOR_CORE, [self.loadgen / program, *arguments])
        done = subprocess.run(placed, capture_output=True, text=True, timeout=180)
        if done.returncode:
            raise RuntimeError(f"{' '.join(placed)} failed: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @contextmanager
    def in_process(self, model: Path) -> Iterator["InProcess"]:
        """ONNX Runtime with this model, one thread, on the servers' core; idle while nobody asks."""
        command = self.placed(SERVER_CORE, [sys.executable, HERE / "in_process.py", model])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as popen:
            try:
                yield InProcess(popen)
            finally:
                assert popen.stdin
                popen.stdin.close()


@dataclass(frozen=True)
class InProcess:
    """The ceiling of any server: the model, run in a loop."""

    popen: subprocess.Popen[str]

    def rows_per_s(self, rows: int, seconds: float) -> float:
        """Rows a second in batches of `rows`."""
        assert self.popen.stdin
        assert self.popen.stdout
        self.popen.stdin.write(f"{rows} {seconds}\n")
        self.popen.stdin.flush()
        return float(self.popen.stdout.readline())


def build_generators(out: Path) -> Path:
    """Build the generators and the echo where they are missing or older than their sources; the folder they are in."""
    subprocess.run([HERE / "loadgen" / "build.sh", out], check=True, stdout=sys.stderr)
    return out
