"""The server as one object: two in one process, nothing at import, clean ends."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.app import Server
from forwardpass_server.config import ServerConfig
from forwardpass_server.errors import StartFailed

X = np.ones((2, 3), np.float32)


def write_model(root: Path, name: str, factor: float) -> None:
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", 3]) for each in "xy")
    weights = numpy_helper.from_array(np.array([factor], np.float32), "factor")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = root / name / "1"
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")


def config(root: Path, **settings: object) -> ServerConfig:
    root.mkdir(exist_ok=True)
    given = {"grpc_port": 0, "metrics_port": 0, "device": "cpu", "repository_poll_secs": 0.05} | settings
    return ServerConfig(model_repository=root, **given)  # type: ignore[arg-type]


Start = Callable[[ServerConfig], Server]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Server] = []

    def begin(settings: ServerConfig) -> Server:
        server = Server(settings)
        started.append(server)
        assert server.start()
        return server

    yield begin
    for server in started:
        assert server.stop().clean


def infer(server: Server, model: str) -> np.ndarray:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        request = pb.ModelInferRequest(model_name=model)
        request.inputs.add(name="x", datatype="FP32", shape=X.shape)
        request.raw_input_contents.append(X.tobytes())
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        response = pb.ModelInferResponse.FromString(call(request.SerializeToString(), timeout=20))
        return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(X.shape)


def test_two_servers_live_in_one_process_and_know_nothing_of_each_other(start: Start, tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    for factor, root in enumerate(roots, start=2):
        write_model(root, "shared_name", factor)
    first, second = (start(config(root)) for root in roots)
    assert first.port != second.port
    assert first.metrics_port != second.metrics_port
    np.testing.assert_array_equal(infer(first, "shared_name"), 2 * X)
    np.testing.assert_array_equal(infer(second, "shared_name"), 3 * X)


def test_a_stopped_server_leaves_the_other_serving(start: Start, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path / name, "m", 2.0)
    stays = start(config(tmp_path / "a"))
    goes = Server(config(tmp_path / "b"))
    assert goes.start()
    infer(goes, "m")
    assert goes.stop().clean
    np.testing.assert_array_equal(infer(stays, "m"), 2 * X)


def test_a_stopped_server_leaves_no_thread_and_no_port(tmp_path: Path) -> None:
    write_model(tmp_path / "a", "m", 2.0)
    before = set(threading.enumerate())
    server = Server(config(tmp_path / "a"))
    assert set(threading.enumerate()) == before, "building a server starts nothing"
    assert server.start()
    infer(server, "m")
    port = server.port
    assert port is not None
    assert server.stop().clean
    assert set(threading.enumerate()) == before
    again = Server(config(tmp_path / "a", grpc_port=port))
    assert again.start()
    assert again.stop().clean


def test_wait_returns_when_somebody_asks_to_stop(start: Start, tmp_path: Path) -> None:
    server = start(config(tmp_path / "a"))
    waiting = threading.Thread(target=server.wait)
    waiting.start()
    server.ask_to_stop()
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_stop_asked_for_before_the_start_ends_it(tmp_path: Path) -> None:
    write_model(tmp_path / "a", "m", 2.0)
    server = Server(config(tmp_path / "a"))
    server.ask_to_stop()
    assert not server.start()
    assert server.port is None
    assert server.stop().clean


def test_a_failed_start_can_be_cleaned_up(tmp_path: Path) -> None:
    server = Server(config(tmp_path / "a"))
    (tmp_path / "a").rmdir()
    with pytest.raises(StartFailed, match="--model-repository"):
        server.start()
    assert server.stop().clean


def test_no_metrics_page_where_none_is_wanted(start: Start, tmp_path: Path) -> None:
    assert start(config(tmp_path / "a", metrics_port=None)).metrics_port is None


def test_a_device_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="abacus"):
        Server(config(tmp_path / "a", device="abacus"))


def test_missing_certificates_are_named_before_anything_starts(tmp_path: Path) -> None:
    files = {"tls_cert": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
    with pytest.raises(StartFailed, match=r"server\.pem"):
        Server(config(tmp_path / "a", **files))


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("box.lan", True)],
)
def test_tokens_that_would_travel_as_they_are_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    (tmp_path / "tokens").write_text("token-0123456789")
    with caplog.at_level(logging.WARNING, "forwardpass_server"):
        Server(config(tmp_path / "a", host=host, data_token_file=tmp_path / "tokens"))
    assert ["without TLS" in record.getMessage() for record in caplog.records] == [True] * warned


def test_importing_the_server_changes_nothing_global() -> None:
    program = """
import logging, signal, threading
handlers, level = list(logging.root.handlers), logging.root.level
term = signal.getsignal(signal.SIGTERM)
import forwardpass_server.app, forwardpass_server.__main__
assert logging.root.handlers == handlers and logging.root.level == level
assert logging.getLogger("forwardpass_server").handlers == []
assert signal.getsignal(signal.SIGTERM) is term
assert threading.active_count() == 1, threading.enumerate()
from prometheus_client import REGISTRY
assert not [m.name for m in REGISTRY.collect() if m.name.startswith(("infer", "grpc", "model"))]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_log_has_no_line_for_a_request(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path / "a", "m", 2.0)
    server = start(config(tmp_path / "a"))
    with caplog.at_level(logging.INFO, "forwardpass_server"):
        infer(server, "m")
        with pytest.raises(grpc.RpcError):
            infer(server, "unknown\nmodel")
        assert caplog.records == []
