"""Callers who leave: cases 19, 21 and 22."""

import random
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from conformance.process import IN_FLIGHT, QUEUED, REQUESTS, ServerProcess, wait_until
from conformance.wire import INFERENCE, Caller, ask, ok, trips, zeros

CANCELLED = grpc.StatusCode.CANCELLED
WORK = 3_000_000
"""Turns of the slow model: several seconds, for a caller who will not wait for them."""


case_19 = pytest.mark.case("19", "cancel before it waits", "CANCELLED within 100 ms; the model is not run")


@case_19
def test_a_call_cancelled_before_its_message_is_sent_ends_at_once(server: ServerProcess, caller: Caller) -> None:
    unsent = threading.Event()

    def nothing_yet() -> Iterator[bytes]:
        unsent.wait(30)
        yield from ()

    infer = caller.channel.stream_unary(f"{INFERENCE}/ModelInfer")
    calls = [infer.future(nothing_yet(), timeout=30) for _ in range(20)]
    begun = time.monotonic()
    for call in calls:
        call.cancel()
        assert call.code() is CANCELLED
    assert time.monotonic() - begun < 2
    unsent.set()


@case_19
def test_a_call_cancelled_while_its_message_is_sent_ends_at_once(server: ServerProcess, caller: Caller) -> None:
    request = ask("identity_uint8", zeros("UINT8", (1, 20_000_000)))
    for _ in range(10):
        pending = caller.begin(request)
        pending.cancel()
        outcome = pending.outcome()
        assert outcome.code is CANCELLED
        assert outcome.seconds < 0.1


case_21 = pytest.mark.case("21", "cancel while the model runs", "returns at once; result dropped; no crash")


@case_21
@pytest.mark.parametrize("count", [1, 8])
def test_a_call_cancelled_while_its_model_runs_returns(server: ServerProcess, caller: Caller, count: int) -> None:
    before = server.total(REQUESTS, model="slow", outcome="canceled")
    pending = [caller.begin(ask("slow", trips(WORK))) for _ in range(count)]
    wait_until(
        lambda: server.total(IN_FLIGHT, model="slow") == count and server.total(QUEUED, model="slow") < count,
        "the model is at work",
    )
    for each in pending:
        each.cancel()
        outcome = each.outcome()
        assert outcome.code is CANCELLED
        assert outcome.seconds < 3
    server.wait_until_idle()
    assert server.total(REQUESTS, model="slow", outcome="canceled") - before == count


@case_21
def test_a_run_that_nobody_waits_for_does_not_hold_up_other_models(server: ServerProcess, caller: Caller) -> None:
    pending = caller.begin(ask("slow", trips(WORK)))
    wait_until(lambda: server.total(IN_FLIGHT, model="slow") == 1, "the model is at work")
    pending.cancel()
    assert caller.infer(ask("mlp", zeros("FP32", (1, 10)))).seconds < 1


case_22 = pytest.mark.case("22", "cancel racing completion, x1000", "each call ends exactly once; clean log")


@case_22
@pytest.mark.parametrize("model", ["inline", "threaded"])
def test_a_thousand_cancels_that_race_their_answers_end_each_call_once(
    server: ServerProcess, caller: Caller, model: str
) -> None:
    request = ask("mlp", zeros("FP32", (1, 10))) if model == "inline" else ask("slow", trips(10))
    luck = random.Random(22)
    hold_s = 1e-3
    codes = []
    for _ in range(500):
        pair = [caller.begin(request), caller.begin(request)]
        # Whoever wins, the next cancel comes a little later or earlier: close to the answer, whatever the machine does.
        pair[1].spin(hold_s * luck.uniform(0.5, 1.5))
        pair[1].cancel()
        ok(pair[0].outcome())
        codes.append(pair[1].outcome().code)
        hold_s *= 1.1 if codes[-1] is CANCELLED else 0.9
    assert set(codes) == {grpc.StatusCode.OK, CANCELLED}, "the race was never won by both"
    server.wait_until_idle()
    server.assert_clean_log()


@case_22
def test_a_thousand_calls_cancelled_together_end_each_once(server: ServerProcess, caller: Caller) -> None:
    request = ask("slow", trips(1))
    pending = [caller.begin(request) for _ in range(1000)]
    for each in pending:
        each.cancel()
    assert {each.outcome().code for each in pending} <= {grpc.StatusCode.OK, CANCELLED}
    server.wait_until_idle()
    server.assert_clean_log()
