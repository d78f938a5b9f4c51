"""Every rpc of the protocol has an answer, and no bytes get anything out of a handler but a status."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forwardpass_proto
from forwardpass_server.rpc.status import Code

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

SERVICES = ["inference.GRPCInferenceService", "grpc.health.v1.Health"]
METHODS = {
    f"/{service}/{method.name}": method.client_streaming or method.server_streaming
    for service in SERVICES
    for method in forwardpass_proto.POOL.FindServiceByName(service).methods
}
OFF = [
    method.name for method in forwardpass_proto.POOL.FindServiceByName(SERVICES[0]).methods if "Shared" in method.name
]


def test_every_method_has_a_handler_of_its_kind(server: "Server") -> None:
    assert {path for path, streams in METHODS.items() if streams} == server.built.streams.keys()
    assert {path for path, streams in METHODS.items() if not streams} == server.built.unary.keys()


@pytest.mark.parametrize("name", OFF)
def test_what_is_off_says_so_and_how_it_goes_on(server: "Server", name: str) -> None:
    result = server.fake.unary(f"/inference.GRPCInferenceService/{name}", b"")
    assert result.code == Code.UNIMPLEMENTED
    assert result.message == f"{name} is off: start the server with --enable-shared-memory"


@pytest.mark.parametrize("path", [path for path, streams in METHODS.items() if not streams])
@given(body=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_bytes_end_in_an_answer_that_is_not_our_fault(
    server: "Server", models: "Models", path: str, body: bytes
) -> None:
    assert server.fake.unary(path, body).code in (
        0,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
        Code.UNAVAILABLE,
        Code.UNIMPLEMENTED,
    )


def test_two_servers_live_in_one_process(server: "Server", models: "Models") -> None:
    other = type(server)(type(models)())
    server.health.leave()
    assert not server.health.ready()
    assert other.health.ready()
