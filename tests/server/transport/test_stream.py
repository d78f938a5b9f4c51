"""Many messages each way, over real sockets."""

import gc
import operator
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import grpc
import pytest
from served import WAIT_S, Served, wait_until

from forwardpass_server.transport.call import AlreadyAnswered, StreamCall, StreamHandler
from forwardpass_server.transport.stream import HIGH_WATER, HIGH_WATER_BYTES, BidiCall

Serve = Callable[..., Served]
METHOD = "/test.Service/Talk"


class Talk:
    """A stream handler that writes down what it hears; tests subclass it."""

    def __init__(self, call: StreamCall) -> None:
        self.call = call
        self.heard: list[object] = []

    def on_message(self, body: bytes) -> None:
        self.heard.append(body)

    def on_half_close(self) -> None:
        self.heard.append("half-close")

    def on_cancel(self) -> None:
        self.heard.append("cancel")


class Echo(Talk):
    def on_message(self, body: bytes) -> None:
        super().on_message(body)
        self.call.send(body)

    def on_half_close(self) -> None:
        super().on_half_close()
        self.call.finish()


class Kept:
    """A factory that keeps its handlers."""

    def __init__(self, kind: type[Talk] = Talk) -> None:
        self.kind = kind
        self.made: list[Talk] = []

    def __call__(self, call: StreamCall) -> StreamHandler:
        self.made.append(self.kind(call))
        return self.made[-1]

    def only(self) -> Talk:
        assert wait_until(lambda: len(self.made) == 1)
        return self.made[0]


class Mouth:
    """Request messages given one by one."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def say(self, body: bytes) -> None:
        self._messages.put(body)

    def close(self) -> None:
        self._messages.put(None)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        body = self._messages.get(timeout=WAIT_S)
        if body is None:
            raise StopIteration
        return body


@pytest.fixture
def mouth() -> Iterator[Mouth]:
    made = Mouth()
    yield made
    made.close()


def test_every_message_is_answered_in_order(serve: Serve) -> None:
    kept = Kept(Echo)
    bodies = [b"%d" % n for n in range(1000)]
    assert list(serve({}, {METHOD: kept}).stream(METHOD)(iter(bodies), timeout=20)) == bodies
    assert kept.only().heard == [*bodies, "half-close"]


def test_ping_pong_answers_before_the_half_close(serve: Serve, mouth: Mouth) -> None:
    answers = serve({}, {METHOD: Echo}).stream(METHOD)(mouth, timeout=20)
    for n in range(50):
        mouth.say(b"%d" % n)
        assert next(answers) == b"%d" % n
    mouth.close()
    assert list(answers) == []


def test_a_stream_without_messages_ends_ok_with_none(serve: Serve) -> None:
    assert list(serve({}, {METHOD: Echo}).stream(METHOD)(iter(()), timeout=10)) == []


def test_one_request_may_have_many_answers_and_many_may_have_one(serve: Serve) -> None:
    class Count(Talk):
        def on_half_close(self) -> None:
            for n in range(200):
                self.call.send(b"%d" % n)
            self.call.finish()

    class Sum(Talk):
        def on_half_close(self) -> None:
            self.call.send(b"".join(body for body in self.heard if isinstance(body, bytes)))
            self.call.finish()

    channel = serve({}, {"/s/Count": Count, "/s/Sum": Sum}).channel()
    assert list(channel.unary_stream("/s/Count")(b"", timeout=10)) == [b"%d" % n for n in range(200)]
    assert channel.stream_unary("/s/Sum")(iter([b"a", b"b", b"c"]), timeout=10) == b"abc"


def test_large_messages_go_both_ways(serve: Serve) -> None:
    bodies = [bytes([n]) * 3_000_000 for n in range(10)]
    assert list(serve({}, {METHOD: Echo}).stream(METHOD)(iter(bodies), timeout=30)) == bodies


def test_a_stream_says_who_calls_what(serve: Serve) -> None:
    kept = Kept(Echo)
    list(serve({}, {METHOD: kept}).stream(METHOD)(iter([b""]), timeout=9, metadata=(("x-bin", b"\xff"),)))
    call = kept.only().call
    assert call.method == METHOD
    assert dict(call.metadata)["x-bin"] == b"\xff"
    assert 0 < call.deadline - time.monotonic() < 9
    assert 0 < call.received_ns < time.monotonic_ns()


def test_a_status_comes_after_the_messages_with_its_trailers(serve: Serve) -> None:
    class Fail(Talk):
        def on_message(self, body: bytes) -> None:
            self.call.send(b"1")
            self.call.send(b"2")
            self.call.finish(9, "tab\tand ☺", (("x", "1"), ("x-bin", b"\x00")))

    answers = serve({}, {METHOD: Fail}).stream(METHOD)(iter([b""]), timeout=10)
    heard: list[bytes] = []
    with pytest.raises(grpc.RpcError) as caught:
        heard.extend(answers)
    assert heard == [b"1", b"2"]
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "tab\tand ☺")
    trailers = dict(caught.value.trailing_metadata())
    assert (trailers["x"], trailers["x-bin"]) == ("1", b"\x00")


def test_a_stream_may_be_refused_by_its_factory(serve: Serve) -> None:
    class Refuse(Talk):
        def __init__(self, call: StreamCall) -> None:
            super().__init__(call)
            assert call.fail(7, "not you") is True

    served = serve({}, {METHOD: Refuse})
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stream(METHOD)(iter([b"1", b"2"]), timeout=10))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "not you")
    assert served.quiet()


@pytest.mark.parametrize("where", ["factory", "message", "half-close"])
def test_an_exception_out_of_a_handler_is_answered_and_the_handler_let_go(serve: Serve, where: str) -> None:
    class Broken(Talk):
        def __init__(self, call: StreamCall) -> None:
            super().__init__(call)
            self.check("factory")

        def on_message(self, body: bytes) -> None:
            self.check("message")

        def on_half_close(self) -> None:
            self.check("half-close")

        def check(self, here: str) -> None:
            if here == where:
                raise KeyError(here)

    kept = Kept(Broken)
    served = serve({}, {METHOD: kept})
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stream(METHOD)(iter([b""]), timeout=10))
    assert caught.value.details() == f"on_error saw KeyError: '{where}'"
    assert served.quiet()
    if where != "factory":
        talk = kept.only()
        assert wait_until(lambda: talk.heard == ["cancel"])
        assert talk.call.send(b"") is False
        assert talk.call.fail(3, "") is False


@pytest.mark.parametrize("late", ["send", "finish", "fail"])
def test_anything_after_the_status_raises(serve: Serve, late: str) -> None:
    raised: list[BaseException] = []

    class Twice(Talk):
        def on_message(self, body: bytes) -> None:
            self.call.finish()
            try:
                if late == "send":
                    self.call.send(b"")
                elif late == "finish":
                    self.call.finish()
                else:
                    self.call.fail(3, "")
            except AlreadyAnswered as error:
                raised.append(error)

    assert list(serve({}, {METHOD: Twice}).stream(METHOD)(iter([b""]), timeout=10)) == []
    assert wait_until(lambda: len(raised) == 1)


def test_a_caller_that_leaves_is_heard_once_and_nothing_more_can_be_sent(serve: Serve, mouth: Mouth) -> None:
    kept = Kept()
    served = serve({}, {METHOD: kept})
    answers = served.stream(METHOD)(mouth)
    mouth.say(b"1")
    talk = kept.only()
    assert wait_until(lambda: talk.heard == [b"1"])
    answers.cancel()
    assert wait_until(lambda: talk.heard[-1] == "cancel")
    assert talk.heard in ([b"1", "cancel"], [b"1", "half-close", "cancel"])
    assert talk.call.cancelled
    assert talk.call.send(b"") is False
    talk.call.finish()
    assert served.quiet()
    assert served.server.stats.calls_cancelled == 1


def test_a_caller_that_leaves_after_its_half_close_is_heard(serve: Serve) -> None:
    kept = Kept()
    served = serve({}, {METHOD: kept})
    answers = served.stream(METHOD)(iter([b"1"]))
    talk = kept.only()
    assert wait_until(lambda: talk.heard == [b"1", "half-close"])
    answers.cancel()
    assert wait_until(lambda: talk.heard == [b"1", "half-close", "cancel"])
    assert served.quiet()


def test_a_caller_that_leaves_between_answers_stops_the_sender(serve: Serve) -> None:
    """A generator that sends from its own thread sees False and can stop within one step."""
    stopped = threading.Event()

    class Endless(Talk):
        def on_message(self, body: bytes) -> None:
            threading.Thread(target=self.run).start()

        def run(self) -> None:
            writable = threading.Event()
            self.call.on_writable(writable.set)
            while self.call.send(b"token"):
                if self.call.backlog >= HIGH_WATER:
                    writable.wait(0.01)
                    writable.clear()
            stopped.set()

    served = serve({}, {METHOD: Endless})
    answers = served.channel().unary_stream(METHOD)(b"")
    for _ in range(10):
        next(answers)
    answers.cancel()
    assert stopped.wait(WAIT_S)
    assert served.quiet()


def test_a_deadline_ends_a_stream(serve: Serve, mouth: Mouth) -> None:
    kept = Kept()
    served = serve({}, {METHOD: kept})
    with pytest.raises(grpc.RpcError) as caught:
        list(served.stream(METHOD)(mouth, timeout=0.1))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    talk = kept.only()
    assert wait_until(lambda: talk.heard[-1:] == ["cancel"])
    assert served.quiet()


def test_a_connection_that_dies_cancels_its_streams(serve: Serve) -> None:
    kept = Kept()
    served = serve({}, {METHOD: kept})
    channel = served.channel()
    mouths = [Mouth() for _ in range(20)]
    calls = [channel.stream_stream(METHOD)(mouth) for mouth in mouths]
    assert wait_until(lambda: len(kept.made) == 20)
    channel.close()
    for mouth in mouths:
        mouth.close()
    assert wait_until(lambda: all(talk.heard[-1:] == ["cancel"] for talk in kept.made))
    assert all(talk.heard.count("cancel") == 1 for talk in kept.made)
    assert served.quiet()
    assert len(calls) == 20


def test_reading_waits_while_paused_and_goes_on_after(serve: Serve) -> None:
    class Slow(Talk):
        def on_message(self, body: bytes) -> None:
            super().on_message(body)
            self.call.pause_reading()

        def on_half_close(self) -> None:
            super().on_half_close()
            self.call.finish()

    kept = Kept(Slow)
    served = serve({}, {METHOD: kept})
    answers = served.stream(METHOD)(iter([b"1", b"2", b"3"]), timeout=20)
    talk = kept.only()
    for heard in ([b"1"], [b"1", b"2"], [b"1", b"2", b"3"]):
        assert wait_until(partial(operator.eq, talk.heard, heard))
        served.on_loop(lambda: None)
        assert talk.heard == heard
        talk.call.resume_reading()
    assert list(answers) == []
    assert talk.heard == [b"1", b"2", b"3", "half-close"]


@pytest.mark.parametrize(
    ("body_bytes", "most"), [(100_000, HIGH_WATER), (1 << 20, HIGH_WATER_BYTES >> 20)], ids=["messages", "bytes"]
)
def test_a_caller_that_does_not_read_is_not_read_either(serve: Serve, mouth: Mouth, body_bytes: int, most: int) -> None:
    """The backlog stops the reading at its high-water marks, and reading goes on when it has drained."""
    kept = Kept(Echo)
    served = serve({}, {METHOD: kept})
    body = bytes(body_bytes)
    answers = served.stream(METHOD, ("grpc.http2.lookahead_bytes", 1 << 16))(mouth, timeout=60)
    count = HIGH_WATER * 5
    for _ in range(count):
        mouth.say(body)
    talk = kept.only()
    assert wait_until(lambda: talk.call.backlog >= most, timeout_s=30)
    served.on_loop(lambda: None)
    heard = len(talk.heard)
    assert heard < count
    assert talk.call.backlog <= most + 1
    mouth.close()
    assert sum(1 for _ in answers) == count
    assert len(talk.heard) == count + 1


def test_on_writable_runs_on_the_loop_when_a_full_backlog_has_drained(serve: Serve) -> None:
    ran_on: list[str] = []

    class Burst(Talk):
        def on_message(self, body: bytes) -> None:
            self.call.on_writable(self.writable)
            for _ in range(HIGH_WATER * 3):
                self.call.send(bytes(100_000))

        def writable(self) -> None:
            ran_on.append(threading.current_thread().name)
            self.call.finish()

    answers = serve({}, {METHOD: Burst}).stream(METHOD)(iter([b""]), timeout=20)
    assert sum(1 for _ in answers) == HIGH_WATER * 3
    assert ran_on == ["loop"]


def test_a_caller_too_slow_for_the_bounded_backlog_is_failed(serve: Serve) -> None:
    sent: list[bool] = []

    class Flood(Talk):
        def on_message(self, body: bytes) -> None:
            super().on_message(body)
            while True:
                sent.append(self.call.send(bytes(1 << 20)))
                if not sent[-1]:
                    return

    kept = Kept(Flood)
    served = serve({}, {METHOD: kept}, max_stream_backlog_bytes=8 << 20)
    answers = served.channel().unary_stream(METHOD)(b"", timeout=20)
    talk = kept.only()
    assert wait_until(lambda: talk.heard == [b"", "cancel"])
    assert 8 <= len(sent) < 40
    assert sent.count(False) == 1
    assert talk.call.send(b"") is False
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "8 responses (8388608 bytes) wait for a caller that does not read them" in caught.value.details()
    assert served.quiet()


def test_a_message_beyond_the_limit_ends_the_stream_and_the_handler_hears(serve: Serve) -> None:
    kept = Kept(Echo)
    served = serve({}, {METHOD: kept}, max_message_bytes=1000)
    answers = served.stream(METHOD)(iter([bytes(1000), bytes(1001), b""]), timeout=10)
    heard: list[bytes] = []
    with pytest.raises(grpc.RpcError) as caught:
        heard.extend(answers)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert heard in ([bytes(1000)], [])
    talk = kept.only()
    assert wait_until(lambda: talk.heard == [bytes(1000), "cancel"])
    assert served.quiet()


@pytest.mark.parametrize("body", [None, "text", 7])
def test_a_message_that_is_not_bytes_is_refused(serve: Serve, body: object) -> None:
    class Wrong(Talk):
        def on_message(self, _body: bytes) -> None:
            self.call.send(body)  # type: ignore[arg-type]

    with pytest.raises(grpc.RpcError) as caught:
        list(serve({}, {METHOD: Wrong}).stream(METHOD)(iter([b""]), timeout=10))
    assert caught.value.details().startswith("on_error saw TypeError: a message must be bytes")


def test_threads_that_send_at_once_lose_nothing(serve: Serve) -> None:
    class Crowd(Talk):
        def on_message(self, body: bytes) -> None:
            threads = [threading.Thread(target=self.speak, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            threading.Thread(target=self.end, args=(threads,)).start()

        def speak(self, number: int) -> None:
            for n in range(250):
                assert self.call.send(b"%d:%d" % (number, n))

        def end(self, threads: list[threading.Thread]) -> None:
            for thread in threads:
                thread.join()
            self.call.finish()

    answers = list(serve({}, {METHOD: Crowd}).stream(METHOD)(iter([b""]), timeout=20))
    assert len(answers) == len(set(answers)) == 1000
    for number in range(4):
        mine = [int(a.split(b":")[1]) for a in answers if a.startswith(b"%d:" % number)]
        assert mine == list(range(250)), "each thread's messages keep their order"


def test_streams_that_ended_are_not_held(serve: Serve) -> None:
    served = serve({}, {METHOD: Echo})
    multi = served.stream(METHOD)
    for n in range(300):
        answers = multi(iter([b"1", b"2"]), timeout=10)
        if n % 3 == 0:
            answers.cancel()
        else:
            assert list(answers) == [b"1", b"2"]
    assert served.quiet()
    del answers
    gc.collect()
    assert len([each for each in gc.get_objects() if type(each) in (BidiCall, Echo)]) <= 1
    assert not served.server._loop.streams


def test_when_written_runs_once_on_the_loop_when_nothing_is_left(serve: Serve) -> None:
    ran: list[tuple[str, int]] = []

    class Burst(Talk):
        def on_message(self, body: bytes) -> None:
            for _ in range(20):
                self.call.send(bytes(100_000))
            for _ in range(2):
                self.call.when_written(self.written)

        def written(self) -> None:
            ran.append((threading.current_thread().name, self.call.backlog))
            if len(ran) == 2:
                self.call.send(b"more")  # does not call again
                self.call.when_written(self.last)

        def last(self) -> None:
            self.call.finish()

    answers = serve({}, {METHOD: Burst}).stream(METHOD)(iter([b""]), timeout=20)
    assert sum(1 for _ in answers) == 21
    assert ran == [("loop", 0), ("loop", 0)]


def test_when_written_comes_soon_from_any_thread_where_nothing_waits(serve: Serve) -> None:
    came = threading.Event()

    class Idle(Talk):
        def on_message(self, body: bytes) -> None:
            threading.Thread(target=lambda: self.call.when_written(self.written)).start()

        def written(self) -> None:
            came.set()
            self.call.finish()

    assert list(serve({}, {METHOD: Idle}).stream(METHOD)(iter([b""]), timeout=20)) == []
    assert came.is_set()


def test_when_written_is_silent_for_a_caller_who_left(serve: Serve) -> None:
    told: list[int] = []

    class Stuck(Talk):
        def on_message(self, body: bytes) -> None:
            for _ in range(20):
                self.call.send(bytes(1_000_000))
            self.call.when_written(lambda: told.append(1))

        def on_cancel(self) -> None:
            self.call.when_written(lambda: told.append(2))
            super().on_cancel()

    kept = Kept(Stuck)
    served = serve({}, {METHOD: kept})
    answers = served.channel().unary_stream(METHOD)(b"")
    next(answers)
    answers.cancel()
    talk = kept.only()
    assert wait_until(lambda: talk.heard[-1:] == ["cancel"])
    assert served.quiet()
    assert told == []
