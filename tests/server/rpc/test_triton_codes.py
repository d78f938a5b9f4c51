"""The codes that Triton has, where they were asked for; and nothing else changed by it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.rpc.status import NEVER_RETRY, Code
from forwardpass_server.rpc.triton_codes import code_there
from forwardpass_server.scheduling.policy import Limits

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

Make = Callable[..., pb.ModelInferRequest]


@pytest.fixture
def server(server_with: Callable[..., "Server"]) -> "Server":
    return server_with(triton_codes=True)


@pytest.mark.parametrize("code", Code)
def test_only_what_triton_does_not_have_is_translated(code: Code) -> None:
    there = {Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}
    assert code_there(code, ()) == (Code.UNAVAILABLE if code in there else code)
    assert code_there(code, (NEVER_RETRY,)) == code


def test_a_full_queue_is_unavailable(server: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1, limits=Limits(max_requests=1, max_rows=1))
    session.hold()
    begun = [server.begin(request_for()), server.begin(request_for())]
    server.until(lambda: len(session.runs) == 1)
    begun.append(server.begin(request_for()))
    refused = server.infer(request_for())
    session.release()
    assert refused.code == Code.UNAVAILABLE
    assert "is full (1 requests)" in refused.message
    assert [call.result().code for call in begun].count(0) == 2


def test_a_late_request_is_unavailable_and_a_wrong_one_still_wrong(
    server: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1)
    session.hold()
    server.begin(request_for())
    server.until(lambda: len(session.runs) == 1)
    late = request_for()
    late.parameters["timeout"].int64_param = 1
    call = server.begin(late)
    session.release()
    assert call.result().code == Code.UNAVAILABLE
    assert server.infer(request_for(rows=99)).code == Code.INVALID_ARGUMENT
    assert server.infer(request_for("nothing")).code == Code.NOT_FOUND
    assert server.infer(request_for()).code == 0


def test_what_is_closed_is_unavailable(server: "Server") -> None:
    result = server.fake.unary("/inference.GRPCInferenceService/RepositoryModelLoad", b"")
    assert (result.code, "--enable-admin" in result.message) == (Code.UNAVAILABLE, True)


def test_streams_that_end_by_an_error_end_with_tritons_code(
    server: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1, limits=Limits(max_requests=1, max_rows=1))
    session.hold()
    stream: Any = server.fake.stream(
        "/inference.GRPCInferenceService/ModelStreamInfer", metadata=(("triton_grpc_error", "true"),)
    )
    bodies = [request_for().SerializeToString() for _ in range(4)]
    stream.say(*bodies)
    server.until(lambda: len(session.runs) == 1)
    session.release()
    assert stream.result().code == Code.UNAVAILABLE
