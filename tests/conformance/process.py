"""A real server process: started on a repository, asked, measured from outside, stopped by its own pid.

What must hold after any case, whatever was done to the server, is `ServerProcess.assert_unharmed`.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from conformance.wire import CHECK, WATCH, Caller, Outcome, ask, ok, tensor

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

# For a machine that has other things to do: a test waits for the fact, and these end it when there is none.
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 30.0
MEMORY_TIMEOUT_S = 40.0
# gRPC's core gives a connection 120 s for its handshake; seen once, on a busy machine, after many that hung up in the
# middle of it: one descriptor more than before for 30 s.
DESCRIPTORS_TIMEOUT_S = 130.0
ORDINARY_ROUNDS = 40

IN_FLIGHT = "infer_inflight"
QUEUED = "infer_queue_depth"
QUEUED_BYTES = "infer_queue_bytes"

REQUESTS, RUNS, ROWS = "infer_requests_total", "infer_batches_total", "infer_rows_total"

MIB = 1 << 20


def wait_until(
    condition: Callable[[], bool],
    what: str,
    found: Callable[[], object] = lambda: "",
    *,
    timeout_s: float = SETTLE_TIMEOUT_S,
) -> None:
    """Poll a condition that only the outside of another process can show.

    Raises:
        AssertionError: it did not come true in time; says `what`, and what was `found` instead.
    """
    give_up = time.monotonic() + timeout_s
    pause_s = 0.001
    while not condition():
        assert time.monotonic() < give_up, f"not so after {timeout_s:g} s: {what}; found {found()}"
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class ServerProcess:
    """`python -m forwardpass_server` on a repository, on free ports of 127.0.0.1.

    Args:
        repository: the model repository.
        log: file that its standard output and error go to.
        flags: further flags.
    """

    def __init__(self, repository: Path, log: Path, *flags: str) -> None:
        self.grpc_port, self.metrics_port = free_ports(2)
        self.target = f"127.0.0.1:{self.grpc_port}"
        self.log = log
        command = [
            *(sys.executable, "-c", LAUNCH),
            *("--model-repository", str(repository), "--host", "127.0.0.1"),
            *("--grpc-port", str(self.grpc_port), "--metrics-port", str(self.metrics_port)),
            *flags,
        ]
        # The thread pools of numerical libraries would only fight over the few cores of a test machine.
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.pid = self._process.pid
        self._caller: Caller | None = None
        self._ordinary_bytes = 0
        self._bytes_before = 0
        self._descriptors_before = 0

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # ------------------------------------------------------------------------------------------------ life and death

    @property
    def caller(self) -> Caller:
        """A channel of the harness's own; what it sees is not in the table."""
        if self._caller is None:
            self._caller = Caller(self.target)
        return self._caller

    def wait_until_ready(self) -> "ServerProcess":
        """Wait until Health/Watch says SERVING.

        Raises:
            AssertionError: the process ended, or the time did; with the end of its log.
        """
        give_up = time.monotonic() + START_TIMEOUT_S
        watch = self.caller.channel.unary_stream(WATCH)
        while time.monotonic() < give_up:
            assert self._process.poll() is None, f"the server ended with {self._process.returncode}:\n{self.log_tail()}"
            updates = watch(b"", timeout=1.0, wait_for_ready=True)
            try:
                for update in updates:
                    if (
                        health_pb2.HealthCheckResponse.FromString(update).status
                        == health_pb2.HealthCheckResponse.SERVING
                    ):
                        updates.cancel()
                        return self
            except grpc.RpcError as exc:
                if exc.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise AssertionError(f"{exc}\n{self.log_tail()}") from exc
        raise AssertionError(f"not SERVING within {START_TIMEOUT_S:g} s:\n{self.log_tail()}")

    def signal(self, number: int) -> None:
        """Send a signal to this process, and to no other."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.signal(signal.SIGTERM)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the process to end. Returns its exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {timeout_s:g} s later:\n{self.log_tail()}") from None

    def stop(self) -> None:
        """Stop as an operator does, and assert that it went well: exit code 0, no traceback in the log."""
        self._close()
        self.terminate()
        code = self.wait()
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.log_tail()}"
        self.assert_clean_log()

    def kill(self) -> None:
        """End it whatever its state. For clean-up only."""
        self._close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        if self._caller is not None:
            self._caller.channel.close()
            self._caller = None

    # ------------------------------------------------------------------------------------------------ seen from outside

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-30:])

    def assert_clean_log(self) -> None:
        """No traceback: whatever callers did was foreseen."""
        text = self.log_text()
        at = text.find("Traceback (most recent call last)")
        assert at < 0, f"a traceback in the server's log:\n{text[max(0, at - 500) : at + 3000]}"

    def page(self) -> "Page":
        """The metrics page, read once."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            return Page(answer.read().decode())

    def total(self, name: str, **labels: str) -> float:
        """As `Page.total`, of a page read now."""
        return self.page().total(name, **labels)

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """Resident memory now, or with "VmHWM" the most there ever was."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))

    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # ------------------------------------------------------------------------------------------------- post-conditions

    def valid_request(self) -> Outcome:
        """A request that must succeed at any time."""
        return self.caller.infer(ask("identity_fp32", tensor("x", VALID)))

    def take_baseline(self) -> None:
        """Remember how much memory and how many descriptors ordinary work takes; once, after a warm-up."""
        for _ in range(ORDINARY_ROUNDS):
            self.assert_answering()
            self.wait_until_idle()
            self._ordinary_bytes = max(self._ordinary_bytes, self.memory_bytes())
        self.begin_case()

    def begin_case(self) -> None:
        """Remember how it is now, for `assert_unharmed`."""
        self._bytes_before = max(self._ordinary_bytes, self.memory_bytes())
        self._descriptors_before = self.descriptors()

    def assert_answering(self) -> None:
        """Live, ready, healthy, and the next valid request is answered right."""
        live = self.caller.call("ServerLive")
        assert live.ok, f"ServerLive: {live}"
        assert pb.ServerLiveResponse.FromString(live.body or b"").live, "ServerLive says no"
        health = self.caller.call(CHECK)
        assert health.ok, f"Health/Check: {health}"
        answer = ok(self.valid_request())["y"]
        assert answer.raw == VALID.tobytes(), "the next valid request was answered wrong"

    def assert_unharmed(self) -> None:
        """The universal post-condition: answering; in flight 0, queued 0; memory within 5 %, descriptors back."""
        assert self._process.poll() is None, f"the server ended with {self._process.returncode}:\n{self.log_tail()}"
        self.assert_answering()
        self.wait_until_idle()
        wait_until(
            lambda: self.descriptors() <= self._descriptors_before,
            f"descriptors back at {self._descriptors_before}",
            self.descriptors,
            timeout_s=DESCRIPTORS_TIMEOUT_S,
        )
        # Within 5 % of before this case; and no series of cases adds up to a leak.
        allowed = int(min(self._bytes_before * 1.05, self._ordinary_bytes * 1.25))
        wait_until(
            lambda: self.memory_bytes() <= allowed,
            f"memory at most {allowed / MIB:.1f} MiB, where it was {self._bytes_before / MIB:.1f}",
            lambda: f"{self.memory_bytes() / MIB:.1f} MiB",
            timeout_s=MEMORY_TIMEOUT_S,
        )

    def wait_until_idle(self) -> None:
        """Wait until nothing is in flight, nothing is queued, and every call that began has ended once."""
        busy: dict[str, float] = {}

        def idle() -> bool:
            nonlocal busy
            busy = self.page().busy()
            return not busy

        wait_until(idle, "idle", lambda: busy)


class Page:
    """The Prometheus page of one moment. Read line by line: a full parser costs a hundred times as much."""

    _LINE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
    _LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

    def __init__(self, text: str) -> None:
        self.lines = [line for line in text.splitlines() if not line.startswith("#")]

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each sample of this name.

        Raises:
            AssertionError: there is none at all.
        """
        found = [
            (dict(self._LABEL.findall(match["labels"] or "")), float(match["value"]))
            for line in self.lines
            if line.startswith(name) and (match := self._LINE.fullmatch(line)) and match["name"] == name
        ]
        assert found, f"no {name} on the metrics page; it has {sorted({line.partition('{')[0] for line in self.lines})}"
        return found

    def total(self, name: str, **labels: str) -> float:
        """The sum of every sample of this name that has these labels."""
        return sum(value for has, value in self.samples(name) if labels.items() <= has.items())

    def busy(self) -> dict[str, float]:
        """What is not 0 and should be when nobody asks: gauges, and calls by method that began and did not end once."""
        busy = {gauge: self.total(gauge) for gauge in (IN_FLIGHT, QUEUED, QUEUED_BYTES)}
        for name, sign in (("grpc_server_started_total", 1), ("grpc_server_handled_total", -1)):
            for labels, value in self.samples(name):
                method = labels["grpc_method"]
                busy[method] = busy.get(method, 0) + sign * value
        return {what: value for what, value in busy.items() if value}


# `python -m forwardpass_server`, ended by the kernel (PR_SET_PDEATHSIG) when the tests are killed and cannot do it.
LAUNCH = """
import ctypes, runpy
ctypes.CDLL(None).prctl(1, 9)
runpy.run_module("forwardpass_server", run_name="__main__", alter_sys=True)
"""
VALID = np.array([[1.5, -0.0, np.inf, 1e-45]], np.float32)


def run_to_its_end(*flags: str, timeout_s: float = START_TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
    """Run the server where it is expected to refuse to start."""
    return subprocess.run(
        [sys.executable, "-m", "forwardpass_server", *flags],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        check=False,
    )


Start = Callable[..., ServerProcess]
"""The fixture `start`: `start(repository, "--flag", "value")` gives a server that is ready."""
