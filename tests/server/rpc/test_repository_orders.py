"""RepositoryModelLoad and RepositoryModelUnload: what reaches the manager, and what the caller hears."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.access.gate import Gate
from forwardpass_server.access.levels import Level
from forwardpass_server.errors import InvalidRequest, NotReady, Stopping
from forwardpass_server.rpc.status import Code

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
UNLOAD = "/inference.GRPCInferenceService/RepositoryModelUnload"


class Ordered:
    """What the manager was asked for; answers when the test says so."""

    def __init__(self, models: "Models") -> None:
        self.orders: list[tuple[Any, ...]] = []
        self.answers: list[Callable[[Exception | None], None]] = []
        models.order_load = self.load  # type: ignore[attr-defined]
        models.order_unload = self.unload  # type: ignore[attr-defined]

    def load(self, model: str, config: str | None, answer: Callable[[Exception | None], None]) -> None:
        self.orders.append(("load", model, config))
        self.answers.append(answer)

    def unload(self, model: str, answer: Callable[[Exception | None], None], *, with_steps: bool) -> None:
        self.orders.append(("unload", model, with_steps))
        self.answers.append(answer)


class Everybody(Gate):
    """Lets everybody pass."""

    def is_open(self, level: Level) -> bool:
        return True


@pytest.fixture
def server(server_with: Callable[..., "Server"]) -> "Server":
    return server_with(gate=Everybody())


@pytest.fixture
def ordered(models: "Models") -> Ordered:
    return Ordered(models)


def parameter(**choice: Any) -> pb.ModelRepositoryParameter:
    return pb.ModelRepositoryParameter(**choice)


@pytest.mark.parametrize(
    ("method", "key", "value", "part"),
    [
        (LOAD, "file:1/model.onnx", parameter(bytes_param=b"x"), "files are not taken from requests"),
        (LOAD, "file:../../etc/cron.d/x", parameter(bytes_param=b"x"), "files are not taken from requests"),
        (LOAD, "unload_dependents", parameter(bool_param=True), "unknown parameter 'unload_dependents'"),
        (LOAD, "config", parameter(bytes_param=b"{}"), "'config' is a string_param, got bytes_param"),
        (LOAD, "config", parameter(), "got nothing"),
        (UNLOAD, "config", parameter(string_param="{}"), "unknown parameter 'config'"),
        (UNLOAD, "unload_dependents", parameter(string_param="true"), "is a bool_param, got string_param"),
    ],
)
def test_a_parameter_that_cannot_be_obeyed_is_refused(
    server: "Server", ordered: Ordered, method: str, key: str, value: pb.ModelRepositoryParameter, part: str
) -> None:
    kind = pb.RepositoryModelLoadRequest if method == LOAD else pb.RepositoryModelUnloadRequest
    result = server.ask(method, kind(model_name="m", parameters={key: value}))
    assert result.code == Code.INVALID_ARGUMENT
    assert part in result.message
    assert ordered.orders == []


@pytest.mark.parametrize("method", [LOAD, UNLOAD])
def test_a_named_repository_is_not_served(server: "Server", ordered: Ordered, method: str) -> None:
    # KServe's own messages put the model's name where Triton's have the repository's.
    result = server.fake.unary(method, pb.RepositoryModelLoadRequest(repository_name="m").SerializeToString())
    assert result.code == Code.UNIMPLEMENTED
    assert ordered.orders == []


def test_orders_reach_the_manager_and_are_answered_when_it_says_so(server: "Server", ordered: Ordered) -> None:
    load = pb.RepositoryModelLoadRequest(model_name="m", parameters={"config": parameter(string_param='{"a": 1}')})
    unload = pb.RepositoryModelUnloadRequest(
        model_name="m", parameters={"unload_dependents": parameter(bool_param=True)}
    )
    calls = [server.fake.begin(LOAD, load.SerializeToString()), server.fake.begin(UNLOAD, unload.SerializeToString())]
    assert ordered.orders == [("load", "m", '{"a": 1}'), ("unload", "m", True)]
    for answer in ordered.answers:
        answer(None)
    assert [call.result().code for call in calls] == [0, 0]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("load failed for model 'm': version 2: no graph"), Code.INVALID_ARGUMENT),
        (Stopping("the server is going away"), Code.UNAVAILABLE),
        (RuntimeError("a secret"), Code.INTERNAL),
    ],
)
def test_what_went_wrong_reaches_the_caller(server: "Server", ordered: Ordered, error: Exception, code: Code) -> None:
    call = server.fake.begin(LOAD, pb.RepositoryModelLoadRequest(model_name="m").SerializeToString())
    ordered.answers[0](error)
    result = call.result()
    assert result.code == code
    assert ("secret" in result.message) is False
    assert code is Code.INTERNAL or result.message == str(error)


def test_a_refused_order_is_refused_at_once(server: "Server", ordered: Ordered, models: "Models") -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise NotReady("--model-control-mode=explicit obeys requests")

    models.order_load = models.order_unload = refuse  # type: ignore[attr-defined]
    for method in (LOAD, UNLOAD):
        result = server.ask(method, pb.RepositoryModelLoadRequest(model_name="m"))
        assert (result.code, result.message) == (Code.UNAVAILABLE, "--model-control-mode=explicit obeys requests")
