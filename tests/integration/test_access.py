"""Tokens and certificates, by the server's own flags, with our client and with stock grpcio."""

import os
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import forwardpass
from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

USER, ADMIN = "user-token-0123456789", "admin-token-0123456789"
X = np.ones((2, 3), np.float32)


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "data.tokens").write_text(f"{USER}\n")
    (tmp_path / "admin.tokens").write_text(f"# the night shift\n{ADMIN}\n")
    return (
        f"--data-token-file={tmp_path / 'data.tokens'}",
        f"--admin-token-file={tmp_path / 'admin.tokens'}",
        "--enable-admin",
        "--model-control-mode=explicit",
    )


def call(server: Any, method: str, request: Any, response: Any, token: str | None) -> Any:
    path = method if "/" in method else f"/inference.GRPCInferenceService/{method}"
    unary = server.client().channel.unary_unary(path, lambda message: message.SerializeToString(), response.FromString)
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    return unary(request, timeout=20, metadata=metadata)


def code(server: Any, method: str, request: Any, response: Any, token: str | None) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call(server, method, request, response, token)
    return caught.value.code()


def refused(server: Any, method: str, request: Any, response: Any, token: str) -> bool:
    try:
        call(server, method, request, response, token)
    except grpc.RpcError:
        return True
    return False


def test_each_token_opens_what_it_is_for_and_is_replaced_in_service(
    serve: Any, publish: Any, tokens: tuple[str, ...], tmp_path: Path
) -> None:
    publish("scale", 2.0)
    load, loaded = pb.RepositoryModelLoadRequest(model_name="scale"), pb.RepositoryModelLoadResponse
    with serve(*tokens) as server:
        address = server.wait_for("serving")["address"]
        health = call(
            server,
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest(),
            health_pb2.HealthCheckResponse,
            None,
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        for token, expected in (
            (None, grpc.StatusCode.UNAUTHENTICATED),
            ("wrong-token-0123456789", grpc.StatusCode.UNAUTHENTICATED),
            (USER, grpc.StatusCode.PERMISSION_DENIED),
        ):
            assert code(server, "RepositoryModelLoad", load, loaded, token) is expected
        call(server, "RepositoryModelLoad", load, loaded, ADMIN)

        with forwardpass.Client(address, token=USER) as client:
            np.testing.assert_array_equal(client.infer("scale", {"x": X})["y"], 2 * X)
        with forwardpass.Client(address) as client, pytest.raises(forwardpass.errors.Unauthenticated) as caught:
            client.infer("scale", {"x": X})
        assert "needs credentials, and none were shown" in str(caught.value)

        new = tmp_path / "new"
        new.write_text("another-token-0123456789\n")
        os.replace(new, tmp_path / "data.tokens")
        metadata, about = pb.ModelMetadataRequest(name="scale"), pb.ModelMetadataResponse

        give_up = time.monotonic() + 20
        while refused(server, "ModelMetadata", metadata, about, "another-token-0123456789"):
            assert time.monotonic() < give_up
        assert code(server, "ModelMetadata", metadata, about, USER) is grpc.StatusCode.UNAUTHENTICATED
        assert not [line for line in server.raw if "token-0123456789" in line], "no token is ever logged"
        server.terminate()
        assert server.wait() == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--enable-admin",), "who is an admin?"),
        (("--admin-token-file=x",), "need --enable-admin"),
        (("--data-subject=alice",), "--tls-client-ca"),
    ],
)
def test_settings_that_would_open_or_close_by_accident_are_refused(
    serve: Any, flags: tuple[str, ...], reason: str
) -> None:
    with serve(*flags) as server:
        assert server.wait() == 1
        assert reason in "".join(server.raw)
