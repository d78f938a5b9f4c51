"""The trailer that says where the time of a request went, for those who ask."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from forwardpass_proto import grpc_service_pb2 as pb

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

Make = Callable[..., pb.ModelInferRequest]


def test_who_asks_is_told_each_stage_the_batch_and_what_ran_it(
    server: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 4)
    session.hold()
    running = server.begin(request_for())
    assert session.wait_runs(1)
    asking = server.begin(request_for(rows=2), metadata=(("forwardpass-timing", "1"),))
    mate = server.begin(request_for(rows=3))
    session.release()
    assert running.result().code == mate.result().code == 0
    ((name, text),) = asking.result().trailers
    assert name == "forwardpass-timing"
    report = json.loads(text)
    stages = ["decode_us", "check_us", "queue_us", "stack_us", "run_us", "encode_us"]
    assert list(report) == [*stages, "total_us", "batch_rows", "model_version", "provider"]
    assert all(report[stage] >= 0 for stage in stages)
    assert abs(sum(report[stage] for stage in stages) - report["total_us"]) < 1  # roundings apart
    assert (report["batch_rows"], report["model_version"], report["provider"]) == (5, "4", "FakeExecutionProvider")
    server.until(lambda: models.held("double") == 0)


def test_who_does_not_ask_is_told_nothing(server: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1)
    assert server.infer(request_for()).trailers == ()
    assert server.infer(request_for(), metadata=(("forwardpass-timing", "0"),)).trailers == ()
    server.until(lambda: models.held("double") == 0)
