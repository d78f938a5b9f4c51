"""The repository index."""

from typing import TYPE_CHECKING

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle.states import State
from forwardpass_server.rpc.repository import WORDS
from forwardpass_server.rpc.status import Code

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

INDEX = "/inference.GRPCInferenceService/RepositoryIndex"


def rows(server: "Server", *, ready: bool = False) -> list[tuple[str, str, str, str]]:
    reply = server.get(pb.RepositoryIndexResponse, INDEX, pb.RepositoryIndexRequest(ready=ready))
    return [(row.name, row.version, row.state, row.reason) for row in reply.models]


def test_the_index_has_every_version_with_its_state_and_reason(server: "Server", models: "Models") -> None:
    models.add("double", 2)
    models.know("double", 10, State.FAILED, "model.onnx: sha256 differs from the manifest")
    models.know("digits", 1, State.WARMING)
    assert rows(server) == [
        ("digits", "1", "LOADING", ""),
        ("double", "2", "READY", ""),
        ("double", "10", "UNAVAILABLE", "model.onnx: sha256 differs from the manifest"),
    ]


def test_ready_leaves_out_the_rest(server: "Server", models: "Models") -> None:
    models.add("double", 2)
    models.know("double", 3, State.DRAINING)
    models.know("digits", 1, State.WARMING)
    assert rows(server, ready=True) == [("double", "2", "READY", "")]


def test_an_empty_repository_has_an_empty_index(server: "Server") -> None:
    assert rows(server) == []


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_word_of_the_protocol(state: State) -> None:
    assert WORDS[state] in {"READY", "UNAVAILABLE", "LOADING", "UNLOADING"}


def test_a_named_repository_is_not_served(server: "Server") -> None:
    result = server.fake.unary(INDEX, pb.RepositoryIndexRequest(repository_name="other").SerializeToString())
    assert result.code == Code.UNIMPLEMENTED
    assert "leave repository_name empty" in result.message
