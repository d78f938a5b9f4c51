"""One suite over the fake and over sockets: what a handler may rely on is the same in both."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import pytest
from served import WAIT_S, Served, code_and_text, wait_until

from forwardpass_server.transport.call import (
    AlreadyAnswered,
    Call,
    Metadata,
    StreamCall,
    StreamFactory,
    UnaryHandler,
)
from forwardpass_server.transport.fake import FakeResult, FakeServer, FakeStream
from forwardpass_server.transport.stream import HIGH_WATER

METHOD = "/test.Service/Method"


@dataclass
class Outcome:
    """What a caller sees of the end of a call."""

    code: int
    message: str
    body: bytes | None
    trailers: Metadata
    metadata: Metadata


class PendingCall(Protocol):
    def cancel(self) -> None: ...
    def outcome(self) -> Outcome: ...


class CallersStream(Protocol):
    heard: list[bytes]

    def say(self, *bodies: bytes) -> None: ...
    def half_close(self) -> None: ...
    def cancel(self) -> None: ...
    def outcome(self) -> Outcome: ...


class World(Protocol):
    """A server and callers of it."""

    def begin(self, body: bytes = b"", metadata: Metadata = (), deadline_s: float | None = None) -> PendingCall: ...
    def stream(self) -> CallersStream: ...
    def call_soon(self, function: Callable[[], None]) -> None: ...


def mine(metadata: Any) -> Metadata:
    return tuple((key, value) for key, value in metadata or () if key.startswith("x-"))


def of_fake(result: FakeResult) -> Outcome:
    return Outcome(result.code, result.message, result.body, mine(result.trailers), mine(result.metadata))


class FakePending:
    def __init__(self, call: Any) -> None:
        self._call = call

    def cancel(self) -> None:
        self._call.cancel()

    def outcome(self) -> Outcome:
        return of_fake(self._call.result())


class FakeCallersStream(FakePending):
    def __init__(self, stream: FakeStream) -> None:
        super().__init__(stream)
        self.heard = stream.heard
        self.say = stream.say
        self.half_close = stream.half_close


class FakeWorld:
    def __init__(self, unary: UnaryHandler | None, stream: StreamFactory | None, on_idle: Any) -> None:
        self._server = FakeServer(
            {METHOD: unary} if unary else {}, {METHOD: stream} if stream else {}, on_error=code_and_text
        )
        self._server.on_idle = on_idle
        self.call_soon = self._server.call_soon

    def begin(self, body: bytes = b"", metadata: Metadata = (), deadline_s: float | None = None) -> FakePending:
        return FakePending(self._server.begin(METHOD, body, metadata, deadline_s))

    def stream(self) -> FakeCallersStream:
        return FakeCallersStream(self._server.stream(METHOD))

    def close(self) -> None:
        pass


class RealPending:
    def __init__(self, future: Any) -> None:
        self._future = future

    def cancel(self) -> None:
        self._future.cancel()

    def outcome(self) -> Outcome:
        code = self._future.code().value[0]
        body = self._future.result() if code == 0 else None
        metadata = mine(self._future.initial_metadata())
        return Outcome(code, self._future.details(), body, mine(self._future.trailing_metadata()), metadata)


class RealStream:
    def __init__(self, multi: grpc.StreamStreamMultiCallable) -> None:
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers = multi(iter(self._said.get, None), timeout=WAIT_S)
        self.heard: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            self.heard.extend(self._answers)
        except grpc.RpcError:
            return  # the status says why

    def say(self, *bodies: bytes) -> None:
        for body in bodies:
            self._said.put(body)

    def half_close(self) -> None:
        self._said.put(None)

    def cancel(self) -> None:
        self._answers.cancel()

    def outcome(self) -> Outcome:
        self._reader.join(WAIT_S)
        answers = self._answers
        code = answers.code().value[0]
        return Outcome(code, answers.details(), None, mine(answers.trailing_metadata()), ())

    def close(self) -> None:
        self.half_close()
        self._reader.join(WAIT_S)


class RealWorld:
    def __init__(self, unary: UnaryHandler | None, stream: StreamFactory | None, on_idle: Any) -> None:
        self._served = Served(
            {METHOD: unary} if unary else {}, {METHOD: stream} if stream else {}, on_idle=on_idle
        )  # fmt: skip
        self._channel = self._served.channel()
        self._streams: list[RealStream] = []
        self.call_soon = self._served.server.call_soon

    def begin(self, body: bytes = b"", metadata: Metadata = (), deadline_s: float | None = None) -> RealPending:
        return RealPending(self._channel.unary_unary(METHOD).future(body, metadata=metadata, timeout=deadline_s))

    def stream(self) -> RealStream:
        self._streams.append(RealStream(self._channel.stream_stream(METHOD)))
        return self._streams[-1]

    def close(self) -> None:
        self._served.__exit__(None, None, None)
        for stream in self._streams:
            stream.close()


MakeWorld = Callable[..., World]


@pytest.fixture(params=[FakeWorld, RealWorld], ids=["fake", "real"])
def world(request: pytest.FixtureRequest) -> Iterator[MakeWorld]:
    made: list[Any] = []

    def make(unary: Any = None, stream: Any = None, on_idle: Any = None) -> World:
        made.append(request.param(unary, stream, on_idle))
        return made[-1]  # type: ignore[no-any-return]

    yield make
    for each in made:
        each.close()


def echo(call: Call, body: bytes) -> None:
    call.reply(body)


def test_a_reply_arrives(world: MakeWorld) -> None:
    assert world(echo).begin(b"\x00body").outcome() == Outcome(0, "", b"\x00body", (), ())


def test_metadata_and_trailers_arrive(world: MakeWorld) -> None:
    pairs = (("x-a", "1"), ("x-bin", b"\xff"), ("x-a", "2"))

    def mirror(call: Call, body: bytes) -> None:
        call.reply(body, mine(call.metadata), metadata=mine(call.metadata))

    outcome = world(mirror).begin(metadata=pairs).outcome()
    assert (outcome.trailers, outcome.metadata) == (pairs, pairs)


def test_a_failure_arrives(world: MakeWorld) -> None:
    outcome = world(lambda call, _: call.fail(5, "no ☺", (("x-why", "1"),))).begin().outcome()
    assert outcome == Outcome(5, "no ☺", None, (("x-why", "1"),), ())


def test_an_endless_message_is_cut(world: MakeWorld) -> None:
    assert len(world(lambda call, _: call.fail(5, "x" * 100_000)).begin().outcome().message) < 4100


def test_an_unknown_method_is_unimplemented(world: MakeWorld) -> None:
    outcome = world().begin().outcome()
    assert (outcome.code, outcome.message) == (12, f"this server has no method {METHOD}")


def test_an_unknown_stream_is_unimplemented(world: MakeWorld) -> None:
    outcome = world().stream().outcome()
    assert (outcome.code, outcome.message) == (12, f"this server has no method {METHOD}")


def broken(*_: object) -> None:
    raise KeyError("x")


def test_an_exception_goes_through_on_error(world: MakeWorld) -> None:
    assert world(broken).begin().outcome() == Outcome(13, "on_error saw KeyError: 'x'", None, (), ())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda call: call.reply("text"), "TypeError: a message must be bytes, got str"),
        (lambda call: call.fail(0, ""), "ValueError: a failure needs a gRPC status code"),
        (lambda call: call.reply(b"", (("Upper", "1"),)), "ValueError: metadata key 'Upper'"),
    ],
)
def test_a_wrong_answer_is_an_exception_and_leaves_the_call_unanswered(
    world: MakeWorld, wrong: Callable[[Call], object], words: str
) -> None:
    assert words in world(lambda call, _: wrong(call)).begin().outcome().message


def test_a_second_answer_raises(world: MakeWorld) -> None:
    raised: list[bool] = []

    def twice(call: Call, body: bytes) -> None:
        call.reply(body)
        with pytest.raises(AlreadyAnswered):
            call.reply(body)
        with pytest.raises(AlreadyAnswered):
            call.fail(3, "")
        raised.append(True)

    assert world(twice).begin(b"1").outcome().body == b"1"
    assert wait_until(lambda: raised == [True])


def test_another_thread_may_answer(world: MakeWorld) -> None:
    def later(call: Call, body: bytes) -> None:
        threading.Timer(0.01, call.reply, (body,)).start()

    assert world(later).begin(b"1").outcome().body == b"1"


def test_idle_work_may_answer(world: MakeWorld) -> None:
    waiting: list[Call] = []

    def idle() -> bool:
        worked = bool(waiting)
        while waiting:
            waiting.pop().reply(b"idle")
        return worked

    assert world(lambda call, _: waiting.append(call), on_idle=idle).begin().outcome().body == b"idle"


def test_a_function_given_by_another_thread_may_answer(world: MakeWorld) -> None:
    made: list[World] = []

    def later(call: Call, body: bytes) -> None:
        def give() -> None:
            made[0].call_soon(lambda: echo(call, body))

        threading.Timer(0.01, give).start()

    made.append(world(later))
    assert made[0].begin(b"1").outcome().body == b"1"


def test_a_caller_that_leaves_is_heard_and_answering_it_is_false(world: MakeWorld) -> None:
    calls: list[Call] = []
    heard: list[str] = []

    def wait(call: Call, body: bytes) -> None:
        call.on_cancel(lambda: heard.append("left"))
        calls.append(call)

    pending = world(wait).begin()
    assert wait_until(lambda: len(calls) == 1)
    assert not calls[0].cancelled
    pending.cancel()
    assert wait_until(lambda: heard == ["left"])
    assert wait_until(lambda: calls[0].cancelled)
    calls[0].on_cancel(lambda: heard.append("at once"))
    assert heard == ["left", "at once"]
    assert calls[0].reply(b"") is False
    with pytest.raises(AlreadyAnswered):
        calls[0].reply(b"")
    assert pending.outcome().code == 1


def test_a_caller_that_leaves_after_its_answer_is_not_heard(world: MakeWorld) -> None:
    heard: list[str] = []

    def answer(call: Call, body: bytes) -> None:
        call.on_cancel(lambda: heard.append("left"))
        assert call.reply(body) is True

    pending = world(answer).begin(b"1")
    assert pending.outcome().body == b"1"
    pending.cancel()
    assert heard == []


class Talk:
    """A stream handler whose acts are given by the test."""

    def __init__(self, call: StreamCall, act: Callable[["Talk", object], None]) -> None:
        self.call = call
        self.heard: list[object] = []
        self._act = act

    def on_message(self, body: bytes) -> None:
        self.hear(body)

    def on_half_close(self) -> None:
        self.hear("half-close")

    def on_cancel(self) -> None:
        self.hear("cancel")

    def hear(self, what: object) -> None:
        self.heard.append(what)
        self._act(self, what)


class Factory:
    """Makes handlers and keeps them."""

    def __init__(self, act: Callable[[Talk, object], None] = lambda talk, what: None) -> None:
        self.talks: list[Talk] = []
        self._act = act

    def __call__(self, call: StreamCall) -> Talk:
        self.talks.append(Talk(call, self._act))
        return self.talks[-1]

    def heard(self, *what: object) -> bool:
        return wait_until(lambda: bool(self.talks) and self.talks[0].heard == list(what))


def echo_stream(talk: Talk, what: object) -> None:
    if isinstance(what, bytes):
        assert talk.call.send(what) is True
    elif what == "half-close":
        talk.call.finish(trailers=(("x-end", "1"),))


def test_a_stream_answers_in_order_and_ends(world: MakeWorld) -> None:
    factory = Factory(echo_stream)
    stream = world(stream=factory).stream()
    stream.say(b"1", b"2", b"3")
    stream.half_close()
    assert stream.outcome() == Outcome(0, "", None, (("x-end", "1"),), ())
    assert stream.heard == [b"1", b"2", b"3"]
    assert factory.heard(b"1", b"2", b"3", "half-close")


def test_a_stream_that_fails_gives_what_it_sent_and_its_status(world: MakeWorld) -> None:
    def act(talk: Talk, what: object) -> None:
        talk.call.send(b"1")
        assert talk.call.fail(9, "enough") is True

    stream = world(stream=Factory(act)).stream()
    stream.say(b"")
    outcome = stream.outcome()
    assert (outcome.code, outcome.message, stream.heard) == (9, "enough", [b"1"])


def test_anything_after_the_end_of_a_stream_raises(world: MakeWorld) -> None:
    raised: list[int] = []

    def act(talk: Talk, what: object) -> None:
        talk.call.finish()
        for late in (lambda: talk.call.send(b""), lambda: talk.call.finish(), lambda: talk.call.fail(3, "")):
            with pytest.raises(AlreadyAnswered):
                late()
            raised.append(1)

    stream = world(stream=Factory(act)).stream()
    stream.say(b"")
    assert stream.outcome().code == 0
    assert wait_until(lambda: len(raised) == 3)


def test_an_exception_of_a_stream_handler_ends_its_stream(world: MakeWorld) -> None:
    factory = Factory(lambda talk, what: broken() if what == b"1" else None)
    stream = world(stream=factory).stream()
    stream.say(b"1")
    assert stream.outcome().message == "on_error saw KeyError: 'x'"
    assert factory.heard(b"1", "cancel")
    assert factory.talks[0].call.send(b"") is False


def test_an_exception_of_a_factory_ends_its_stream(world: MakeWorld) -> None:
    assert world(stream=broken).stream().outcome().message == "on_error saw KeyError: 'x'"


def test_a_caller_that_leaves_a_stream_is_heard_and_sending_to_it_is_false(world: MakeWorld) -> None:
    factory = Factory()
    stream = world(stream=factory).stream()
    stream.say(b"1")
    assert factory.heard(b"1")
    stream.cancel()
    assert wait_until(lambda: factory.talks[0].heard in ([b"1", "cancel"], [b"1", "half-close", "cancel"]))
    call = factory.talks[0].call
    assert call.cancelled
    assert call.send(b"") is False
    call.finish()
    assert stream.outcome().code == 1


def test_a_paused_stream_hears_nothing_until_it_goes_on(world: MakeWorld) -> None:
    factory = Factory(lambda talk, what: talk.call.pause_reading())
    stream = world(stream=factory).stream()
    stream.say(b"1", b"2")
    stream.half_close()
    assert factory.heard(b"1")
    factory.talks[0].call.resume_reading()
    assert factory.heard(b"1", b"2")
    factory.talks[0].call.resume_reading()
    assert factory.heard(b"1", b"2", "half-close")
    factory.talks[0].call.finish()
    assert stream.outcome().code == 0


def test_a_stalled_fake_caller_fills_the_backlog_and_draining_it_is_heard() -> None:
    """The fake's own: a real caller cannot be stalled to the message."""
    factory = Factory(lambda talk, what: None)
    server = FakeServer({}, {METHOD: factory})
    stream = server.stream(METHOD)
    stream.stall()
    writable: list[int] = []
    call = factory.talks[0].call
    call.on_writable(lambda: writable.append(call.backlog))
    for n in range(HIGH_WATER):
        call.send(b"%d" % n)
    stream.say(b"not read while the backlog is full")
    assert (call.backlog, factory.talks[0].heard, writable) == (HIGH_WATER, [], [])
    stream.take(HIGH_WATER - 16)
    assert writable == [16]
    assert factory.talks[0].heard == [b"not read while the backlog is full"]
    call.finish()
    assert not stream.answered
    stream.take()
    assert stream.result().code == 0
    assert len(stream.heard) == HIGH_WATER


def test_a_fake_call_that_nobody_answers_times_out() -> None:
    with pytest.raises(TimeoutError, match=r"nothing happened for 0\.01 s"):
        FakeServer({METHOD: lambda call, body: None}).unary(METHOD, b"", timeout_s=0.01)


def test_a_stalled_fake_caller_who_takes_everything_is_heard_once() -> None:
    """The fake's own, as above."""
    factory = Factory(lambda talk, what: None)
    stream = FakeServer({}, {METHOD: factory}).stream(METHOD)
    stream.stall()
    call, told = factory.talks[0].call, []
    for n in range(3):
        call.send(b"%d" % n)
    call.when_written(lambda: told.append(call.backlog))
    stream.take(2)
    assert told == []
    stream.take(1)
    assert told == [0]
    call.send(b"again")
    stream.take()
    assert told == [0]
    call.finish()
    assert stream.result().code == 0
