"""The command line, in process against a real server, and once as the installed command."""

import io
import json
import subprocess
import sys
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from forwardpass.cli import main
from forwardpass_proto import grpc_service_pb2 as pb


def _digit(request: Any, reply: Any) -> Any:
    rows = request.inputs[0].shape[0]
    probabilities = np.full((rows, 10), 0.01, np.float32)
    probabilities[:, 7] = 0.91
    reply.outputs.add(name="probabilities", datatype="FP32", shape=[rows, 10])
    reply.raw_output_contents.append(probabilities.tobytes())


@pytest.fixture
def digits(server: Any, make_model: Any) -> Any:
    model = make_model([("image", "UINT8", [-1, 28, 28])], [("probabilities", "FP32", [-1, 10])], _digit)
    model.properties["forwardpass.labels"] = json.dumps([f"digit {number}" for number in range(10)])
    server.models["mnist_cnn"] = model
    return server


@pytest.fixture
def run(server: Any, capsys: Any) -> Any:
    def call(*arguments: str, url: Any = None) -> Any:
        code = main([*arguments, "--url", url or server.address])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_predict_a_picture_prints_labels_with_bars_and_says_what_it_did(digits: Any, run: Any, tmp_path: Any) -> None:
    path = tmp_path / "digit.png"
    Image.new("RGB", (100, 50), "black").save(path)
    code, out, err = run("predict", "mnist_cnn", f"image=@{path}")
    assert code == 0
    assert "mnist_cnn, version 1" in out
    assert "digit 7  0.9100  ███████████████████████████" in out
    assert "digit 6" not in out
    assert "image: greyscaled" in err
    assert "image: resized from 100x50 to 28x28" in err


def test_predict_a_light_picture_hints_at_invert_and_invert_does_it(digits: Any, run: Any, tmp_path: Any) -> None:
    path = tmp_path / "digit.png"
    Image.new("L", (28, 28), 255).save(path)
    assert "--invert" in run("predict", "mnist_cnn", f"@{path}")[2]
    seen: list[Any] = []

    def keep(request: Any, context: Any) -> Any:
        seen.append(request)
        return digits._ModelInfer(request, context)

    digits.overrides["ModelInfer"] = keep
    assert run("predict", "mnist_cnn", f"@{path}", "--invert")[0] == 0
    assert seen[0].raw_input_contents[0] == bytes(28 * 28)
    assert list(seen[0].inputs[0].shape) == [1, 28, 28]


def test_predict_json_is_one_line_of_json_with_labels(digits: Any, run: Any, tmp_path: Any) -> None:
    np.save(tmp_path / "two.npy", np.zeros((2, 28, 28), np.uint8))
    code, out, _ = run("predict", "mnist_cnn", f"image=@{tmp_path}/two.npy", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["outputs"]["probabilities"]["shape"] == [2, 10]
    assert answer["outputs"]["probabilities"]["data"][1][7] == pytest.approx(0.91)
    assert answer["labels"][7] == "digit 7"
    assert out.count("\n") == 1


def test_predict_takes_json_files_and_standard_input(server: Any, run: Any, tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "x.json").write_text("[[1, 2]]")
    assert json.loads(run("predict", "echo", f"x=@{tmp_path}/x.json", "--json")[1])["outputs"]["x"]["data"] == [[1, 2]]
    monkeypatch.setattr("sys.stdin", io.StringIO("[[3]]"))
    assert json.loads(run("predict", "echo", "-", "--json")[1])["outputs"]["x"]["data"] == [[3]]


def test_predict_brings_a_number_to_the_models_shape_aloud(server: Any, run: Any, make_echo: Any) -> None:
    server.models["linear"] = make_echo("FP32", [-1, 1])
    code, out, err = run("predict", "linear", "x=3")
    assert code == 0
    assert "[[3.]]" in out
    assert "x: shape [] taken as [1, 1]" in err


def test_predict_text_for_bytes_and_numbers_json_lacks(server: Any, run: Any, make_echo: Any) -> None:
    server.models["text"] = make_echo("BYTES")
    assert json.loads(run("predict", "text", "x=5 cats", "--json")[1])["outputs"]["x"]["data"] == ["5 cats"]
    assert json.loads(run("predict", "text", 'x=["a","b"]', "--json")[1])["outputs"]["x"]["data"] == ["a", "b"]
    assert json.loads(run("predict", "echo", "x=[[NaN,Infinity]]", "--json")[1])["outputs"]["x"]["data"] == [
        ["NaN", "Infinity"]
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["echo", "y=1"], 1, "no input 'y'; the model takes x FP32 [-1, -1]"),
        (["echo", "x=[1,"], 2, "is no JSON"),
        (["echo", "x=[[1],[1,2]]"], 1, "not rectangular"),
        (["echo", "x=@nowhere.npy"], 2, "cannot be read as .npy"),
        (["echo", "x=@nowhere.json"], 2, "cannot be read"),
        (["echo", "x=@nowhere.txt"], 2, "ends in none of"),
        (["echo", "x=1", "x=2"], 2, "given twice"),
        (["echo", "x=@nowhere.png"], 1, "is no picture"),
        (["nope", "x=1"], 1, "`forwardpass models` lists"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(run: Any, arguments: Any, code: Any, words: Any) -> None:
    got, out, err = run("predict", *arguments)
    assert got == code
    assert words in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_broken_picture_is_named(digits: Any, run: Any, tmp_path: Any) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    code, _, err = run("predict", "mnist_cnn", f"@{tmp_path}/x.png")
    assert code == 2
    assert "x.png' cannot be read as a picture" in err


def test_colour_pictures_go_to_floating_point_models_scaled(
    server: Any, run: Any, make_echo: Any, tmp_path: Any
) -> None:
    server.models["net"] = make_echo("FP32", [-1, 3, 4, 6])
    Image.new("RGB", (6, 4), (255, 0, 51)).save(tmp_path / "c.png")
    code, out, err = run("predict", "net", f"@{tmp_path}/c.png", "--json")
    answer = json.loads(out)["outputs"]["x"]
    assert code == 0
    assert answer["shape"] == [1, 3, 4, 6]
    assert [plane[0][0] for plane in answer["data"][0]] == pytest.approx([1, 0, 0.2])
    assert "divided by 255" in err


def test_models_lists_versions_with_reasons(server: Any, run: Any) -> None:
    server.index = [("echo", "1", "READY", ""), ("echo", "2", "UNAVAILABLE", "hash differs")]
    code, out, _ = run("models")
    assert code == 0
    assert out.splitlines() == [
        "MODEL  VERSION  STATE        REASON",
        "echo   1        READY",
        "echo   2        UNAVAILABLE  hash differs",
    ]
    assert json.loads(run("models", "--json")[1])[1]["reason"] == "hash differs"


def test_models_of_a_server_without_index_says_how_to_go_on(run: Any) -> None:
    code, _, err = run("models")
    assert code == 1
    assert "forwardpass models NAME" in err


def test_models_with_a_name_describes_it(run: Any) -> None:
    code, out, _ = run("models", "echo")
    assert code == 0
    assert "input     x FP32 [-1, -1]" in out
    assert json.loads(run("models", "echo", "--json")[1])["inputs"][0]["datatype"] == "FP32"


def test_health_tells_by_words_and_by_exit_code(server: Any, run: Any) -> None:
    code, out, _ = run("health")
    assert code == 0
    assert "health   SERVING" in out
    server.health = "NOT_SERVING"
    code, out, _ = run("health", "--json")
    assert code == 3
    assert json.loads(out)["health"] == "NOT_SERVING"


def test_health_of_a_server_without_the_health_service_asks_it_directly(server: Any, run: Any) -> None:
    server.overrides["Check"] = lambda request, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, "no")
    code, out, _ = run("health")
    assert code == 0
    assert "ServerReady" in out


def test_an_unreachable_server_is_exit_code_3_with_the_way_out(make_server: Any, run: Any) -> None:
    gone = make_server()
    gone.stop()
    code, _, err = run("health", url=gone.address)
    assert code == 3
    assert "forwardpass-server --model-repository" in err
    gone.start()


def test_a_deadline_is_exit_code_3(server: Any, run: Any) -> None:
    server.overrides["ModelMetadata"] = lambda request, context: context.abort(
        grpc.StatusCode.DEADLINE_EXCEEDED, "queue cannot clear in 5 ms"
    )
    code, _, err = run("predict", "echo", "x=1")
    assert code == 3
    assert "queue cannot clear in 5 ms" in err
    assert "--deadline-s" in err


def test_overload_says_when_to_come_back(server: Any, run: Any) -> None:
    def refuse(request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "40"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue of 'echo' is full (256 requests)")

    server.overrides["ModelInfer"] = refuse
    code, _, err = run("predict", "echo", "x=1")
    assert code == 3
    assert "256 requests" in err
    assert "asks to retry after 0.04 s" in err


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["predict"], ["load", "echo", "--seconds", "0"], ["load", "echo", "--concurrency", "-1"]],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_bad_addresses_and_files_are_exit_code_2(run: Any, tmp_path: Any) -> None:
    assert run("health", url="http://localhost:8000")[0] == 2
    assert run("health", "--ca-file", str(tmp_path / "none.pem"))[0] == 2
    assert run("health", "--token-file", str(tmp_path / "none"))[0] == 2


def test_load_reports_rate_percentiles_and_no_failures(server: Any, run: Any) -> None:
    code, out, _ = run("load", "echo", "--seconds", "0.5", "--concurrency", "4", "--rows", "2")
    assert code == 0
    assert "failures   none" in out
    assert "p50" in out
    assert "p99" in out
    calls = float(out.split("calls/s")[0].split()[-1])
    rows = float(out.split("rows/s")[0].split()[-1])
    assert calls > 0
    assert rows == pytest.approx(2 * calls, abs=0.2)


def test_load_counts_failures_by_code_without_retrying_or_spinning(server: Any, run: Any) -> None:
    def refuse(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    server.overrides["ModelInfer"] = refuse
    code, out, _ = run("load", "echo", "--seconds", "0.4", "--concurrency", "2", "--json")
    facts = json.loads(out)
    assert code == 1
    assert facts["completed"] == 0
    assert facts["latency_s"]["p99"] is None
    assert facts["failures"] == {"RESOURCE_EXHAUSTED": server.count("ModelInfer")}
    assert 2 <= server.count("ModelInfer") <= 10


def test_load_with_given_inputs(server: Any, run: Any) -> None:
    seen: set[bytes] = set()

    def keep(request: Any, context: Any) -> Any:
        seen.add(request.raw_input_contents[0])
        return pb.ModelInferResponse()

    server.overrides["ModelInfer"] = keep
    assert run("load", "echo", "x=[[2.0]]", "--seconds", "0.2", "--concurrency", "1")[0] == 0
    assert seen == {np.float32(2).tobytes()}


def test_the_installed_command_runs_imports_quickly_and_leaves_pillow_alone(server: Any) -> None:
    script = (
        "import sys, time; start = time.process_time(); from forwardpass.cli import main; "
        "took = time.process_time() - start; "
        "assert 'PIL' not in sys.modules; assert took < 0.6, took; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "health", "--url", server.address], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "SERVING" in done.stdout
    version = subprocess.run(
        [sys.executable, "-m", "forwardpass", "--version"], capture_output=True, text=True, timeout=60
    )
    assert version.stdout.startswith("forwardpass ")


def test_a_reader_that_leaves_is_no_error(server: Any) -> None:
    server.index = [(f"model-{number}", "1", "READY", "x" * 100) for number in range(5000)]
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m forwardpass models --url "$1" | head -1', sys.executable, server.address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("MODEL")
    assert done.stderr == ""
