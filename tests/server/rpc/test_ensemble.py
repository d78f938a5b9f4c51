"""Requests through the steps of an ensemble: what fails in a step, callers who leave between two, what is let go."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest, RunFailed
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.rpc.status import Code
from forwardpass_server.scheduling.ensemble import EnsembleScheduler, Step
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec
from forwardpass_server.transport.fake import FakeResult

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

Make = Callable[..., pb.ModelInferRequest]

SIGNATURE = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 4)),),
    (TensorSpec("end", dtypes.FP32, ("batch", 4)), TensorSpec("middle", dtypes.FP32, ("batch", 4))),
    max_batch_size=8,
)


def step(number: int, model: str, takes: str, makes: str) -> Step:
    return Step(number=number, model=model, version="", inputs=(("x", takes),), outputs=(("y", makes),))


CHAIN = (step(1, "first", "x", "middle"), step(2, "second", "middle", "end"))
FORK = (step(1, "first", "x", "middle"), step(2, "second", "x", "end"))


@pytest.fixture
def serve(server: "Server", models: "Models") -> Iterator[Callable[..., EnsembleScheduler]]:
    """Makes model "both", of steps "first" and "second"."""

    def make(steps: tuple[Step, ...] = CHAIN, max_requests: int = 100) -> EnsembleScheduler:
        scheduler = EnsembleScheduler(
            "both",
            steps,
            SIGNATURE,
            lend=models.lease,
            on_loop=server.fake.call_soon,
            max_requests=max_requests,
        )
        models.serve(
            LoadedVersion(
                model="both",
                number=1,
                signature=SIGNATURE,
                scheduler=scheduler,
                settings=ModelSettings(),
                provider="ensemble",
                proved=True,
                sha256="",
                properties={},
                release_session=lambda: None,
                platform="ensemble",
            )
        )
        return scheduler

    yield make
    server.until(lambda: all(leases.held == 0 for leases in models.table.serving.values()))
    for leases in models.table.serving.values():
        assert leases.version.scheduler.inflight == 0


Serve = Callable[..., EnsembleScheduler]


def values(result: FakeResult) -> dict[str, float]:
    """The first element of each output."""
    assert result.body is not None, result
    reply = pb.ModelInferResponse.FromString(result.body)
    return {
        output.name: float(np.frombuffer(raw, "<f4")[0])
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def test_what_one_step_makes_the_next_takes(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    first, second = models.add("first", 1), models.add("second", 4)
    serve()
    assert values(server.infer(request_for("both", rows=3, value=1.5))) == {"end": 6.0, "middle": 3.0}
    assert [len(first.runs), len(second.runs)] == [1, 1]
    assert second.runs[0].rows == 3


def test_only_what_is_asked_for_comes_and_it_does_not_wait_for_the_rest(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    models.add("first", 1)
    second = models.add("second", 1)
    serve()
    message = request_for("both")
    message.outputs.add(name="middle")
    assert values(server.infer(message)) == {"middle": 2.0}
    assert second.runs == []


def test_steps_that_do_not_need_each_other_run_at_once(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    first, second = models.add("first", 1), models.add("second", 1)
    first.hold()
    second.hold()
    serve(FORK)
    call = server.begin(request_for("both"))
    assert first.wait_runs(1)
    assert second.wait_runs(1)
    first.release()
    second.release()
    assert values(call.result()) == {"end": 2.0, "middle": 2.0}


def test_requests_of_several_callers_share_the_runs_of_a_step(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    first = models.add("first", 1)
    models.add("second", 1)
    first.hold()
    serve()
    calls = [server.begin(request_for("both", value=number)) for number in range(6)]
    assert first.wait_runs(1)
    first.release()
    assert [values(call.result())["end"] for call in calls] == [4.0 * number for number in range(6)]
    assert len(first.runs) < 6


@pytest.mark.parametrize(("bad", "other"), [("first", "second"), ("second", "first")])
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [(InvalidRequest("index 9"), Code.INVALID_ARGUMENT, True), (RunFailed("secret"), Code.INTERNAL, False)],
    ids=["caller", "server"],
)
def test_an_error_of_a_step_keeps_its_kind_and_names_the_step(
    server: "Server",
    models: "Models",
    serve: Serve,
    request_for: Make,
    caplog: pytest.LogCaptureFixture,
    bad: str,
    other: str,
    error: Exception,
    code: Code,
    told: bool,
) -> None:
    models.add(other, 1)
    session = models.add(bad, 1)
    scheduler = serve()
    session.fail_next = [error]
    result = server.infer(request_for("both"))
    number = {"first": 1, "second": 2}[bad]
    where = f"ensemble 'both', step {number} ('{bad}'): {error}"
    assert result.code == code
    assert (where in result.message) is told
    assert (where in caplog.text) is not told
    assert server.infer(request_for("both")).code == 0
    outcomes = scheduler.statistics.snapshot().outcomes
    assert (outcomes["ok"], outcomes["invalid"] + outcomes["failed"]) == (1, 1)


def test_of_two_steps_that_fail_the_caller_hears_one(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    for model in ("first", "second"):
        models.add(model, 1).fail_next = [InvalidRequest(model)]
    scheduler = serve(FORK)
    assert server.infer(request_for("both")).code == Code.INVALID_ARGUMENT
    server.until(lambda: all(leases.held == 0 for leases in models.table.serving.values()))
    assert scheduler.statistics.snapshot().outcomes["invalid"] == 1


def test_a_full_step_says_when_to_retry(server: "Server", models: "Models", serve: Serve, request_for: Make) -> None:
    first = models.add("first", 1, limits=Limits(max_requests=1))
    models.add("second", 1)
    first.hold()
    serve()
    running = server.begin(request_for("both"))
    assert first.wait_runs(1)
    waiting = server.begin(request_for("both"))
    result = server.infer(request_for("both"))
    first.release()
    assert result.code == Code.RESOURCE_EXHAUSTED
    assert "step 1 ('first')" in result.message
    assert result.trailers[0][0] == "grpc-retry-pushback-ms"
    assert [running.result().code, waiting.result().code] == [0, 0]


def test_a_full_ensemble_refuses_at_once(server: "Server", models: "Models", serve: Serve, request_for: Make) -> None:
    first = models.add("first", 1)
    models.add("second", 1)
    first.hold()
    scheduler = serve(max_requests=2)
    calls = [server.begin(request_for("both")) for _ in range(2)]
    result = server.infer(request_for("both"))
    assert scheduler.inflight == 2
    first.release()
    assert (result.code, "2 requests under way" in result.message) == (Code.RESOURCE_EXHAUSTED, True)
    assert [call.result().code for call in calls] == [0, 0]


def test_a_step_that_is_not_there_is_named(server: "Server", models: "Models", serve: Serve, request_for: Make) -> None:
    models.add("first", 1)
    serve()
    result = server.infer(request_for("both"))
    assert result.code == Code.NOT_FOUND
    assert "step 2 ('second'): model 'second' is not found" in result.message


def test_a_tensor_that_its_step_does_not_take_is_named(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    models.add("first", 1, compute=lambda inputs: [inputs[0][:, :3]])
    models.add("second", 1)
    serve()
    result = server.infer(request_for("both"))
    assert result.code == Code.INVALID_ARGUMENT
    assert "step 2 ('second'): unexpected shape for input 'x'" in result.message


def test_a_caller_who_leaves_in_the_first_step_never_reaches_the_second(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    first, second = models.add("first", 1), models.add("second", 1)
    first.hold()
    scheduler = serve()
    call = server.begin(request_for("both"))
    assert first.wait_runs(1)
    call.cancel()
    first.release()
    server.until(lambda: scheduler.inflight == 0)
    assert second.runs == []
    assert scheduler.statistics.snapshot().outcomes["canceled"] == 1


def test_a_deadline_holds_for_all_steps_together(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    first, second = models.add("first", 1), models.add("second", 1)
    second.hold()
    scheduler = serve()
    running = server.begin(request_for("both"))
    server.until(lambda: len(second.runs) == 1)
    message = request_for("both")
    message.parameters["timeout"].int64_param = 50_000  # µs: enough for the first step, which is idle
    late = server.begin(message)
    too_late = time.monotonic() + 0.05
    server.until(lambda: time.monotonic() > too_late)
    second.release()
    result = late.result()
    assert result.code == Code.DEADLINE_EXCEEDED
    assert "ensemble 'both', step" in result.message
    assert running.result().code == 0
    assert (len(first.runs), len(second.runs)) == (2, 1)
    assert scheduler.statistics.snapshot().outcomes["expired"] == 1


def test_where_its_time_went_is_told_as_for_any_model(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    models.add("first", 1)
    models.add("second", 1)
    serve()
    ((_, text),) = server.infer(request_for("both"), metadata=(("forwardpass-timing", "1"),)).trailers
    assert '"run_us":' in text
    assert '"provider":"ensemble"' in text


def test_closing_waits_for_what_is_under_way_and_refuses_newcomers(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    first = models.add("first", 1)
    models.add("second", 1)
    first.hold()
    scheduler = serve()
    call = server.begin(request_for("both"))
    assert not scheduler.close(timeout_s=0)
    assert server.infer(request_for("both")).code == Code.UNAVAILABLE
    first.release()
    assert call.result().code == 0
    assert scheduler.drain(10)


def test_a_loop_that_has_ended_leaves_nobody_waiting(
    server: "Server", models: "Models", serve: Serve, request_for: Make
) -> None:
    first = models.add("first", 1)
    models.add("second", 1)
    scheduler = serve()

    def ended(_function: Callable[[], None]) -> None:
        raise RuntimeError("the loop has ended")

    scheduler.on_loop = ended
    assert server.infer(request_for("both")).code == Code.UNAVAILABLE
    assert len(first.runs) == 1
