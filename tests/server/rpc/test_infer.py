"""ModelInfer end to end over fakes: answers, refusals, callers who leave; a lease is given back exactly once."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import RunFailed
from forwardpass_server.lifecycle.states import State
from forwardpass_server.rpc.status import Code
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

Make = Callable[..., pb.ModelInferRequest]

TWO_OUTPUTS = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 4)),),
    (TensorSpec("y", dtypes.FP32, ("batch", 4)), TensorSpec("rows", dtypes.INT64, ("batch",))),
    max_batch_size=8,
)


@pytest.fixture(autouse=True)
def nothing_left_behind(models: "Models") -> "object":
    """Whatever a test did to the server: no lease is held and nothing waits or runs when it is over."""
    yield
    for leases in models.table.serving.values():
        assert leases.held == 0
        assert leases.version.scheduler.inflight == 0


def test_an_answer_names_the_version_the_id_and_the_output(
    server: "Server", models: "Models", request_for: Make
) -> None:
    models.add("double", 3)
    result = server.infer(request_for(rows=2, value=1.5, id="req-7"))
    assert result.code == 0
    assert result.body is not None
    reply = pb.ModelInferResponse.FromString(result.body)
    assert (reply.model_name, reply.model_version, reply.id) == ("double", "3", "req-7")
    assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [("y", "FP32", [2, 4])]
    assert np.frombuffer(reply.raw_output_contents[0], "<f4").tolist() == [3.0] * 8
    server.until(lambda: models.held("double") == 0)


def test_only_the_outputs_asked_for_come_in_the_order_asked(
    server: "Server", models: "Models", request_for: Make
) -> None:
    models.add("two", 1, TWO_OUTPUTS, compute=lambda inputs: [inputs[0], np.arange(len(inputs[0]))])
    for wanted in (["rows"], ["rows", "y"], []):
        message = request_for("two", rows=2)
        message.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in wanted)
        result = server.infer(message)
        assert result.body is not None, result
        reply = pb.ModelInferResponse.FromString(result.body)
        assert [output.name for output in reply.outputs] == (wanted or ["y", "rows"])
        assert len(reply.raw_output_contents) == len(reply.outputs)
    server.until(lambda: models.held("two") == 0)


@pytest.mark.parametrize("body", [b"", b"\xff", b"\x2a\x05ab", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_request_are_refused_and_the_next_is_served(
    server: "Server", models: "Models", request_for: Make, body: bytes
) -> None:
    models.add("double", 1)
    result = server.fake.unary("/inference.GRPCInferenceService/ModelInfer", body)
    assert result.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)
    assert server.infer(request_for()).code == 0
    server.until(lambda: models.held("double") == 0)


@pytest.mark.parametrize(
    ("model", "version", "code"),
    [
        ("nobody", "", Code.NOT_FOUND),
        ("double", "2", Code.NOT_FOUND),
        ("double", "v1", Code.INVALID_ARGUMENT),
        ("double", "01", Code.INVALID_ARGUMENT),
        ("double", "-1", Code.INVALID_ARGUMENT),
        ("../etc/passwd", "", Code.NOT_FOUND),
        ("loading", "", Code.UNAVAILABLE),
        ("loading", "1", Code.UNAVAILABLE),
    ],
)
def test_models_and_versions_that_do_not_serve(
    server: "Server", models: "Models", request_for: Make, model: str, version: str, code: Code
) -> None:
    models.add("double", 1)
    models.know("loading", 1, State.LOADING)
    result = server.infer(request_for(model, model_version=version))
    assert result.code == code
    assert model in result.message or version in result.message


def test_what_does_not_fit_the_model_says_why_and_is_counted(
    server: "Server", models: "Models", request_for: Make
) -> None:
    models.add("double", 1)
    message = request_for()
    message.raw_input_contents[0] = bytes(20)
    result = server.infer(message)
    assert (result.code, result.message) == (
        Code.INVALID_ARGUMENT,
        "input 'x': expected 16 bytes for FP32 [1, 4], got 20",
    )
    assert models.scheduler("double").statistics.snapshot().outcomes["invalid"] == 1
    assert models.held("double") == 0


def test_a_failed_run_is_internal_and_tells_an_id_but_no_text(
    server: "Server", models: "Models", request_for: Make, caplog: pytest.LogCaptureFixture
) -> None:
    models.add("double", 1, poison=13.0, error=RunFailed("secret path /models/x"))
    result = server.infer(request_for(value=13.0))
    assert result.code == Code.INTERNAL
    found = re.fullmatch(r"internal error, id=([0-9a-f]{32}); the server's log says more", result.message)
    assert found
    logged = [record for record in caplog.records if found[1] in record.getMessage()]
    assert len(logged) == 1
    assert "secret path" in logged[0].getMessage()
    assert server.infer(request_for()).code == 0
    server.until(lambda: models.held("double") == 0)


def test_an_answer_that_cannot_be_encoded_is_internal_and_lets_go(
    server: "Server", models: "Models", request_for: Make
) -> None:
    models.add("double", 1, compute=lambda inputs: [np.zeros((1, 4), "<f8")])  # the graph says FP32
    assert server.infer(request_for()).code == Code.INTERNAL
    server.until(lambda: models.held("double") == 0)


def test_a_full_queue_says_when_to_retry(server: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1, limits=Limits(max_requests=2))
    session.hold()
    running = server.begin(request_for())
    assert session.wait_runs(1)
    waiting = [server.begin(request_for()) for _ in range(2)]
    result = server.infer(request_for())
    session.release()
    assert result.code == Code.RESOURCE_EXHAUSTED
    assert "2" in result.message
    ((key, value),) = result.trailers
    assert key == "grpc-retry-pushback-ms"
    assert int(value) >= 1
    assert [call.result().code for call in (running, *waiting)] == [0, 0, 0]
    server.until(lambda: models.held("double") == 0)


def test_a_caller_who_left_while_waiting_is_not_run_and_lets_go(
    server: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1)
    session.hold()
    running = server.begin(request_for(value=1.0))
    assert session.wait_runs(1)
    leaving = server.begin(request_for(value=2.0))
    leaving.cancel()
    session.release()
    assert running.result().code == 0
    assert server.infer(request_for(value=3.0)).code == 0
    server.until(lambda: models.held("double") == 0)
    seen = {float(run.inputs[0].flat[0]) for run in session.runs if run.inputs[0] is not None}
    assert seen == {1.0, 3.0}


def test_a_caller_who_left_while_running_lets_go(server: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1)
    session.hold()
    call = server.begin(request_for())
    assert session.wait_runs(1)
    call.cancel()
    session.release()
    server.until(lambda: models.held("double") == 0)
    assert call.result().code == Code.CANCELLED


@pytest.mark.parametrize("how", ["deadline", "timeout"])
def test_a_request_that_expires_while_waiting_is_never_run(
    server: "Server", models: "Models", request_for: Make, how: str
) -> None:
    session = models.add("double", 1)
    session.hold()
    running = server.begin(request_for(value=1.0))
    assert session.wait_runs(1)
    message = request_for(value=2.0)
    if how == "timeout":
        message.parameters["timeout"].int64_param = 1  # µs
    late = server.begin(message, deadline_s=1e-6 if how == "deadline" else None)
    session.release()
    assert late.result().code == Code.DEADLINE_EXCEEDED
    assert running.result().code == 0
    server.until(lambda: models.held("double") == 0)
    assert len(session.runs) == 1


def test_a_swap_serves_new_requests_by_the_new_version(server: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1)
    first = server.infer(request_for())
    models.add("double", 2)
    second = server.infer(request_for())
    third = server.infer(request_for(model_version="1"))
    versions = [
        pb.ModelInferResponse.FromString(result.body).model_version
        for result in (first, second, third)
        if result.body is not None
    ]
    assert versions == ["1", "2", "1"]
    server.until(lambda: all(leases.held == 0 for leases in models.table.serving.values()))


def test_parameters_that_are_hints_are_accepted(server: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1)
    message = request_for()
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 60_000_000
    message.parameters["sequence_id"].int64_param = 0
    message.parameters["my_own"].string_param = "anything"
    assert server.infer(message).code == 0
    server.until(lambda: models.held("double") == 0)


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("triton_other", {"bool_param": True}, Code.INVALID_ARGUMENT),
        ("triton_enable_empty_final_response", {"int64_param": 1}, Code.INVALID_ARGUMENT),
        ("priority", {"int64_param": -1}, Code.INVALID_ARGUMENT),
        ("priority", {"string_param": "1"}, Code.INVALID_ARGUMENT),
        ("timeout", {"bool_param": True}, Code.INVALID_ARGUMENT),
        ("timeout", {"double_param": 1.0}, Code.INVALID_ARGUMENT),
        ("sequence_id", {"int64_param": 7}, Code.INVALID_ARGUMENT),
        ("sequence_id", {"string_param": "a"}, Code.INVALID_ARGUMENT),
        ("sequence_id", {"bool_param": True}, Code.INVALID_ARGUMENT),
        ("sequence_id", {"double_param": 7.0}, Code.INVALID_ARGUMENT),
        ("sequence_id", {"string_param": "n" * 129}, Code.INVALID_ARGUMENT),
        ("sequence_start", {"bool_param": True}, Code.INVALID_ARGUMENT),
        ("sequence_start", {"int64_param": 1}, Code.INVALID_ARGUMENT),
        ("sequence_end", {"string_param": "true"}, Code.INVALID_ARGUMENT),
    ],
)
def test_parameters_that_cannot_be_honoured_are_refused_by_name(
    server: "Server", models: "Models", request_for: Make, key: str, value: dict[str, object], code: Code
) -> None:
    session = models.add("double", 1)
    message = request_for()
    message.parameters[key].MergeFrom(pb.InferParameter(**value))  # type: ignore[arg-type]
    result = server.infer(message)
    assert result.code == code
    assert key in result.message
    assert not session.runs


def test_stamps_are_in_order(server: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1)
    assert server.infer(request_for()).code == 0
    server.until(lambda: models.scheduler("double").statistics.snapshot().success.count == 1)
    account = models.scheduler("double").statistics.snapshot()
    assert 0 < account.queue.ns + account.compute_infer.ns + account.compute_output.ns <= account.success.ns
    server.until(lambda: models.held("double") == 0)
