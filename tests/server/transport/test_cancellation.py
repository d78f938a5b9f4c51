"""Callers that leave: before, during and after; and deadlines, which are the same thing by the clock."""

import gc
import threading
import time
from collections.abc import Callable
from functools import partial

import grpc
import pytest
from served import WAIT_S, Served, wait_until

from forwardpass_server.transport.call import Call
from forwardpass_server.transport.unary import UnaryCall, monotonic_deadline

Serve = Callable[..., Served]
METHOD = "/test.Service/Wait"


class Desk:
    """A handler that answers nothing by itself, and hears who leaves."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.left: list[Call] = []
        self.left_on: set[str] = set()

    def __call__(self, call: Call, body: bytes) -> None:
        def leave() -> None:
            self.left.append(call)
            self.left_on.add(threading.current_thread().name)

        call.on_cancel(leave)
        self.calls.append(call)

    def took(self, count: int) -> bool:
        return wait_until(lambda: len(self.calls) == count)


def test_a_caller_that_leaves_is_noticed_while_its_call_waits(serve: Serve) -> None:
    desk = Desk()
    served = serve({METHOD: desk})
    future = served.unary(METHOD).future(b"")
    assert desk.took(1)
    assert desk.calls[0].cancelled is False
    began = time.monotonic()
    future.cancel()
    assert wait_until(lambda: desk.left == desk.calls)
    assert time.monotonic() - began < 5
    assert desk.left_on == {"loop"}
    assert wait_until(lambda: desk.calls[0].cancelled)
    assert served.quiet()
    assert served.server.stats.calls_cancelled == 1


def test_cancelled_is_kept_current_for_a_handler_that_only_looks(serve: Serve) -> None:
    calls: list[Call] = []
    served = serve({METHOD: lambda call, _: calls.append(call)})
    future = served.unary(METHOD).future(b"")
    assert wait_until(lambda: len(calls) == 1)
    future.cancel()
    assert wait_until(lambda: calls[0].cancelled)


@pytest.mark.parametrize("answer", [lambda c: c.reply(b""), lambda c: c.fail(13, "")], ids=["reply", "fail"])
def test_answering_a_caller_that_left_returns_false(serve: Serve, answer: Callable[[Call], bool]) -> None:
    desk = Desk()
    served = serve({METHOD: desk})
    future = served.unary(METHOD).future(b"")
    assert desk.took(1)
    future.cancel()
    assert wait_until(lambda: bool(desk.left))
    assert answer(desk.calls[0]) is False
    assert served.server.stats.calls_completed == 1


def test_on_cancel_runs_at_once_when_the_caller_has_left(serve: Serve) -> None:
    desk = Desk()
    future = serve({METHOD: desk}).unary(METHOD).future(b"")
    assert desk.took(1)
    future.cancel()
    assert wait_until(lambda: bool(desk.left))
    ran: list[str] = []
    desk.calls[0].on_cancel(lambda: ran.append(threading.current_thread().name))
    assert ran == [threading.current_thread().name]


def test_on_cancel_never_runs_after_the_answer(serve: Serve) -> None:
    desk = Desk()
    served = serve({METHOD: desk})
    future = served.unary(METHOD).future(b"")
    assert desk.took(1)
    assert desk.calls[0].reply(b"1") is True
    assert future.result() == b"1"
    future.cancel()
    desk.calls[0].on_cancel(lambda: desk.left.append(desk.calls[0]))
    assert served.quiet()
    assert desk.left == []
    assert served.server.stats.calls_cancelled == 0


def test_every_on_cancel_callback_runs_even_when_one_raises(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []

    def broken() -> None:
        raise KeyError("callback")

    def handler(call: Call, body: bytes) -> None:
        call.on_cancel(lambda: ran.append(1))
        call.on_cancel(broken)
        call.on_cancel(lambda: ran.append(2))

    served = serve({METHOD: handler})
    future = served.unary(METHOD).future(b"")
    assert wait_until(lambda: served.server.stats.calls_started == 1)
    future.cancel()
    assert wait_until(lambda: ran == [1, 2])
    assert "KeyError: 'callback'" in caplog.text


def test_a_deadline_cancels_by_itself(serve: Serve) -> None:
    desk = Desk()
    served = serve({METHOD: desk})
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(METHOD)(b"", timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert wait_until(lambda: desk.left == desk.calls)
    assert desk.calls[0].deadline <= time.monotonic() + 0.01  # the core keeps time by another clock, in milliseconds
    assert desk.calls[0].cancelled is True
    assert desk.calls[0].reply(b"late") is False


def test_a_passed_deadline_shows_before_the_core_says_so(serve: Serve) -> None:
    desk = Desk()
    served = serve({METHOD: desk})
    future = served.unary(METHOD).future(b"", timeout=1000)
    assert desk.took(1)
    call = desk.calls[0]
    assert isinstance(call, UnaryCall)
    call.deadline = time.monotonic()
    assert call.cancelled is True
    assert call.reply(b"1") is True
    assert future.result() == b"1"


def test_a_wall_clock_set_back_an_hour_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    wall_s = time.time()
    before = monotonic_deadline(wall_s + 10)
    monkeypatch.setattr(time, "time", lambda: wall_s)
    assert before == pytest.approx(time.monotonic() + 10, abs=1)
    monkeypatch.setattr(time, "time", lambda: wall_s - 3600)  # and the core's deadline with it
    assert monotonic_deadline(wall_s - 3600 + 10) == pytest.approx(time.monotonic() + 10, abs=1)


def test_a_call_cancelled_before_its_message_is_released(serve: Serve) -> None:
    """Headers only: the handler never runs, and nothing stays behind."""
    served = serve({METHOD: lambda call, body: pytest.fail("there is no message")})
    hold = threading.Event()

    def never() -> "list[bytes]":
        hold.wait(WAIT_S)
        return []

    def messages() -> "object":
        yield from never()

    future = served.channel().stream_unary(METHOD).future(messages())
    assert wait_until(lambda: served.server.stats.calls_started == 1)
    future.cancel()
    hold.set()
    assert served.quiet()


def has_begun(served: Served, calls: int) -> bool:
    return served.server.stats.calls_started == calls


@pytest.mark.parametrize("when", ["at once", "in the handler", "racing the answer"])
def test_a_thousand_callers_that_leave_each_end_once_and_leave_nothing(serve: Serve, when: str) -> None:
    desk = Desk()
    answers: list[bool] = []

    def race(call: Call, body: bytes) -> None:
        desk(call, body)
        if when == "racing the answer":
            threading.Thread(target=lambda: answers.append(call.reply(body))).start()

    served = serve({METHOD: race})
    multi = served.unary(METHOD)
    for count in range(1000):
        future = multi.future(b"")
        if when != "at once":
            assert wait_until(partial(has_begun, served, count + 1))
        future.cancel()
    assert served.quiet()
    stats = served.server.stats
    assert stats.calls_started == stats.calls_completed
    if when == "racing the answer":
        assert wait_until(lambda: len(answers) == len(desk.calls))
    assert all(isinstance(call, UnaryCall) for call in desk.calls)  # none at all, where all left before their message
    desk.calls.clear()
    desk.left.clear()
    del future
    gc.collect()
    alive = [each for each in gc.get_objects() if type(each) is UnaryCall]
    assert len(alive) <= 1, "calls that ended are still held"


def test_two_hundred_deadlines_that_pass_at_once_harm_nobody(serve: Serve) -> None:
    desk = Desk()
    served = serve({METHOD: desk, "/test.Service/Echo": lambda call, body: call.reply(body)})
    multi = served.unary(METHOD)
    futures = [multi.future(b"", timeout=0.2) for _ in range(200)]
    assert {future.code() for future in futures} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert served.unary("/test.Service/Echo")(b"1", timeout=10) == b"1"
    assert served.quiet()
    assert all(call.cancelled for call in desk.calls)
