"""ModelStatistics: the same figures as the account, by version, with numeric versions and queues that count."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle.states import State
from forwardpass_server.rpc.status import Code

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"
Make = Callable[..., pb.ModelInferRequest]


def statistics(server: "Server", name: str = "", version: str = "") -> list[pb.ModelStatistics]:
    request = pb.ModelStatisticsRequest(name=name, version=version)
    return list(server.get(pb.ModelStatisticsResponse, STATISTICS, request).model_stats)


def test_each_stage_is_counted_once_a_request(server: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 7)
    for _ in range(3):
        assert server.infer(request_for(rows=2)).code == 0
    assert server.infer(request_for(rows=9)).code == Code.INVALID_ARGUMENT
    server.until(lambda: models.scheduler("double").statistics.snapshot().success.count == 3)
    (found,) = statistics(server, "double", "7")
    stats = found.inference_stats
    assert (found.name, found.version) == ("double", "7")
    assert (found.inference_count, found.execution_count) == (6, 3)
    stages = [stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output]
    assert [stage.count for stage in (stats.success, *stages)] == [3] * 5
    assert 0 < sum(stage.ns for stage in stages) <= stats.success.ns
    assert (stats.fail.count, stats.fail.ns > 0) == (1, True)
    assert found.last_inference > 1_600_000_000_000
    (batch,) = found.batch_stats
    assert (batch.batch_size, batch.compute_infer.count, batch.compute_output.count) == (2, 3, 3)
    assert batch.compute_infer.ns == stats.compute_infer.ns  # each request rode alone
    assert batch.compute_output.ns == stats.compute_output.ns


def test_a_version_that_served_nobody_has_zeros(server: "Server", models: "Models") -> None:
    models.add("double", 1)
    (found,) = statistics(server, "double")
    assert (found.inference_count, found.execution_count, found.last_inference) == (0, 0, 0)
    assert found.inference_stats.success.count == 0


def test_no_version_means_all_of_the_model_and_no_name_all_models(server: "Server", models: "Models") -> None:
    for model, number in (("a", 1), ("a", 2), ("b", 10)):
        models.add(model, number)
    assert [(s.name, s.version) for s in statistics(server, "a")] == [("a", "1"), ("a", "2")]
    assert [(s.name, s.version) for s in statistics(server)] == [("a", "1"), ("a", "2"), ("b", "10")]
    assert all(int(s.version) > 0 for s in statistics(server))


@pytest.mark.parametrize(
    ("name", "version", "code"),
    [
        ("nobody", "", Code.NOT_FOUND),
        ("double", "3", Code.NOT_FOUND),
        ("double", "x", Code.INVALID_ARGUMENT),
        ("loading", "", Code.UNAVAILABLE),
    ],
)
def test_what_does_not_serve_is_an_error(
    server: "Server", models: "Models", name: str, version: str, code: Code
) -> None:
    models.add("double", 1)
    models.know("loading", 1, State.LOADING)
    assert server.ask(STATISTICS, pb.ModelStatisticsRequest(name=name, version=version)).code == code
