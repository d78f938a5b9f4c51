"""The gate before the handlers of a whole server."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import forwardpass_proto
from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.access.gate import Credentials, Gate
from forwardpass_server.access.levels import Level, level_of
from forwardpass_server.rpc.status import Code

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

INFERENCE = "/inference.GRPCInferenceService/"
METHODS = [
    (f"/{service}/{method.name}", method.client_streaming or method.server_streaming)
    for service in ("inference.GRPCInferenceService", "grpc.health.v1.Health")
    for method in forwardpass_proto.POOL.FindServiceByName(service).methods
]


class Held:
    def __init__(self, token: str) -> None:
        self.token = token

    def holds(self, token: str) -> bool:
        return token == self.token


GATE = Gate(Credentials(tokens=Held("user")), Credentials(tokens=Held("admin")))


def shown(token: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


@pytest.fixture
def closed(server_with: Callable[..., "Server"]) -> "Server":
    return server_with(gate=GATE)


@pytest.mark.parametrize(("path", "streams"), METHODS)
def test_without_credentials_only_the_open_rpcs_answer(closed: "Server", path: str, streams: bool) -> None:
    if streams:
        stream = closed.fake.stream(path)
        if level_of(path) is Level.OPEN:
            stream.cancel()  # a watch ends by nothing else
        result = stream.result()
    else:
        result = closed.fake.unary(path, b"")
    assert (result.code == Code.UNAUTHENTICATED) is (level_of(path) is not Level.OPEN)


@pytest.mark.parametrize(("path", "streams"), METHODS)
def test_with_credentials_no_rpc_is_refused_for_them(closed: "Server", path: str, streams: bool) -> None:
    if not streams:
        code = closed.fake.unary(path, b"", **shown("admin")).code
        assert code not in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)


@pytest.mark.parametrize("name", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_load_and_unload_are_refused_where_there_are_no_admins(server: "Server", name: str) -> None:
    result = server.fake.unary(INFERENCE + name, b"", **shown("admin"))
    assert result.code == Code.PERMISSION_DENIED
    assert "--enable-admin" in result.message


def test_a_refused_request_touches_no_model(
    closed: "Server", models: "Models", request_for: Callable[..., pb.ModelInferRequest]
) -> None:
    session = models.add("double", 1)
    assert closed.infer(request_for()).code == Code.UNAUTHENTICATED
    assert session.runs == []
    assert models.held("double") == 0
    assert closed.infer(request_for(), **shown("user")).code == 0
    assert len(session.runs) == 1


def test_a_refused_answer_does_not_say_what_is_there(
    closed: "Server", models: "Models", request_for: Callable[..., pb.ModelInferRequest]
) -> None:
    models.add("double", 1)
    known, unknown = (closed.infer(request_for(model)) for model in ("double", "nothing"))
    assert (known.code, known.message) == (unknown.code, unknown.message)
