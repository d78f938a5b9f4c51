"""Models loaded and unloaded by request, one model mounted alone, and names that would forge a log."""

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb

TOKEN = "admin-token-0123456789"
X = np.ones((2, 3), np.float32)


@pytest.fixture
def explicit(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "tokens").write_text(TOKEN)
    return ("--model-control-mode=explicit", "--enable-admin", f"--admin-token-file={tmp_path / 'tokens'}")


class Admin:
    """Calls with a token."""

    def __init__(self, client: Any) -> None:
        self._channel = client.channel

    def _call(self, method: str, request: Any, response: Any, timeout_s: float) -> Any:
        path = f"/inference.GRPCInferenceService/{method}"
        unary = self._channel.unary_unary(path, lambda message: message.SerializeToString(), response.FromString)
        return unary.future(request, timeout=timeout_s, metadata=(("authorization", f"Bearer {TOKEN}"),))

    def load(self, model: str, timeout_s: float = 60.0, **parameters: pb.ModelRepositoryParameter) -> Any:
        request = pb.RepositoryModelLoadRequest(model_name=model, parameters=parameters)
        return self._call("RepositoryModelLoad", request, pb.RepositoryModelLoadResponse, timeout_s)

    def unload(self, model: str, timeout_s: float = 60.0) -> Any:
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        return self._call("RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse, timeout_s)

    def index(self) -> list[tuple[str, str, str]]:
        answer = self._call("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse, 20.0).result()
        return [(row.name, row.version, row.state) for row in answer.models]

    def config(self, model: str) -> Any:
        request = pb.ModelConfigRequest(name=model)
        return self._call("ModelConfig", request, pb.ModelConfigResponse, 20.0).result().config


def test_a_model_comes_and_goes_by_request(serve: Any, publish: Any, explicit: tuple[str, ...]) -> None:
    publish("scale", 2.0)
    with serve(*explicit) as server:
        client = server.client()
        admin = Admin(client)
        assert admin.index() == [("scale", "1", "UNAVAILABLE")]
        assert client.code("scale")[0] is grpc.StatusCode.NOT_FOUND
        admin.load("scale").result()
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        publish("scale", 3.0)
        assert client.infer("scale", X)[1] == "1", "nobody asked for the new one"
        admin.load("scale").result()
        np.testing.assert_array_equal(client.infer("scale", X)[0], 3 * X)
        override = pb.ModelRepositoryParameter(string_param=json.dumps({"version_policy": {"all": {}}}))
        admin.load("scale", config=override).result()
        assert admin.config("scale").version_policy.WhichOneof("policy_choice") == "all"
        assert {row[1:] for row in admin.index()} == {("1", "READY"), ("2", "READY")}
        admin.unload("scale").result()
        assert {row[2] for row in admin.index()} == {"UNAVAILABLE"}
        assert client.code("scale")[0] is grpc.StatusCode.NOT_FOUND
        server.terminate()
        assert server.wait() == 0


def test_a_broken_version_is_told_and_the_old_one_serves(serve: Any, publish: Any, explicit: tuple[str, ...]) -> None:
    publish("scale", 2.0)
    with serve(*explicit, "--load-model=scale") as server:
        client = server.client()
        publish("scale", 3.0, recorded=5.0)
        failed = Admin(client).load("scale")
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "load failed for model 'scale': version 2: golden example" in failed.details()
        assert failed.details().endswith("; version 1 serves")
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        assert (client.ready("scale", "1"), client.ready("scale", "2")) == (True, False)


def test_two_hundred_loads_and_unloads_at_once_end_in_the_last(
    serve: Any, publish: Any, explicit: tuple[str, ...]
) -> None:
    publish("scale", 2.0)
    with serve(*explicit) as server:
        admin = Admin(server.client())
        orders = [admin.load("scale", 120.0) if turn % 3 else admin.unload("scale", 120.0) for turn in range(200)]
        codes = {order.code() for order in orders}
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}, "unloaded though not loaded"
        admin.load("scale").result()
        assert admin.index() == [("scale", "1", "READY")]
        admin.unload("scale").result()
        assert admin.index() == [("scale", "1", "UNAVAILABLE")]
        server.terminate()
        assert server.wait() == 0


def test_a_stop_during_a_load_ends_in_time_and_cleanly(serve: Any, publish: Any, explicit: tuple[str, ...]) -> None:
    publish("slow", 2.0, slow=3000)
    with serve(*explicit, "--grace-s=20") as server:
        loading = Admin(server.client()).load("slow")
        server.wait_for("load ordered", model="slow")
        server.terminate()
        assert loading.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK)
        assert server.wait() == 0


def test_one_version_mounted_alone_is_served_by_the_name_it_is_given(serve: Any, root: Path, publish: Any) -> None:
    version = publish("scale", 2.0)
    for path in sorted(version.path.iterdir()):
        path.rename(root / path.name)
    version.path.rmdir()
    with serve("--model-name=wine") as server:
        np.testing.assert_array_equal(server.client().infer("wine", X)[0], 2 * X)


def test_names_from_outside_cannot_forge_a_log_line(serve: Any, publish: Any, explicit: tuple[str, ...]) -> None:
    publish("scale", 2.0)
    forged = 'scale\n{"level": "error", "message": "forged"}\r\x1b[31m'
    with serve(*explicit, "--log-level=debug") as server:
        client = server.client()
        admin = Admin(client)
        assert client.code(forged)[0] is grpc.StatusCode.NOT_FOUND
        assert admin.load(forged).code() is grpc.StatusCode.INVALID_ARGUMENT
        bad = pb.ModelRepositoryParameter(string_param=json.dumps({"name": forged}))
        assert admin.load("scale", config=bad).code() is grpc.StatusCode.INVALID_ARGUMENT
        server.terminate()
        assert server.wait() == 0
        ours = [line for line in server.raw if line.startswith("{")]
        assert ours
        assert "forged" not in {json.loads(line)["message"] for line in ours}
        assert all(line.isascii() and "\x1b" not in line for line in server.raw)
