"""Stopping under load, and starts that must fail: cases 38 and 39, and the 'add' line of the list."""

import json
import signal
import socket
import threading
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from conformance import models
from conformance.process import IN_FLIGHT, VALID, ServerProcess, Start, free_ports, run_to_its_end, wait_until
from conformance.wire import CHECK, WATCH, Caller, Outcome, Pending, ask, ok, refused, tensor, trips
from onnx import TensorProto, helper

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

A_WHILE = 150_000
"""Turns of the slow models' loop: about a third of a second of work."""

X = np.zeros((1, 64), np.float32)
REQUEST = ask("identity_fp32", tensor("x", VALID))

case_39 = pytest.mark.case("39", "SIGTERM with queued requests", "all succeed; new ones refused or moved; exit 0")


def busy(server: ServerProcess, caller: Caller, count: int) -> list[Pending]:
    """Begin `count` slow requests, and wait until all of them are inside the server."""
    pending = [caller.begin(ask("slow", trips(A_WHILE + number)), timeout_s=60.0) for number in range(count)]
    wait_until(lambda: server.total(IN_FLIGHT) == count, f"{count} requests in flight")
    return pending


def answered_right(pending: list[Pending]) -> None:
    for number, each in enumerate(pending):
        assert ok(each.outcome())["y"].array.tolist() == [[A_WHILE + number]]


@case_39
@pytest.mark.parametrize("rows", ["1", "8", "64"], ids="rows of a run: {}".format)
def test_64_requests_in_flight_are_all_answered_after_sigterm(
    small_repository: Path, start: Start, remember: object, rows: str
) -> None:
    server = start(small_repository, "--max-batch-size", rows)
    with Caller(server.target, remember) as caller:  # type: ignore[arg-type]
        # One that takes long enough for the others to come in behind it.
        turns = [4 * A_WHILE, *range(1000, 1063)]
        pending = [caller.begin(ask("slow", trips(turns[0])), timeout_s=60.0)]
        wait_until(lambda: server.total(IN_FLIGHT) == 1, "the first is in flight")
        pending += [caller.begin(ask("slow", trips(each)), timeout_s=60.0) for each in turns[1:]]
        wait_until(lambda: server.total(IN_FLIGHT) == 64, "64 requests in flight")
        server.terminate()
        assert [ok(each.outcome())["y"].array.tolist() for each in pending] == [[[each]] for each in turns]
    assert server.wait() == 0
    server.assert_clean_log()


@case_39
def test_a_call_made_after_sigterm_is_unavailable_and_not_cancelled(small_repository: Path, start: Start) -> None:
    server = start(small_repository, "--max-batch-size", "1")
    with Caller(server.target) as caller:
        pending = busy(server, caller, 4)
        server.terminate()
        late: list[Outcome] = []
        while not any(each.code is grpc.StatusCode.UNAVAILABLE for each in late):
            late.append(caller.infer(REQUEST))
            assert late[-1].code in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, late[-1]
        answered_right(pending)
    assert server.wait() == 0
    server.assert_clean_log()


@case_39
def test_closed_loop_callers_see_only_ok_and_unavailable_around_a_stop(
    small_repository: Path, start: Start, remember: object
) -> None:
    server = start(small_repository)
    codes: Counter[grpc.StatusCode] = Counter()
    going = threading.Semaphore(0)
    body = REQUEST.SerializeToString()

    def call_until_refused() -> None:
        with Caller(server.target) as caller:
            while True:
                code = caller.call("ModelInfer", body).code
                codes[code] += 1
                going.release()
                if code is not grpc.StatusCode.OK:
                    return

    threads = [threading.Thread(target=call_until_refused) for _ in range(16)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        going.acquire()
    server.terminate()
    for thread in threads:
        thread.join()
    assert server.wait() == 0
    assert codes[grpc.StatusCode.UNAVAILABLE] == 16, codes
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, codes
    server.assert_clean_log()


# What a client needs to leave a server that is going away: its health, and another address (recipe b of the facts).
FOLLOW_HEALTH = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})


@case_39
def test_no_call_fails_while_one_of_two_servers_goes_away(small_repository: Path, start: Start) -> None:
    leaving, staying = start(small_repository, "--drain-s", "2"), start(small_repository)
    target = f"ipv4:{leaving.target},{staying.target}"
    outcomes: list[Outcome] = []
    stop, going = threading.Event(), threading.Semaphore(0)
    body = REQUEST.SerializeToString()

    def call_all_the_time() -> None:
        with Caller(target, outcomes.append, [("grpc.service_config", FOLLOW_HEALTH)]) as caller:
            while not stop.is_set():
                caller.call("ModelInfer", body, wait_for_ready=True)
                going.release()

    threads = [threading.Thread(target=call_all_the_time) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        going.acquire()
    leaving.terminate()
    assert leaving.wait() == 0
    for _ in range(200):
        going.acquire()
    stop.set()
    for thread in threads:
        thread.join()
    failed = [str(each) for each in outcomes if not each.ok]
    assert not failed, f"{len(failed)} of {len(outcomes)} calls failed: {failed[:3]}"
    leaving.assert_clean_log()
    staying.stop()


@case_39
def test_health_says_not_serving_while_calls_are_still_served(small_repository: Path, start: Start) -> None:
    server = start(small_repository, "--drain-s", "1")
    with Caller(server.target) as caller:
        updates = caller.channel.unary_stream(WATCH)(b"", timeout=30)
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert health_pb2.HealthCheckResponse.FromString(next(updates)).status == serving
        server.terminate()
        assert health_pb2.HealthCheckResponse.FromString(next(updates)).status == not_serving
        ok(caller.infer(REQUEST))
        check = caller.call(CHECK)
        assert health_pb2.HealthCheckResponse.FromString(check.body or b"").status == not_serving
    assert server.wait() == 0
    server.assert_clean_log()


case_38 = pytest.mark.case("38", "stop while loading; with idle connections; twice", "exits in time, exit 0")


@case_38
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stop_with_idle_connections_and_watchers_is_quick(small_repository: Path, start: Start, how: int) -> None:
    server = start(small_repository)
    with Caller(server.target) as idle, socket.create_connection(("127.0.0.1", server.grpc_port)):
        assert next(idle.channel.unary_stream(WATCH)(b""))
        ok(idle.infer(REQUEST))
        server.signal(how)
        assert server.wait(timeout_s=10) == 0
    server.assert_clean_log()


@case_38
def test_a_second_sigterm_ends_a_long_drain_at_once(small_repository: Path, start: Start) -> None:
    server = start(small_repository, "--drain-s", "600")
    updates = server.caller.channel.unary_stream(WATCH)(b"", timeout=30)
    next(updates)
    server.terminate()
    next(updates)
    server.terminate()
    server.wait(timeout_s=10)


@case_38
def test_sigterm_while_the_models_load_stops_the_server(repository: Path, tmp_path: Path) -> None:
    with ServerProcess(repository, tmp_path / "server.log") as server:
        wait_until(lambda: server.log_text() != "", "the first line of its log", timeout_s=30)
        server.terminate()
        assert server.wait() == 0
        server.assert_clean_log()


@case_38
def test_sigterm_while_a_model_is_being_unloaded_stops_the_server(
    small_repository: Path, start: Start, tmp_path: Path
) -> None:
    token = "admin-token-0123456789"
    (tmp_path / "admins").write_text(token)
    server = start(
        small_repository,
        *("--model-control-mode=explicit", "--load-model=*"),
        *("--enable-admin", f"--admin-token-file={tmp_path / 'admins'}"),
    )
    with Caller(server.target) as caller:
        working = busy(server, caller, 2)
        unload = caller.start(
            "RepositoryModelUnload",
            pb.RepositoryModelUnloadRequest(model_name="slow").SerializeToString(),
            metadata=[("authorization", f"Bearer {token}")],
            timeout_s=60.0,
        )
        wait_until(lambda: "draining" in server.log_text(), "the unload has begun")
        server.terminate()
        answered_right(working)
        assert unload.outcome().code in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert server.wait() == 0
    server.assert_clean_log()


@case_38
def test_a_request_that_outlives_the_grace_does_not_hold_the_exit(small_repository: Path, start: Start) -> None:
    server = start(small_repository, "--grace-s", "0.5", "--max-batch-size", "1")
    with Caller(server.target) as caller:
        pending = [caller.begin(ask("slow", trips(400_000)), timeout_s=60.0) for _ in range(40)]
        wait_until(lambda: server.total(IN_FLIGHT) == 40, "40 requests in flight")
        server.terminate()
        # One by one they would take half a minute; those that wait must not be waited for.
        server.wait(timeout_s=10)
        codes = {each.outcome().code for each in pending}
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, codes


case_port = pytest.mark.case("add", "port already bound", "exit ≠ 0, the port in the message")


@case_port
@pytest.mark.parametrize("which", ["--grpc-port", "--metrics-port"])
@pytest.mark.parametrize("listening", [True, False], ids=["listening", "bound"])
def test_a_port_that_is_taken_stops_the_start_and_is_named(small_repository: Path, which: str, listening: bool) -> None:
    free = {"--grpc-port": free_ports(1)[0], "--metrics-port": free_ports(1)[0]}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listening:
            taken.listen()
        port = taken.getsockname()[1]
        flags = [text for flag, number in (free | {which: port}).items() for text in (flag, str(number))]
        run = run_to_its_end("--model-repository", str(small_repository), "--host", "127.0.0.1", *flags)
    assert run.returncode != 0
    assert str(port) in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


@case_port
def test_a_second_server_never_shares_the_port_of_the_first(small_repository: Path, start: Start) -> None:
    first = start(small_repository)
    run = run_to_its_end(
        *("--model-repository", str(small_repository), "--grpc-port", str(first.grpc_port), "--metrics-port", "0")
    )
    assert run.returncode != 0
    assert str(first.grpc_port) in run.stdout + run.stderr
    first.take_baseline()
    first.assert_unharmed()
    first.stop()


@case_port
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-repository", "/nowhere/at/all"], ["/nowhere/at/all"]),
        ([], ["--model-repository"]),
        (["--model-repository", ".", "--grpc-port", "65536"], ["--grpc-port", "65535"]),
        (["--model-repository", ".", "--grpc-port", "-1"], ["--grpc-port"]),
        (["--model-repository", ".", "--no-such-flag"], ["--no-such-flag"]),
        (["--model-repository", ".", "--tls-cert", "only.pem"], ["--tls-key"]),
        (["--model-repository", ".", "--device", "quantum"], ["quantum"]),
    ],
    ids=[
        "no repository",
        "none given",
        "port too high",
        "port negative",
        "unknown flag",
        "half of TLS",
        "unknown device",
    ],
)
def test_a_setting_that_cannot_work_stops_the_start_and_is_named(flags: list[str], words: list[str]) -> None:
    run = run_to_its_end(*flags, "--metrics-port", "none")
    assert run.returncode != 0
    assert all(word in run.stdout + run.stderr for word in words), run.stderr
    assert "Traceback" not in run.stderr


def alone_only() -> onnx.ModelProto:
    """x FP32 [b, 2] → y FP32 [b, 2], sound and batchable by its shapes; but any run of two rows or more fails."""
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
            helper.make_node("Sub", ["rows", "one"], ["beyond"]),
            helper.make_node("Gather", ["zeros", "beyond"], ["zero"]),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        "alone-only",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("b", 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("b", 2))],
        [
            helper.make_tensor("one", TensorProto.INT64, (1,), [1]),
            helper.make_tensor("zeros", TensorProto.FLOAT, (1,), [0.0]),
        ],
    )
    return helper.make_model(graph, opset_imports=models.OPSET, ir_version=models.IR_VERSION)


@pytest.mark.case("add", "failing warm-up", "not READY; the others serve")
def test_a_model_that_cannot_run_its_own_example_never_becomes_ready(tmp_path: Path, start: Start) -> None:
    x = np.ones((2, 2), np.float32)
    models.publish(tmp_path / "models", "identity_fp32", models.identity(TensorProto.FLOAT))
    models.publish(tmp_path / "models", "failing", alone_only().SerializeToString(), example=(x, x))
    server = start(tmp_path / "models")
    ok(server.valid_request())
    refused(server.caller.infer(ask("failing", tensor("x", x))), grpc.StatusCode.UNAVAILABLE, "failing")
    server.stop()


@pytest.mark.case("add", "a model that runs rows alone only", "served one row at a time")
def test_a_model_that_fails_with_several_rows_is_served_row_by_row(tmp_path: Path, start: Start) -> None:
    models.publish(tmp_path / "models", "identity_fp32", models.identity(TensorProto.FLOAT))
    models.publish(tmp_path / "models", "alone", alone_only())
    server = start(tmp_path / "models")
    pending = [server.caller.begin(ask("alone", tensor("x", np.full((1, 2), n, np.float32)))) for n in range(50)]
    assert [ok(each.outcome())["y"].array.tolist() for each in pending] == [[[n, n]] for n in range(50)]
    server.stop()


@pytest.mark.case("add", "an example that is answered wrong", "not READY; the others serve")
def test_a_model_that_answers_its_own_example_wrong_never_becomes_ready(tmp_path: Path, start: Start) -> None:
    models.publish(tmp_path / "models", "identity_fp32", models.identity(TensorProto.FLOAT))
    models.publish(tmp_path / "models", "liar", models.stamp(1), example=(X, X + 2))
    models.publish(tmp_path / "models", "honest", models.stamp(1), example=(X, X + 1))
    server = start(tmp_path / "models")
    refused(server.caller.infer(ask("liar", tensor("x", X))), grpc.StatusCode.UNAVAILABLE, "liar")
    assert ok(server.caller.infer(ask("honest", tensor("x", X))))["y"].array.tolist() == (X + 1).tolist()
    server.stop()


@pytest.mark.case("add", "failing model and --exit-on-error", "exit ≠ 0, the model in the message")
def test_a_model_that_fails_stops_the_start_where_that_is_asked_for(tmp_path: Path) -> None:
    models.publish(tmp_path / "models", "identity_fp32", models.identity(TensorProto.FLOAT))
    models.publish(tmp_path / "models", "broken", b"no model")
    run = run_to_its_end(
        *(
            "--model-repository",
            str(tmp_path / "models"),
            "--grpc-port",
            "0",
            "--metrics-port",
            "none",
            "--exit-on-error",
        )
    )
    assert run.returncode != 0
    assert "broken" in run.stdout + run.stderr
