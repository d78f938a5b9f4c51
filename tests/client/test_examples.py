"""Every example script runs, as its own process, and says what it should."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb

EXAMPLES = Path(__file__).parents[2] / "clients" / "examples"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def brightest(server: Any, make_model: Any) -> Any:
    """A "classifier" whose class is the number of bright rows, modulo ten."""

    def classify(request: Any, reply: Any) -> None:
        picture = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(28, 28)
        probabilities = np.zeros((1, 10), np.float32)
        probabilities[0, (picture.max(axis=1) == 255).sum() % 10] = 1
        reply.outputs.add(name="probabilities", datatype="FP32", shape=[1, 10])
        reply.raw_output_contents.append(probabilities.tobytes())

    server.models["mnist_cnn"] = make_model(
        [("image", "UINT8", [-1, 28, 28])], [("probabilities", "FP32", [-1, 10])], classify
    )
    return server


def test_predict_mnist(brightest: Any, tmp_path: Path) -> None:
    url = ("--url", brightest.address)
    assert run("predict_mnist.py", *url) == "7 (100.0%), says version 1 of mnist_cnn\n"
    np.save(tmp_path / "five.npy", np.repeat([[255], [0]], [5, 23], axis=0).astype(np.uint8).repeat(28, axis=1))
    assert run("predict_mnist.py", *url, "--picture", str(tmp_path / "five.npy")).startswith("5 (100.0%)")


def test_async_burst(server: Any, make_echo: Any) -> None:
    server.models["mlp_classifier"] = make_echo("FP32", [-1, 10])
    out = run("async_burst.py", "--url", server.address, "--calls", "60")
    assert out.startswith("60 of 60 calls in ")
    assert server.count("ModelInfer") == 60


def test_plain_stub(server: Any, make_echo: Any) -> None:
    server.models["linear_regression"] = make_echo("FP32", [-1, 1])
    out = run("plain_stub.py", "--url", server.address, "--values", "1", "2.5")
    assert out == "x FP32 [1, 2] (1.0, 2.5)\n"


def test_three_readers(server: Any) -> None:
    def write(requests: Any, _context: Any) -> Any:
        asked = next(requests)
        temperature = asked.parameters["temperature"].double_param
        for number in range(3):
            reply = pb.ModelInferResponse(model_name=asked.model_name)
            reply.outputs.add(name="text", datatype="BYTES", shape=[1])
            piece = f"{temperature:g};".encode()
            reply.raw_output_contents.append(len(piece).to_bytes(4, "little") + piece)
            reply.parameters["triton_final_response"].bool_param = number == 2
            yield pb.ModelStreamInferResponse(infer_response=reply)

    server.stream = write
    out = run("three_readers.py", "--url", server.address, "--prompt", "A:")
    assert out.count("'0.8;'") == 3
    assert out.endswith("--- temperature 1.2 ---\nA:1.2;1.2;1.2;\n")
