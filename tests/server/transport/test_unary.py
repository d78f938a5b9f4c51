"""One message each way, over real sockets, with grpcio's own clients."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from functools import partial

import grpc
import grpc.aio
import pytest
from served import Served, wait_until

from forwardpass_server.transport.call import AlreadyAnswered, Call
from forwardpass_server.transport.completion_queue import CompletionQueueServer
from forwardpass_server.transport.options import TransportOptions
from forwardpass_server.transport.unary import UnaryCall

Serve = Callable[..., Served]
ECHO = "/test.Service/Echo"
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈 100%\t\n"


def echo(call: Call, body: bytes) -> None:
    call.reply(body)


def refusal(multi: grpc.UnaryUnaryMultiCallable, body: bytes = b"", **kwargs: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        multi(body, timeout=10, **kwargs)
    return caught.value


@pytest.mark.parametrize("body", [b"", b"x", bytes(271_828), bytes(range(256)) * 16_000], ids=len)
def test_bytes_come_back_as_they_went(serve: Serve, body: bytes) -> None:
    assert serve({ECHO: echo}).unary(ECHO)(body, timeout=10) == body


def test_an_asyncio_client_is_served_as_well(serve: Serve) -> None:
    served = serve({ECHO: echo})

    async def ask() -> list[bytes]:
        async with grpc.aio.insecure_channel(served.target) as channel:
            multi = channel.unary_unary(ECHO)
            return list(await asyncio.gather(*(multi(b"%d" % n, timeout=10) for n in range(100))))

    assert asyncio.run(ask()) == [b"%d" % n for n in range(100)]


def test_a_call_says_who_calls_what_and_when(serve: Serve) -> None:
    seen: list[Call] = []
    before_ns = time.monotonic_ns()

    def look(call: Call, body: bytes) -> None:
        seen.append(call)
        assert call.cancelled is False
        assert call.identity() == {}
        assert call.peer.startswith("ipv4:127.0.0.1:")
        call.reply(body)

    serve({ECHO: look}).unary(ECHO)(b"", timeout=7)
    (call,) = seen
    assert call.method == ECHO
    assert before_ns < call.received_ns < time.monotonic_ns()
    assert 0 < call.deadline - time.monotonic() < 7.1  # the core rounds, and keeps time by clocks of its own


def test_no_deadline_is_infinity(serve: Serve) -> None:
    seen: list[float] = []

    def look(call: Call, body: bytes) -> None:
        seen.append(call.deadline)
        call.reply(body)

    serve({ECHO: look}).unary(ECHO)(b"")
    assert seen == [math.inf]


METADATA = (
    ("x-text", "~!@#$%^&*()_+ {}|:\"<>?[]\\;',./`"),
    ("x-empty", ""),
    ("x-twice", "1"),
    ("x-twice", "2"),
    ("x-bin", bytes(range(256))),
    ("x-empty-bin", b""),
)


def test_metadata_goes_both_ways_text_and_binary(serve: Serve) -> None:
    def mirror(call: Call, body: bytes) -> None:
        sent = tuple(pair for pair in call.metadata if pair[0].startswith("x-"))
        call.reply(body, trailers=sent, metadata=sent)

    _, rpc = serve({ECHO: mirror}).unary(ECHO).with_call(b"", metadata=METADATA, timeout=10)
    for came in (rpc.initial_metadata(), rpc.trailing_metadata()):
        assert tuple(tuple(pair) for pair in came if pair[0].startswith("x-")) == METADATA


def test_a_failure_carries_code_words_and_trailers(serve: Serve) -> None:
    def fail(call: Call, body: bytes) -> None:
        assert call.fail(8, "the queue is full", (("grpc-retry-pushback-ms", "40"), ("why-bin", b"\x00\xff"))) is True

    error = refusal(serve({ECHO: fail}).unary(ECHO))
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
    trailers = dict(error.trailing_metadata())
    assert trailers["grpc-retry-pushback-ms"] == "40"
    assert trailers["why-bin"] == b"\x00\xff"


@pytest.mark.parametrize("code", range(1, 17))
def test_every_status_code_arrives(serve: Serve, code: int) -> None:
    error = refusal(serve({ECHO: lambda call, _: call.fail(code, "so it is")}).unary(ECHO))
    assert error.code().value[0] == code


@pytest.mark.parametrize("code", [-1, 0, 17])
def test_a_failure_that_is_none_is_an_error_of_the_handler(serve: Serve, code: int) -> None:
    error = refusal(serve({ECHO: lambda call, _: call.fail(code, "")}).unary(ECHO))
    assert error.details() == f"on_error saw ValueError: a failure needs a gRPC status code from 1 to 16, got {code}"


@pytest.mark.parametrize("words", [SPECIAL, "", "%41", "\x00\x01\x7f", "日本語" * 20])
def test_status_details_arrive_intact(serve: Serve, words: str) -> None:
    assert refusal(serve({ECHO: lambda call, _: call.fail(3, words)}).unary(ECHO)).details() == words


@pytest.mark.parametrize("unit", ["a", "\n", "日", "😈"])
def test_a_message_of_any_length_reaches_a_caller_with_default_limits(serve: Serve, unit: str) -> None:
    error = refusal(serve({ECHO: lambda call, _: call.fail(3, unit * 100_000)}).unary(ECHO))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(unit * 300)
    assert error.details().endswith(" … (cut)")


def test_a_lone_surrogate_in_a_message_does_no_harm(serve: Serve) -> None:
    assert refusal(serve({ECHO: lambda call, _: call.fail(3, "a\ud800b")}).unary(ECHO)).details() == "a?b"


@pytest.mark.parametrize("method", ["/test.Service/Nothing", "/", "/a", "//", "/a/b/c", "/" + "x" * 5000])
def test_an_unknown_method_is_unimplemented_by_its_name(serve: Serve, method: str) -> None:
    error = refusal(serve({ECHO: echo}).unary(method))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert method[:100] in error.details()
    assert len(error.details()) < 200


def test_an_unknown_method_may_be_answered_otherwise() -> None:
    seen: list[str] = []

    def unknown(method: str) -> tuple[int, str]:
        seen.append(method)
        return 5, "elsewhere"

    server = CompletionQueueServer(TransportOptions(port=0), {}, {}, on_error=lambda _: (13, ""), unknown=unknown)
    port = server.bind()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert refusal(channel.unary_unary("/a/b")).details() == "elsewhere"
    finally:
        server.stop(drain_s=0, grace_s=1)
        thread.join()
    assert seen == ["/a/b"]


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_unary_method_asked_with_none_or_several_messages_is_answered_once(serve: Serve, count: int) -> None:
    multi = serve({ECHO: echo}).channel().stream_unary(ECHO)
    if count:
        assert multi(iter([b"%d" % n for n in range(count)]), timeout=10) == b"0"
        return
    error = refusal(multi, iter(()))  # type: ignore[arg-type]
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == f"{ECHO} takes exactly one request message, got none"


@pytest.mark.parametrize("second", [lambda c: c.reply(b"2"), lambda c: c.fail(3, "2")], ids=["reply", "fail"])
@pytest.mark.parametrize("first", [lambda c: c.reply(b"1"), lambda c: c.fail(9, "1")], ids=["reply", "fail"])
def test_a_second_answer_raises_and_the_first_stands(
    serve: Serve, first: Callable[[Call], object], second: Callable[[Call], object]
) -> None:
    raised: list[BaseException] = []

    def twice(call: Call, _body: bytes) -> None:
        first(call)
        try:
            second(call)
        except AlreadyAnswered as error:
            raised.append(error)

    multi = serve({ECHO: twice}).unary(ECHO)
    try:
        assert multi(b"", timeout=10) == b"1"
    except grpc.RpcError as error:
        assert error.details() == "1"  # noqa: PT017
    assert wait_until(lambda: bool(raised))
    assert [str(error) for error in raised] == [f"{ECHO} was answered twice"]


def has_told(wins: list[int], losses: list[int], count: int) -> bool:
    return len(wins) + len(losses) == count


def test_of_many_threads_that_answer_at_once_exactly_one_wins(serve: Serve) -> None:
    wins: list[int] = []
    losses: list[int] = []

    def race(call: Call, _body: bytes) -> None:
        barrier = threading.Barrier(8)

        def answer(number: int) -> None:
            barrier.wait()
            try:
                call.reply(b"%d" % number)
                wins.append(number)
            except AlreadyAnswered:
                losses.append(number)

        for number in range(8):
            threading.Thread(target=answer, args=(number,)).start()

    multi = serve({ECHO: race}).unary(ECHO)
    for count in range(1, 31):
        body = multi(b"", timeout=10)
        assert wait_until(partial(has_told, wins, losses, count * 8))
        assert wins[-1] == int(body)
        assert len(wins) == count


def test_another_thread_may_answer_later(serve: Serve) -> None:
    def later(call: Call, body: bytes) -> None:
        threading.Timer(0.02, call.reply, (body,)).start()

    multi = serve({ECHO: later}).unary(ECHO)
    futures = [multi.future(b"%d" % n, timeout=10) for n in range(50)]
    assert [future.result() for future in futures] == [b"%d" % n for n in range(50)]


def test_an_exception_out_of_a_handler_is_answered_through_on_error(serve: Serve) -> None:
    def broken(_call: Call, _body: bytes) -> None:
        raise KeyError("weights")

    served = serve({ECHO: broken})
    error = refusal(served.unary(ECHO))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "on_error saw KeyError: 'weights'")
    assert refusal(served.unary(ECHO)).details() == error.details()


def test_an_exception_after_the_answer_is_logged_and_the_answer_stands(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(call: Call, body: bytes) -> None:
        call.reply(body)
        raise KeyError("too late")

    assert serve({ECHO: broken}).unary(ECHO)(b"1", timeout=10) == b"1"
    assert wait_until(lambda: "raised after answering" in caplog.text)


def test_an_on_error_that_fails_itself_gives_internal_without_text(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_call: Call, _body: bytes) -> None:
        raise KeyError("SECRET")

    def worse(_error: BaseException) -> tuple[int, str]:
        raise OSError("SECRET as well")

    error = refusal(serve({ECHO: broken}, on_error=worse).unary(ECHO))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "SECRET as well" in caplog.text


@pytest.mark.parametrize(
    ("trailers", "words"),
    [
        ((("Upper", "x"),), "metadata key 'Upper' must consist of"),
        ((("", "x"),), "metadata key '' must consist of"),
        ((("a b", "x"),), "metadata key 'a b' must consist of"),
        ((("x", "line\nend"),), "must be printable ASCII text"),
        ((("x", "ü"),), "must be printable ASCII text"),
        ((("x", b"bytes"),), "must be printable ASCII text"),
        ((("x-bin", "text"),), "its value must be bytes, got str"),
        (((7, "x"),), "metadata key 7 must consist of"),
    ],
)
@pytest.mark.parametrize("where", ["trailers", "metadata"])
def test_metadata_that_http2_cannot_carry_is_refused_and_the_call_can_still_be_answered(
    serve: Serve, trailers: tuple[tuple[str, str]], words: str, where: str
) -> None:
    def handler(call: Call, body: bytes) -> None:
        call.reply(body, **{where: trailers})

    assert words in refusal(serve({ECHO: handler}).unary(ECHO)).details()


@pytest.mark.parametrize("body", [None, "text", 7, memoryview(b"x")])
def test_a_reply_that_is_not_bytes_is_refused_and_the_call_can_still_be_answered(serve: Serve, body: object) -> None:
    error = refusal(serve({ECHO: lambda call, _: call.reply(body)}).unary(ECHO))
    assert error.details().startswith("on_error saw TypeError: a message must be bytes, got ")


def test_the_core_is_asked_about_the_caller_only_for_calls_that_wait(serve: Serve) -> None:
    """The promise of the hot path: three events for a call answered by its handler or by `on_idle`, four for others."""
    calls: list[UnaryCall] = []
    waiting: list[UnaryCall] = []

    def keep(call: Call, _body: bytes) -> None:
        assert isinstance(call, UnaryCall)
        calls.append(call)
        if call.method.endswith("Now"):
            call.reply(b"")
        elif call.method.endswith("Idle"):
            waiting.append(call)

    def idle() -> bool:
        worked = bool(waiting)
        while waiting:
            waiting.pop().reply(b"")
        return worked

    methods = ("/s/Now", "/s/Idle", "/s/Later")
    served = serve(dict.fromkeys(methods, keep), on_idle=idle)
    channel = served.channel()
    for method in methods[:2]:
        channel.unary_unary(method)(b"", timeout=10)
    future = channel.unary_unary(methods[2]).future(b"", timeout=10)
    assert wait_until(lambda: len(calls) == 3 and calls[2]._watched)
    calls[2].reply(b"")
    future.result()
    assert [call._watched for call in calls] == [False, False, True]
