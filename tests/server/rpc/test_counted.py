"""Calls, counted: each once, by its code, before its answer leaves."""

from collections.abc import Callable

import pytest

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.observe.metrics import CallMetrics
from forwardpass_server.rpc.counted import counted, counted_stream
from forwardpass_server.transport.call import Call, StreamCall
from forwardpass_server.transport.fake import FakeServer

UNARY, STREAM = "/s.S/Unary", "/s.S/Stream"


def figures(account: CallMetrics) -> tuple[int, dict[str, int]]:
    started, codes, _, _ = account.read()
    return started, codes


def served(
    account: CallMetrics,
    unary: Callable[[Call, bytes], None] | None = None,
    stream: Callable[[StreamCall], "Talker"] | None = None,
) -> FakeServer:
    return FakeServer(
        {UNARY: counted(unary, account)} if unary else {},
        {STREAM: counted_stream(stream, account)} if stream else {},
        on_error=lambda error: (13, "from the transport"),
    )


def test_an_answer_is_counted_as_ok_and_arrives_as_it_was_given() -> None:
    account = CallMetrics()

    def reply(call: Call, body: bytes) -> None:
        assert (call.method, call.cancelled) == (UNARY, False)
        assert ("key", "value") in call.metadata
        assert figures(account) == (1, {})
        call.reply(body * 2, (("t", "1"),))
        assert figures(account) == (1, {"OK": 1})

    result = served(account, reply).unary(UNARY, b"ab", metadata=(("key", "value"),))
    assert (result.code, result.body, result.trailers) == (0, b"abab", (("t", "1"),))


@pytest.mark.parametrize(("code", "name"), [(3, "INVALID_ARGUMENT"), (14, "UNAVAILABLE"), (9, "UNKNOWN")])
def test_a_failure_is_counted_by_the_name_of_its_code(code: int, name: str) -> None:
    account = CallMetrics()
    result = served(account, lambda call, body: void(call.fail(code, "why"))).unary(UNARY, b"")
    assert (result.code, result.message) == (code, "why")
    assert figures(account) == (1, {name: 1})


def test_durations_are_measured_from_the_arrival_of_the_message() -> None:
    account = CallMetrics()
    served(account, lambda call, body: void(call.reply(b""))).unary(UNARY, b"")
    _, _, buckets, total_s = account.read()
    assert buckets[-1][1] == 1
    assert 0 <= total_s < 5


def void(_: object) -> None:
    """For lambdas that return nothing."""


class Talker:
    """A stream handler: echoes, fails on "bad", ends at half-close."""

    def __init__(self, call: StreamCall) -> None:
        self.call = call
        self.left = False

    def on_message(self, body: bytes) -> None:
        if body == b"bad":
            raise InvalidRequest("not that")
        self.call.send(body)

    def on_half_close(self) -> None:
        self.call.finish()

    def on_cancel(self) -> None:
        self.left = True


def talking(account: CallMetrics) -> tuple[FakeServer, list[Talker]]:
    made: list[Talker] = []

    def make(call: StreamCall) -> Talker:
        made.append(Talker(call))
        return made[-1]

    return served(account, stream=make), made


def test_an_answer_that_came_too_late_is_counted_as_what_became_of_the_call() -> None:
    account = CallMetrics()
    kept: list[Call] = []
    server = served(account, lambda call, body: kept.append(call))
    server.begin(UNARY, b"").cancel()
    assert kept[0].reply(b"") is False
    assert figures(account) == (1, {"CANCELLED": 1})
    server.begin(UNARY, b"", deadline_s=0.0)
    kept[1].reply(b"")
    assert figures(account) == (2, {"CANCELLED": 1, "DEADLINE_EXCEEDED": 1})


def test_a_stream_is_counted_once_when_it_ends() -> None:
    account = CallMetrics()
    server, _ = talking(account)
    stream = server.stream(STREAM)
    stream.say(b"a", b"b")
    assert stream.heard == [b"a", b"b"]
    assert figures(account) == (1, {})
    stream.half_close()
    assert stream.result().code == 0
    assert figures(account) == (1, {"OK": 1})


def test_a_stream_whose_caller_leaves_is_cancelled_and_its_handler_told() -> None:
    account = CallMetrics()
    server, made = talking(account)
    server.stream(STREAM).cancel()
    assert made[0].left
    assert figures(account) == (1, {"CANCELLED": 1})


def test_an_error_of_a_stream_becomes_its_status_and_the_handler_lets_go() -> None:
    account = CallMetrics()
    server, made = talking(account)
    stream = server.stream(STREAM)
    stream.say(b"a", b"bad", b"never read")
    assert (stream.result().code, stream.result().message) == (3, "not that")
    assert stream.heard == [b"a"]
    assert made[0].left
    assert figures(account) == (1, {"INVALID_ARGUMENT": 1})


def test_a_stream_that_cannot_begin_is_counted_as_ours() -> None:
    def broken(call: StreamCall) -> Talker:
        raise ZeroDivisionError

    account = CallMetrics()
    result = served(account, stream=broken).stream(STREAM).result()
    assert result.code == 13
    assert figures(account) == (1, {"INTERNAL": 1})


def test_what_a_stream_may_do_it_may_do_through_the_coat() -> None:
    account = CallMetrics()
    server, made = talking(account)
    stream = server.stream(STREAM, metadata=(("key", "value"),))
    call = made[0].call
    assert (call.method, call.cancelled, call.backlog, call.peer) == (STREAM, False, 0, "fake:caller")
    assert call.metadata == (("key", "value"),)
    assert call.identity() == {}
    assert call.received_ns > 0
    call.pause_reading()
    stream.say(b"held back")
    assert stream.heard == []
    call.resume_reading()
    assert stream.heard == [b"held back"]
    assert call.fail(14, "gone") is True
    assert figures(account) == (1, {"UNAVAILABLE": 1})
