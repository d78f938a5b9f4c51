"""Several processes behind one port: together they are one server."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

ESTABLISHED = "01"
"""Of a socket, in /proc/net/tcp."""

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def fresh_client(server: Any) -> Any:
    """A client with a connection of its own: grpcio shares one among channels that look alike."""
    client = server.client()
    client.channel.close()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    client.channel = grpc.insecure_channel(address_of(server), options=options)
    return client


def started(server: Any) -> dict[int, int]:
    """Pids by the numbers of the processes, once all serve."""
    server.wait_for("processes serving")
    lines = [line for line in server.lines if line["message"] == "process started"]
    return {line["process"]: line["pid"] for line in lines}


def address_of(server: Any) -> str:
    """Where all of them listen."""
    return str(next(line["address"] for line in server.lines if line["message"] == "processes serving"))


def total(page: str, name: str) -> float:
    """The sum of all samples of that name."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def connections_of(pid: int, port: int) -> int:
    """How many sockets on that port a process has open, the one that listens not counted."""
    mine = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed while we looked
            mine.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    # gRPC takes IPv4 by sockets of IPv6.
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return sum(
        row[1].endswith(f":{port:04X}") and row[3] == ESTABLISHED and f"socket:[{row[9]}]" in mine for row in rows
    )


def gone(pid: int) -> bool:
    """Whether no process has that pid, or only its remains."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def infer_until_answered(client: Any, value: float) -> bool:
    """One call, repeated while the answer is UNAVAILABLE; whether it had to be repeated."""
    rows = np.full((1, 3), value, np.float32)
    for attempt in range(10_000):
        try:
            answer, _ = client.infer("scale", rows)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            continue
        np.testing.assert_array_equal(answer, 2 * rows)
        return attempt > 0
    raise AssertionError("the server did not come back")


@contextmanager
def load(server: Any, call: Callable[[Any, int], bool], callers: int = 8) -> Iterator[list[int]]:
    """Callers with a connection each, in a closed loop; yields how many calls each has had answered."""
    answered = [0] * callers
    leave = threading.Event()
    failed: list[BaseException] = []

    def run(number: int, client: Any) -> None:
        try:
            while not leave.is_set() and call(client, number):
                answered[number] += 1
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each, fresh_client(server))) for each in range(callers)]
    for each in threads:
        each.start()
    try:
        yield answered
    finally:
        leave.set()
        for each in threads:
            each.join(60)
    assert not failed, failed


def test_both_answer_and_the_page_counts_what_all_were_asked(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--processes=2") as server:
        pids = started(server)
        assert sorted(pids) == [0, 1]
        calls = 40
        # Each connection goes to one of the two by the system's choice: 40 all to one has a chance of 2 in 10^12.
        for client in [fresh_client(server) for _ in range(calls)]:
            np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        page = server.metrics()
        assert total(page, "infer_requests_total") == calls
        assert total(page, "infer_request_seconds_count") == calls
        assert total(page, "infer_rows_total") == 2 * calls
        assert total(page, "server_processes") == 2
        assert total(page, "server_process_restarts_total") == 0
        assert 'model_state{model="scale",state="ready",version="1"} 1.0' in page
        port = int(address_of(server).rpartition(":")[2])
        served = {pid: connections_of(pid, port) for pid in pids.values()}
        assert sum(served.values()) == calls
        assert min(served.values()) > 0, f"connections by process: {served}"
        server.terminate()
        assert server.wait() == 0
    assert all(gone(pid) for pid in pids.values())


def test_a_killed_process_is_started_again_and_callers_who_retry_lose_nothing(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--processes=2") as server:
        pids = started(server)
        repeated = [False] * 8

        def call(client: Any, number: int) -> bool:
            repeated[number] |= infer_until_answered(client, number)
            return True

        with load(server, call) as answered:
            while min(answered) < 20:
                pass
            before = total(server.metrics(), "infer_requests_total")
            os.kill(pids[1], signal.SIGKILL)
            ended = server.wait_for("process ended, and is started again")
            assert (ended["process"], ended["pid"], ended["reason"]) == (1, pids[1], "signal SIGKILL")
            assert total(server.metrics(), "infer_requests_total") >= before, "a total fell"
            again = server.wait_for("serving", process=1)
            assert again["address"] == address_of(server)
            so_far = list(answered)
            while any(now < then + 20 for now, then in zip(answered, so_far, strict=True)):
                pass
        page = server.metrics()
        assert (total(page, "server_processes"), total(page, "server_process_restarts_total")) == (2, 1)
        server.terminate()
        assert server.wait() == 0


def test_sigterm_under_load_loses_nothing(serve: Any, publish: Any) -> None:
    """Each call is answered right, or refused as UNAVAILABLE once the stop has begun."""
    publish("scale", 2.0)
    with serve("--processes=2") as server:
        started(server)
        codes: list[grpc.StatusCode] = []

        def call(client: Any, number: int) -> bool:
            rows = np.full((1, 3), number, np.float32)
            try:
                answer, _ = client.infer("scale", rows)
            except grpc.RpcError as error:
                codes.append(error.code())
                return False
            np.testing.assert_array_equal(answer, 2 * rows)
            return True

        with load(server, call) as answered:
            while sum(answered) < 300:
                pass
            server.terminate()
            assert server.wait() == 0
        assert codes == [grpc.StatusCode.UNAVAILABLE] * 8
    assert server.wait_for("processes stopped")["calls_lost"] is False


def test_a_second_signal_ends_all_at_once(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--processes=2", "--drain-s=3600") as server:
        pids = started(server)
        server.terminate()
        server.wait_for("stopping", process=0)
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 128 + signal.SIGINT
    assert all(gone(pid) for pid in pids.values())


def test_processes_leave_when_their_supervisor_is_killed(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--processes=2") as server:
        pids = started(server)
        server.process.kill()
        # Its log ends when the last process that writes to it has left.
        assert server.wait() == -signal.SIGKILL
        assert not server._reader.is_alive()
    assert all(gone(pid) for pid in pids.values())


def test_a_port_in_use_ends_the_start_and_is_named(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--processes=2") as server:
        started(server)
        address = address_of(server)
        # Neither one process nor several join those who have the port.
        for processes in (1, 2):
            with serve(f"--grpc-port={address.rpartition(':')[2]}", f"--processes={processes}") as second:
                assert second.wait() == 1
                assert address in second.wait_for("cannot start")["reason"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with serve("--processes=2", f"--grpc-port={port}") as server:
            assert server.wait() == 1
            assert f"127.0.0.1:{port}" in server.wait_for("cannot start")["reason"]


def test_a_process_that_cannot_start_ends_the_start_of_all(serve: Any, publish: Any) -> None:
    publish("scale", 2.0, recorded=3.0)
    with serve("--processes=2", "--exit-on-error") as server:
        assert server.wait() == 1
        assert "ended with status 1 before all served" in next(
            line["reason"] for line in map(parsed, server.raw) if "before all served" in str(line.get("reason"))
        )


def parsed(line: str) -> dict[str, Any]:
    """A line of the log."""
    return dict(json.loads(line)) if line.startswith("{") else {}


@pytest.mark.parametrize("flag", ["--enable-shared-memory", "--model-control-mode=explicit"])
def test_what_needs_one_process_says_so(serve: Any, flag: str) -> None:
    with serve("--processes=2", flag) as server:
        assert server.wait() == 1
    assert "needs --processes=1, got 2" in "".join(server.raw)
