"""Starting: what it says, what it serves, and what keeps it from starting."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_a_published_model_is_loaded_proved_and_answers(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        answer, version = client.infer("scale", X)
        np.testing.assert_array_equal(answer, 2 * X)
        assert version == "1"
        metadata = client.call("ModelMetadata", pb.ModelMetadataRequest(name="scale"), pb.ModelMetadataResponse)
        assert (metadata.name, list(metadata.versions), metadata.platform) == ("scale", ["1"], "onnxruntime_onnx")
        assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [("x", "FP32", [-1, 3])]
        assert metadata.properties["forwardpass.proved"] == "true"
        assert metadata.properties["forwardpass.provider"] == "CPUExecutionProvider"
        assert client.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
        health = client.call(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest(service="scale"),
            health_pb2.HealthCheckResponse,
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        page = server.metrics()
        assert 'model_state{model="scale",state="ready",version="1"} 1.0' in page
        assert 'infer_requests_total{model="scale",outcome="ok",version="1"} 1.0' in page
        assert (
            'grpc_server_handled_total{grpc_code="OK",grpc_method="ModelInfer",'
            'grpc_service="inference.GRPCInferenceService"} 1.0' in page
        )


def test_it_says_what_it_runs_on_and_what_is_ready(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        server.client()
        said = {line["message"]: line for line in server.lines}
        assert said["device"]["provider"] == "CPUExecutionProvider"
        assert said["model ready"]["inputs"] == "x: FP32[batch, 3]"
        assert said["serving"]["address"].startswith("127.0.0.1:")
        assert said["version ready"]["proved"] is True


def test_a_version_without_manifest_is_served_and_marked_unproved(serve: Any, bare: Any) -> None:
    bare("plain", 3)
    with serve() as server:
        client = server.client()
        np.testing.assert_array_equal(client.infer("plain", X, "3")[0], 2 * X)
        metadata = client.call("ModelMetadata", pb.ModelMetadataRequest(name="plain"), pb.ModelMetadataResponse)
        assert metadata.properties["forwardpass.proved"] == "false"
        assert 'proved="false"' in server.metrics()


def test_unknown_models_and_bad_versions_get_their_codes(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        assert client.code("nothing")[0] is grpc.StatusCode.NOT_FOUND
        assert client.code("scale", "7")[0] is grpc.StatusCode.NOT_FOUND
        for version in ("v1", "01", "0", "-1", " 1", "1/../1", "9" * 30):
            code, text = client.code("scale", version)
            assert (code, repr(version)[:10] in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)


def test_a_broken_model_beside_a_sound_one_leaves_the_server_degraded_and_not_down(serve: Any, publish: Any) -> None:
    publish("sound", 2.0)
    publish("broken", 2.0, recorded=5.0)
    with serve() as server:
        client = server.client()
        np.testing.assert_array_equal(client.infer("sound", X)[0], 2 * X)
        code, text = client.code("broken")
        assert code is grpc.StatusCode.UNAVAILABLE
        for part in ("version 1", "test_data_set_0", "'y'", "max error 18", "tolerance 1e-05"):
            assert part in text
        assert client.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
        assert 'model_load_failures_total{model="broken",version="1"} 1.0' in server.metrics()


def test_exit_on_error_refuses_to_start_beside_a_broken_model_and_names_it(serve: Any, publish: Any) -> None:
    publish("sound", 2.0)
    publish("broken", 2.0, recorded=5.0)
    with serve("--exit-on-error") as server:
        reason = server.wait_for("cannot start")["reason"]
        assert "--exit-on-error" in reason
        assert "'broken' version 1" in reason
        assert server.wait() == 1


def test_strict_readiness_is_not_ready_while_a_model_is_not(serve: Any, publish: Any) -> None:
    publish("sound", 2.0)
    publish("broken", 2.0, recorded=5.0)
    with serve("--strict-readiness") as server:
        client = server.client()
        assert not client.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
        assert client.ready("sound")


def test_a_version_without_manifest_is_refused_where_one_is_required(serve: Any, bare: Any) -> None:
    bare("plain", 1)
    with serve("--require-manifest") as server:
        code, text = server.client().code("plain")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "manifest.json" in text
        assert "--require-manifest" in text


@pytest.mark.parametrize("flag", ["--grpc-port", "--metrics-port"])
def test_a_port_in_use_ends_the_start_and_is_named(serve: Any, publish: Any, flag: str) -> None:
    publish("scale", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve(f"{flag}={port}") as server:
            reason = server.wait_for("cannot start")["reason"]
            assert str(port) in reason
            assert flag in reason
            assert server.wait() == 1


def test_a_second_server_on_the_port_does_not_join_the_first(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as first:
        client = first.client()
        port = next(line["address"] for line in first.lines if line["message"] == "serving").rpartition(":")[2]
        with serve(f"--grpc-port={port}") as second:
            assert port in second.wait_for("cannot start")["reason"]
            assert second.wait() == 1
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)


def test_a_repository_that_is_not_there_ends_the_start(serve: Any, tmp_path: Path) -> None:
    with serve(f"--model-repository={tmp_path / 'missing'}") as server:
        assert "--model-repository" in server.wait_for("cannot start")["reason"]
        assert server.wait() == 1


def test_an_empty_repository_is_served_and_followed(serve: Any, publish: Any) -> None:
    with serve() as server:
        client = server.client()
        assert client.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
        assert client.code("scale")[0] is grpc.StatusCode.NOT_FOUND
        publish("scale", 2.0)
        server.wait_for("version ready", model="scale")
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)


def test_mode_none_loads_what_is_there_and_nothing_later(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--model-control-mode=none") as server:
        client = server.client()
        publish("scale", 3.0)
        publish("late", 3.0)
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        assert client.code("late")[0] is grpc.StatusCode.NOT_FOUND
        # It is not a question of waiting longer: nobody looks any more.
        assert not [line for line in server.lines if line.get("model") == "late"]


def test_mode_explicit_loads_what_is_named(serve: Any, publish: Any) -> None:
    publish("one", 2.0)
    publish("two", 3.0)
    with serve("--model-control-mode=explicit", "--load-model=two") as server:
        client = server.client()
        np.testing.assert_array_equal(client.infer("two", X)[0], 3 * X)
        assert client.code("one")[0] is grpc.StatusCode.NOT_FOUND


def test_mode_explicit_refuses_a_model_that_is_not_there(serve: Any, publish: Any) -> None:
    publish("one", 2.0)
    with serve("--model-control-mode=explicit", "--load-model=three") as server:
        assert "'three'" in server.wait_for("cannot start")["reason"]
        assert server.wait() == 1


def test_settings_come_from_the_environment_too(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve(environment={"FORWARDPASS_SERVER_MAX_BATCH_SIZE": "2"}) as server:
        with pytest.raises(grpc.RpcError) as caught:
            server.client().infer("scale", X)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_setting_in_the_environment_is_refused_before_anything_starts(serve: Any) -> None:
    with serve(environment={"FORWARDPASS_SERVER_GRPC_PROT": "1"}) as server:
        assert server.wait() == 1
        assert "the nearest is FORWARDPASS_SERVER_GRPC_PORT" in "".join(server.raw)


def test_help_and_version_need_no_model_and_no_device() -> None:
    for flag, expected in (("--help", "--model-repository"), ("--version", "0.")):
        done = subprocess.run(
            [sys.executable, "-m", "forwardpass_server", flag], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, expected in done.stdout) == (0, True)


def test_a_signal_while_models_are_loading_ends_the_start_with_status_0(serve: Any, publish: Any) -> None:
    """Forty models, and the signal comes after the first."""
    for index in range(40):
        publish(f"model_{index:02}", 2.0)
    with serve() as server:
        server.wait_for("version ready")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
        assert not [line for line in server.raw if '"serving"' in line]
