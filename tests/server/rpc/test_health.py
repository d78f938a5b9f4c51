"""grpc.health.v1: Check, List, and watches that are told of each change once."""

from typing import TYPE_CHECKING

import pytest

from forwardpass_proto import health_pb2 as pb
from forwardpass_server.lifecycle.states import State
from forwardpass_server.rpc import health
from forwardpass_server.rpc.status import Code
from forwardpass_server.transport.fake import FakeStream

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

CHECK, LIST, WATCH = (f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch"))
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def check(server: "Server", service: str) -> int:
    return server.get(pb.HealthCheckResponse, CHECK, pb.HealthCheckRequest(service=service)).status


def watch(server: "Server", service: str) -> FakeStream:
    stream = server.fake.stream(WATCH)
    stream.say(pb.HealthCheckRequest(service=service).SerializeToString())
    stream.half_close()
    return stream


def heard(stream: FakeStream) -> list[int]:
    return [pb.HealthCheckResponse.FromString(body).status for body in stream.heard]


def test_three_kinds_of_service(server: "Server", models: "Models") -> None:
    models.add("double", 1)
    models.know("loading", 1, State.LOADING)
    models.is_ready = False
    assert check(server, "") == check(server, "inference.GRPCInferenceService") == NOT_SERVING
    assert check(server, "liveness") == SERVING
    assert check(server, "double") == SERVING
    assert check(server, "loading") == NOT_SERVING
    models.is_ready = True
    assert check(server, "") == check(server, "inference.GRPCInferenceService") == SERVING


def test_an_unknown_service_is_not_found(server: "Server") -> None:
    result = server.ask(CHECK, pb.HealthCheckRequest(service="nobody"))
    assert (result.code, "nobody" in result.message) == (Code.NOT_FOUND, True)


def test_a_leaving_server_serves_nothing_but_its_liveness(server: "Server", models: "Models") -> None:
    models.add("double", 1)
    server.health.leave()
    assert [check(server, service) for service in ("", "double", "liveness")] == [NOT_SERVING, NOT_SERVING, SERVING]


def test_list_has_every_service(server: "Server", models: "Models") -> None:
    models.add("double", 1)
    models.know("loading", 1, State.LOADING)
    statuses = server.get(pb.HealthListResponse, LIST, pb.HealthListRequest()).statuses
    assert {name: each.status for name, each in statuses.items()} == {
        "": SERVING,
        "inference.GRPCInferenceService": SERVING,
        "liveness": SERVING,
        "double": SERVING,
        "loading": NOT_SERVING,
    }


def test_a_watch_hears_the_status_at_once_and_then_each_change_once(server: "Server", models: "Models") -> None:
    streams = {name: watch(server, name) for name in ("", "double")}
    assert heard(streams["double"]) == [SERVICE_UNKNOWN]
    models.know("double", 1, State.LOADING)
    server.health.changed()
    server.health.changed()
    models.add("double", 1)
    server.health.changed()
    server.health.leave()
    assert heard(streams["double"]) == [SERVICE_UNKNOWN, NOT_SERVING, SERVING, NOT_SERVING]
    assert heard(streams[""]) == [SERVING, NOT_SERVING]
    assert not any(stream.answered for stream in streams.values())


def test_a_watcher_who_left_is_forgotten(server: "Server", models: "Models") -> None:
    leaving, staying = watch(server, ""), watch(server, "")
    leaving.cancel()
    models.is_ready = False
    server.health.changed()
    assert heard(leaving) == [SERVING]
    assert heard(staying) == [SERVING, NOT_SERVING]
    assert len(server.health._watches) == 1


def test_a_stopping_server_ends_its_watches(server: "Server") -> None:
    stream = watch(server, "")
    server.health.close()
    assert stream.result().code == Code.UNAVAILABLE
    server.health.changed()
    assert heard(stream) == [SERVING]


def test_watches_are_bounded(server: "Server", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WATCHES_MAX", 2)
    first, _ = watch(server, ""), watch(server, "")
    refused = watch(server, "")
    assert refused.result().code == Code.RESOURCE_EXHAUSTED
    first.cancel()
    assert heard(watch(server, "")) == [SERVING]


@pytest.mark.parametrize("bodies", [[], [b"\xff"], [b"", b""]])
def test_a_watch_that_is_none_is_refused_and_leaves_nothing(server: "Server", bodies: list[bytes]) -> None:
    stream = server.fake.stream(WATCH)
    stream.say(*bodies)
    stream.half_close()
    assert stream.result().code == Code.INVALID_ARGUMENT
    assert not server.health._watches
