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

from forwardpass_proto import grpc_service_pb2 as pb

TOKEN = "admin-token-0123456789"

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


@pytest.fixture
def by_order(tmp_path: Path) -> tuple[str, ...]:
    """Flags of two processes that load what admins order, and nothing by themselves."""
    (tmp_path / "tokens").write_text(TOKEN)
    admin = ("--enable-admin", f"--admin-token-file={tmp_path / 'tokens'}")
    return ("--processes=2", "--model-control-mode=explicit", *admin)


def ask(client: Any, rpc: str, request: Any, response: Any) -> Any:
    """An admin's call, in the background."""
    unary = client.channel.unary_unary(
        f"/inference.GRPCInferenceService/{rpc}", lambda message: message.SerializeToString(), response.FromString
    )
    return unary.future(request, timeout=60, metadata=(("authorization", f"Bearer {TOKEN}"),))


def order_load(client: Any, model: str, **config: Any) -> Any:
    request = pb.RepositoryModelLoadRequest(model_name=model)
    if config:
        request.parameters["config"].string_param = json.dumps(config)
    return ask(client, "RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)


def order_unload(client: Any, model: str) -> Any:
    request = pb.RepositoryModelUnloadRequest(model_name=model)
    return ask(client, "RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse)


def index(client: Any) -> dict[str, tuple[str, str]]:
    """State and reason by model."""
    answer = ask(client, "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse).result()
    return {row.name: (row.state, row.reason) for row in answer.models}


def batch_size(client: Any, model: str) -> int:
    request = pb.ModelConfigRequest(name=model)
    return int(ask(client, "ModelConfig", request, pb.ModelConfigResponse).result().config.max_batch_size)


def client_of(server: Any, pid: int) -> Any:
    """A client whose connection that process has."""
    port = int(address_of(server).rpartition(":")[2])
    before = connections_of(pid, port)
    # The system chooses: a hundred tries that all go elsewhere have a chance of 1 in 10^30.
    for _ in range(100):
        client = fresh_client(server)
        grpc.channel_ready_future(client.channel).result(60)
        if connections_of(pid, port) > before:
            return client
    raise AssertionError(f"no connection came to process {pid}")


def test_what_admins_order_is_so_in_every_process_and_in_one_that_begins_anew(
    serve: Any, publish: Any, by_order: tuple[str, ...]
) -> None:
    for model in ("scale", "other", "gone"):
        publish(model, 2.0)
    with serve(*by_order, "--load-model=gone") as server:
        pids = started(server)
        first, second = client_of(server, pids[0]), client_of(server, pids[1])
        assert {name: state for name, (state, _) in index(first).items()} == {
            "gone": "READY",
            "other": "UNAVAILABLE",
            "scale": "UNAVAILABLE",
        }
        order_load(first, "scale", max_batch_size=3).result()
        order_unload(second, "gone").result()
        # Several callers at once, of either process: whatever comes of it comes of it in both.
        orders = []
        for each in range(6):
            orders += [order_load(first, "other", max_batch_size=each + 1), order_unload(second, "other")]
        for each in orders:
            each.exception(60)  # an unload of what is not loaded is refused
        order_load(second, "other").exception(60)
        assert {batch_size(client, "scale") for client in (first, second)} == {3}
        assert batch_size(first, "other") == batch_size(second, "other")
        for client in (first, second):
            np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
            assert client.code("gone")[0] is grpc.StatusCode.NOT_FOUND
            assert index(client)["scale"] == index(client)["other"] == ("READY", "")
        quiet = pb.LogSettingsRequest()
        quiet.settings["log_warning"].bool_param = False
        ask(first, "LogSettings", quiet, pb.LogSettingsResponse).result()

        os.kill(pids[1], signal.SIGKILL)
        pid = server.wait_for("process started", process=1)["pid"]
        server.wait_for("serving", process=1)
        again = client_of(server, pid)
        np.testing.assert_array_equal(again.infer("scale", X)[0], 2 * X)
        assert batch_size(again, "scale") == 3
        assert again.code("gone")[0] is grpc.StatusCode.NOT_FOUND
        assert index(again)["scale"] == index(first)["other"] == ("READY", "")
        settings = ask(again, "LogSettings", pb.LogSettingsRequest(), pb.LogSettingsResponse).result().settings
        assert not settings["log_warning"].bool_param
        # An order that can be obeyed by none is answered as one process answers it.
        refused = order_load(again, "unheard-of").exception(60)
        assert (refused.code(), "process" in refused.details()) == (grpc.StatusCode.NOT_FOUND, False)
        server.terminate()
        assert server.wait() == 0


def test_statistics_are_sums_and_equal_the_page(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--processes=2") as server:
        pids = started(server)
        clients = [client_of(server, pid) for pid in pids.values()]
        for rows, client in ((1, clients[0]), (2, clients[1]), (2, clients[0]), (4, clients[1])):
            client.infer("scale", np.ones((rows, 3), np.float32))
        clients[0].code("scale", "9")
        request = pb.ModelStatisticsRequest(name="scale")
        told = [ask(each, "ModelStatistics", request, pb.ModelStatisticsResponse).result() for each in clients]
        assert told[0] == told[1]
        (account,) = told[0].model_stats
        page = server.metrics()
        assert account.inference_count == 9 == total(page, "infer_rows_total")
        assert account.execution_count == 4 == total(page, "infer_batches_total")
        stages = account.inference_stats
        assert stages.success.count == 4 == total(page, "infer_request_seconds_count")
        assert stages.queue.ns / 1e9 == pytest.approx(total(page, "infer_queue_seconds_sum"))
        assert stages.compute_infer.ns / 1e9 == pytest.approx(total(page, "infer_compute_seconds_sum"))
        assert stages.success.ns / 1e9 == pytest.approx(total(page, "infer_request_seconds_sum"))
        sizes = {each.batch_size: each.compute_infer.count for each in account.batch_stats}
        assert sizes == {1: 1, 2: 2, 4: 1}


def test_a_process_that_hangs_is_killed_and_replaced_and_an_order_to_it_is_not_lost(
    serve: Any, publish: Any, by_order: tuple[str, ...]
) -> None:
    publish("scale", 2.0)
    with serve(*by_order, "--process-silence-s=8") as server:
        pids = started(server)
        first = client_of(server, pids[0])
        os.kill(pids[1], signal.SIGSTOP)
        ordered = order_load(first, "scale")
        hung = server.wait_for("process hangs, and is killed")
        assert (hung["process"], hung["pid"]) == (1, pids[1])
        ordered.result()
        pid = server.wait_for("process started", process=1)["pid"]
        server.wait_for("serving", process=1)
        np.testing.assert_array_equal(client_of(server, pid).infer("scale", X)[0], 2 * X)
        page = server.metrics()
        assert total(page, "server_process_hangs_total") == total(page, "server_process_restarts_total") == 1
        server.terminate()
        assert server.wait() == 0, "".join(server.raw)


def test_sighup_goes_to_all_and_revokes_tokens_at_once(serve: Any, by_order: tuple[str, ...], tmp_path: Path) -> None:
    with serve(*by_order) as server:
        pids = started(server)
        clients = [client_of(server, pid) for pid in pids.values()]
        (tmp_path / "tokens").write_text("another-token-0123456789")
        server.process.send_signal(signal.SIGHUP)
        for _ in pids:
            assert server.wait_for("token file read")["tokens"] == 1
        for client in clients:
            assert order_load(client, "scale").exception(60).code() is grpc.StatusCode.UNAUTHENTICATED
        server.terminate()
        assert server.wait() == 0


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


def test_what_needs_one_process_says_so(serve: Any) -> None:
    with serve("--processes=2", "--enable-shared-memory") as server:
        assert server.wait() == 1
    assert "needs --processes=1, got 2" in "".join(server.raw)
