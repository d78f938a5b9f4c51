"""A real server: its own process, its command line, a real socket, and stock grpcio for a client."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.repository import GoldenSet, VersionFolder

WAIT_S = 60.0


def scaled(factor: float, slow: int = 0) -> onnx.ModelProto:
    """x FP32 [batch, 3] → y = factor · x; `slow` adds that many products of 200 x 200 matrices to each run."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    constants = {"factor": np.array([factor], np.float32)}
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y0" if slow else "y"])]
    if slow:
        # A chain that depends on x, so that no optimiser computes it beforehand, and ends in an exact zero.
        constants |= {"square": np.zeros((200, 200), np.float32), "three": np.zeros((200, 3), np.float32)}
        constants |= {"in": np.zeros((3, 200), np.float32)}
        nodes.append(helper.make_node("MatMul", ["x", "in"], ["h0"]))
        for step in range(slow):
            nodes.append(helper.make_node("MatMul", [f"h{step}", "square"], [f"t{step}"]))
            nodes.append(helper.make_node("Tanh", [f"t{step}"], [f"h{step + 1}"]))
        nodes.append(helper.make_node("MatMul", [f"h{slow}", "three"], ["z"]))
        nodes.append(helper.make_node("Add", ["y0", "z"], ["y"]))
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "scaled", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def publish(root: Path, model: str, factor: float, *, recorded: float | None = None, slow: int = 0) -> VersionFolder:
    """The next version of a model, with a golden example recorded with factor `recorded` (its own, if None)."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3) + 1

    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(scaled(factor, slow).SerializeToString())
        example = folder / "test_data_set_0"
        example.mkdir()
        answer = x * np.float32(factor if recorded is None else recorded)
        (example / "input_0.pb").write_bytes(numpy_helper.from_array(x, "x").SerializeToString())
        (example / "output_0.pb").write_bytes(numpy_helper.from_array(answer, "y").SerializeToString())
        return {"golden": [GoldenSet(folder="test_data_set_0", atol=1e-5, rtol=0.0)]}

    return repository.publish(root, model, build)


def bare(root: Path, model: str, number: int, factor: float = 2.0) -> Path:
    """A version without manifest; returns its model file."""
    path = root / model / str(number) / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(scaled(factor).SerializeToString())
    return path


class Client:
    """Stock grpcio."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def call(self, method: str, request: Any, response: Any, timeout_s: float = 20.0) -> Any:
        path = method if "/" in method else f"/inference.GRPCInferenceService/{method}"
        unary = self.channel.unary_unary(path, lambda message: message.SerializeToString(), response.FromString)
        return unary(request, timeout=timeout_s)

    def infer_future(self, model: str, rows: np.ndarray, version: str = "", timeout_s: float = 30.0) -> Any:
        unary = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            lambda message: message.SerializeToString(),
            pb.ModelInferResponse.FromString,
        )
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
        request.raw_input_contents.append(rows.astype(np.float32).tobytes())
        return unary.future(request, timeout=timeout_s)

    def infer(self, model: str, rows: np.ndarray, version: str = "") -> tuple[np.ndarray, str]:
        """The answer, and the version that gave it."""
        return answer_of(self.infer_future(model, rows, version).result())

    def ready(self, model: str, version: str = "") -> bool:
        request = pb.ModelReadyRequest(name=model, version=version)
        return bool(self.call("ModelReady", request, pb.ModelReadyResponse).ready)

    def code(self, model: str, version: str = "") -> tuple[grpc.StatusCode, str]:
        """Code and text of an inference that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self.infer(model, np.ones((1, 3), np.float32), version)
        return caught.value.code(), caught.value.details()


def answer_of(response: Any) -> tuple[np.ndarray, str]:
    output = response.outputs[0]
    array = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(output.shape)
    return array, response.model_version


class Process:
    """`python -m forwardpass_server`, its log read line by line."""

    def __init__(self, root: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "forwardpass_server", "--model-repository", str(root)]
        command += ["--grpc-port=0", "--metrics-port=0", "--device=cpu", "--log-format=json"]
        command += ["--repository-poll-secs=0.1", *flags]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._clients: list[Client] = []

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.raw.append(line)
            if line.startswith("{"):
                self._news.put(json.loads(line))
        self._news.put(None)

    def wait_for(self, message: str, **fields: object) -> dict[str, Any]:
        """The next log line with that message and those fields; lines before it are passed over."""
        give_up = time.monotonic() + WAIT_S
        while True:
            try:
                line = self._news.get(timeout=max(give_up - time.monotonic(), 0.01))
            except queue.Empty:
                line = None
            assert line is not None, f"no line {message!r} {fields} in {''.join(self.raw)}"
            self.lines.append(line)
            if line["message"] == message and fields.items() <= line.items():
                return line

    def client(self) -> Client:
        """A client of the server, once it serves."""
        port = next((line["address"] for line in self.lines if line["message"] == "serving"), None)
        if port is None:
            port = self.wait_for("serving")["address"]
        self._clients.append(Client(int(port.rpartition(":")[2])))
        return self._clients[-1]

    def metrics(self) -> str:
        address = next(line["address"] for line in self.lines if line["message"] == "metrics page")
        with urllib.request.urlopen(address, timeout=20) as page:
            return str(page.read().decode())

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for client in self._clients:
            client.channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


Serve = Callable[..., Process]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@pytest.fixture
def serve(root: Path) -> Iterator[Serve]:
    """Starts servers on the repository; every one is ended with its test."""
    started: list[Process] = []

    def start(*flags: str, **options: Any) -> Process:
        started.append(Process(root, *flags, **options))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.__exit__(None, None, None)


@pytest.fixture(scope="module")
def serve_all() -> Iterator[Callable[..., Process]]:
    """Starts servers on a given repository, for all tests of a module."""
    started: list[Process] = []

    def start(root: Path, *flags: str, **options: Any) -> Process:
        started.append(Process(root, *flags, **options))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.__exit__(None, None, None)


@pytest.fixture(name="publish")
def publish_fixture(root: Path) -> Callable[..., VersionFolder]:
    return lambda model, factor, **options: publish(root, model, factor, **options)


@pytest.fixture(name="bare")
def bare_fixture(root: Path) -> Callable[..., Path]:
    return lambda model, number, factor=2.0: bare(root, model, number, factor)
