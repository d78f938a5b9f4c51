"""Stopping: nothing that was admitted is lost, and the exit status says so."""

import signal
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from forwardpass_proto import grpc_service_pb2 as pb

SLOW = 400
"""Products of matrices that make a run take tens of milliseconds on one core."""


def rows(count: int) -> np.ndarray:
    return np.full((1, 3), float(count), np.float32)


def test_sigterm_with_64_calls_in_flight_answers_all_64_and_exits_0(serve: Any, publish: Any) -> None:
    publish("slow", 2.0, slow=SLOW)
    with serve() as server:
        client = server.client()
        # One row a run, so that they queue behind each other.
        futures = [client.infer_future("slow", np.full((64, 3), i, np.float32)) for i in range(64)]
        while _admitted(server) < 64:
            pass
        assert _done(futures) < 64, "all were answered before the server could be stopped"
        server.terminate()
        for index, future in enumerate(futures):
            response = future.result()
            answer = np.frombuffer(response.raw_output_contents[0], np.float32)
            np.testing.assert_array_equal(answer, np.full(192, 2 * index, np.float32))
        assert server.wait() == 0
    stopped = server.wait_for("stopped")
    assert (stopped["calls_lost"], stopped["threads_left"]) == (0, False)


def _done(futures: list[Any]) -> int:
    return sum(future.done() for future in futures)


def _admitted(server: Any) -> float:
    """Requests admitted until now: answered, waiting or running."""
    return sample(server, "infer_requests_total", 'outcome="ok"') + sample(server, "infer_inflight", "")


def sample(server: Any, name: str, label: str) -> float:
    """The value of the first sample of that name with that label; 0 when there is none."""
    for line in server.metrics().splitlines():
        if line.startswith(f"{name}{{") and label in line:
            return float(line.rpartition(" ")[2])
    return 0.0


def test_sigterm_under_load_fails_no_call_but_those_refused_as_unavailable(serve: Any, publish: Any) -> None:
    """Sixteen closed-loop callers: each call is answered right, or refused as UNAVAILABLE once the stop has begun."""
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        ended: list[tuple[int, grpc.StatusCode]] = []
        started = threading.Barrier(17)

        def caller(number: int) -> None:
            started.wait()
            answered = 0
            while True:
                try:
                    answer, _ = client.infer("scale", rows(number))
                except grpc.RpcError as error:
                    ended.append((answered, error.code()))
                    return
                np.testing.assert_array_equal(answer, 2 * rows(number))
                answered += 1

        callers = [threading.Thread(target=caller, args=(number,)) for number in range(16)]
        for each in callers:
            each.start()
        started.wait()
        while sample(server, "infer_requests_total", 'outcome="ok"') < 500:
            pass
        server.terminate()
        for each in callers:
            each.join(60)
        assert server.wait() == 0
    assert [code for _, code in ended] == [grpc.StatusCode.UNAVAILABLE] * 16
    assert sum(answered for answered, _ in ended) >= 500


def test_while_draining_it_serves_and_says_that_it_is_not_ready(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--drain-s=60") as server:
        client = server.client()
        client.infer("scale", rows(1))
        server.terminate()
        server.wait_for("stopping")
        while client.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready:
            pass
        np.testing.assert_array_equal(client.infer("scale", rows(7))[0], 2 * rows(7))
        assert "draining 1.0" in server.metrics()
        server.terminate()
        assert server.wait() == 128 + signal.SIGTERM


def test_a_second_signal_ends_at_once(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--drain-s=3600") as server:
        server.client()
        server.terminate()
        server.wait_for("stopping")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 128 + signal.SIGINT


def test_an_idle_connection_does_not_hold_up_the_stop(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        client.infer("scale", rows(1))
        server.terminate()
        assert server.wait() == 0
    assert server.wait_for("stopped")["threads_left"] is False


def test_a_call_that_outlives_the_grace_is_given_up_and_the_server_ends(serve: Any, publish: Any) -> None:
    publish("slow", 2.0, slow=SLOW)
    with serve("--grace-s=0") as server:
        client = server.client()
        futures = [client.infer_future("slow", np.ones((64, 3), np.float32)) for _ in range(64)]
        while "infer_inflight" not in server.metrics():
            pass
        server.terminate()
        codes = {future.code() for future in futures}
        assert codes - {grpc.StatusCode.OK} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert codes != {grpc.StatusCode.OK}
        assert server.wait() == 1
    assert server.wait_for("calls ended")["cancelled"] > 0


def test_a_model_that_never_ends_its_first_run_does_not_hold_up_the_stop(serve: Any, root: Path) -> None:
    write_endless(root / "endless" / "1" / "model.onnx")
    with serve("--log-level=debug") as server:
        server.wait_for("version state", model="endless", state="warming")
        server.terminate()
        assert server.wait() == 0
    assert server.wait_for("stopped")["threads_left"] is True


def write_endless(path: Path) -> None:
    """A loop of 2^60 turns, each of which adds x."""
    x, y, turn, total, next_total = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("x", TensorProto.FLOAT, ["batch", 3]),
            ("y", TensorProto.FLOAT, None),
            ("turn", TensorProto.INT64, []),
            ("total", TensorProto.FLOAT, None),
            ("next_total", TensorProto.FLOAT, None),
        )
    )
    on, still = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still"))
    body = helper.make_graph(
        [
            helper.make_node("Add", ["total", "x"], ["next_total"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [turn, on, total],
        [still, next_total],
    )
    constants = [
        numpy_helper.from_array(np.array(2**60, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    loop = helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)
    graph = helper.make_graph([loop], "endless", [x], [y], constants)
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
