"""A stop loses nothing: calls in flight are answered, later ones refused by name, none CANCELLED."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc
import pytest
from served import WAIT_S, Served, wait_until

from forwardpass_server.transport.call import Call, StreamCall
from forwardpass_server.transport.completion_queue import CompletionQueueServer
from forwardpass_server.transport.options import TransportOptions

Serve = Callable[..., Served]
ECHO = "/test.Service/Echo"
HOLD = "/test.Service/Hold"
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


def echo(call: Call, body: bytes) -> None:
    call.reply(body)


def outcome(multi: grpc.UnaryUnaryMultiCallable, body: bytes = b"") -> grpc.StatusCode:
    try:
        multi(body, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return OK


def in_background(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def test_sixty_four_calls_in_flight_are_all_answered(serve: Serve) -> None:
    held: list[Call] = []
    served = serve({HOLD: lambda call, _: held.append(call)})
    futures = [served.unary(HOLD).future(b"", timeout=20) for _ in range(64)]
    assert wait_until(lambda: len(held) == 64)
    stopping = in_background(served.stop)
    assert wait_until(lambda: served.server._refusal is not None)
    for call in held:
        assert call.reply(b"1") is True
    assert [future.result() for future in futures] == [b"1"] * 64
    stopping.join()
    assert served.report is not None
    assert (served.report.answered, served.report.cancelled) == (64, 0)


@pytest.mark.parametrize("run", range(5))
def test_a_stop_under_closed_loop_load_loses_nothing(serve: Serve, run: int) -> None:
    """Callers that never pause see OK until the stop and UNAVAILABLE after it, and nothing else, ever."""
    served = serve({ECHO: echo})
    codes: list[grpc.StatusCode] = []
    answered = threading.Semaphore(0)

    def call_until_refused() -> None:
        multi = served.unary(ECHO)
        while True:
            code = outcome(multi, b"x")
            codes.append(code)
            answered.release()
            if code is not OK:
                return

    callers = [threading.Thread(target=call_until_refused) for _ in range(8)]
    for caller in callers:
        caller.start()
    for _ in range(200):
        answered.acquire()
    served.stop()
    for caller in callers:
        caller.join()
    counts = Counter(codes)
    assert set(counts) == {OK, UNAVAILABLE}
    assert counts[UNAVAILABLE] == 8
    assert counts[OK] == served.server.stats.calls_started == served.server.stats.calls_completed


def test_while_it_drains_a_server_still_serves_and_takes_no_connection(serve: Serve) -> None:
    served = serve({ECHO: echo})
    old = served.unary(ECHO)
    assert outcome(old) is OK
    stopping = in_background(lambda: served.stop(drain_s=30))
    assert wait_until(lambda: outcome(served.unary(ECHO)) is UNAVAILABLE), "each time a new connection"
    for _ in range(50):
        assert outcome(old) is OK
    assert served.server.stop(drain_s=0, grace_s=5).drain_s < 30  # a second stop hurries the first
    stopping.join()
    assert outcome(old) is UNAVAILABLE
    assert served.report is not None
    assert served.report.answered >= 50, "and whoever came before the port was closed"
    assert served.report.cancelled == 0


def test_a_caller_who_leaves_during_the_stop_was_not_answered(serve: Serve) -> None:
    held: list[Call] = []
    served = serve({HOLD: lambda call, _: held.append(call)})
    futures = [served.unary(HOLD).future(b"", timeout=20) for _ in range(3)]
    assert wait_until(lambda: len(held) == 3)
    stopping = in_background(served.stop)
    assert wait_until(lambda: served.server._refusal is not None)
    futures[0].cancel()
    assert wait_until(lambda: any(call.cancelled for call in held))
    for call in held:
        call.reply(b"1")
    stopping.join()
    assert served.report is not None
    assert (served.report.answered, served.report.cancelled) == (2, 0)


def test_connection_age_moves_clients_away_during_the_drain_without_losing_a_call(serve: Serve) -> None:
    """Two servers on one name; the one that leaves says GOAWAY, and its clients go on with the other."""
    leaving = serve({ECHO: lambda call, _: call.reply(b"leaving")}, max_connection_age_s=0.2)
    staying = serve({ECHO: lambda call, _: call.reply(b"staying")})
    both = grpc.insecure_channel(
        f"ipv4:127.0.0.1:{leaving.port},127.0.0.1:{staying.port}",
        options=(("grpc.lb_policy_name", "pick_first"), ("grpc.use_local_subchannel_pool", 1)),
    )
    codes: list[grpc.StatusCode] = []
    answers: list[bytes] = []
    enough = threading.Event()

    def call() -> None:
        multi = both.unary_unary(ECHO)
        while not enough.is_set():
            try:
                answers.append(multi(b"", timeout=10, wait_for_ready=True))
                codes.append(OK)
            except grpc.RpcError as error:
                codes.append(error.code())

    caller = in_background(call)
    assert wait_until(lambda: len(codes) > 50)
    report = leaving.stop(drain_s=1.0)
    assert wait_until(lambda: answers[-1] == b"staying")
    enough.set()
    caller.join()
    both.close()
    assert set(codes) == {OK}
    assert b"leaving" in answers
    assert report.refused == 0


def test_a_call_that_outlives_the_grace_is_cancelled_and_answering_it_does_no_harm(serve: Serve) -> None:
    held: list[Call] = []
    left: list[Call] = []

    def hold(call: Call, body: bytes) -> None:
        held.append(call)
        call.on_cancel(lambda: left.append(call))

    served = serve({HOLD: hold})
    future = served.unary(HOLD).future(b"", timeout=20)
    assert wait_until(lambda: len(held) == 1)
    report = served.stop(grace_s=0.05)
    assert report.cancelled == 1
    assert future.code() in {UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert left == held
    assert held[0].reply(b"late") is False
    served.cancelled = 1


class Talk:
    """Answers when told to."""

    def __init__(self, call: StreamCall) -> None:
        self.call = call
        self.heard: list[object] = []

    def on_message(self, body: bytes) -> None:
        self.heard.append(body)

    def on_half_close(self) -> None:
        self.heard.append("half-close")

    def on_cancel(self) -> None:
        self.heard.append("cancel")


def test_an_open_stream_is_asked_to_end_answers_what_it_has_and_ends_unavailable(serve: Serve) -> None:
    talks: list[Talk] = []

    def make(call: StreamCall) -> Talk:
        talks.append(Talk(call))
        return talks[-1]

    served = serve({}, {HOLD: make})
    forever = threading.Event()

    def messages() -> "object":
        yield b"1"
        forever.wait(WAIT_S)

    answers = served.stream(HOLD)(messages(), timeout=20)
    assert wait_until(lambda: bool(talks) and talks[0].heard == [b"1"])
    stopping = in_background(served.stop)
    assert wait_until(lambda: talks[0].heard == [b"1", "half-close"])
    talks[0].call.send(b"answer")
    talks[0].call.finish()
    assert next(answers) == b"answer"
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is UNAVAILABLE
    forever.set()
    stopping.join()
    assert talks[0].heard == [b"1", "half-close"]


def test_a_stream_whose_caller_had_half_closed_ends_as_its_handler_says(serve: Serve) -> None:
    talks: list[Talk] = []

    def make(call: StreamCall) -> Talk:
        talks.append(Talk(call))
        return talks[-1]

    served = serve({}, {HOLD: make})
    ended: list[str] = []

    def end() -> None:
        ended.append(threading.current_thread().name)
        for talk in talks:
            talk.call.finish()

    served.server.on_refusing = end
    answers = served.channel().unary_stream(HOLD)(b"watch", timeout=20)
    assert wait_until(lambda: bool(talks) and talks[0].heard == [b"watch", "half-close"])
    report = served.stop()
    assert list(answers) == []
    assert ended == ["loop"]
    assert report.cancelled == 0
    assert report.grace_s < WAIT_S


def test_a_stream_that_outlives_the_grace_is_told_that_the_server_stops(serve: Serve) -> None:
    talks: list[Talk] = []

    def make(call: StreamCall) -> Talk:
        talks.append(Talk(call))
        return talks[-1]

    served = serve({}, {HOLD: make})
    answers = served.channel().unary_stream(HOLD)(b"", timeout=20)
    assert wait_until(lambda: bool(talks))
    talks[0].call.send(b"piece")
    assert next(answers) == b"piece"
    report = served.stop(grace_s=0.1)
    served.cancelled = 1
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert (caught.value.code(), "this server is stopping" in caught.value.details()) == (UNAVAILABLE, True)
    assert report.cancelled == 1
    assert talks[0].heard == [b"", "half-close", "cancel"]
    assert not talks[0].call.send(b"late")


def test_a_stop_without_clients_is_quick_and_frees_the_port(serve: Serve) -> None:
    served = serve({ECHO: echo})
    assert served.stop().total_s < 5
    again = serve({ECHO: echo}, port=served.port)
    assert again.port == served.port
    assert outcome(again.unary(ECHO)) is OK


def test_a_stop_closes_only_connections_of_its_own_port(serve: Serve) -> None:
    first, second = serve({ECHO: echo}), serve({ECHO: echo})
    kept = second.unary(ECHO)
    assert outcome(kept) is OK
    states: list[grpc.ChannelConnectivity] = []
    channel = second.channel()
    channel.subscribe(states.append, try_to_connect=True)
    assert wait_until(lambda: grpc.ChannelConnectivity.READY in states)
    assert outcome(first.unary(ECHO)) is OK
    assert first.stop().connections >= 1
    assert outcome(kept) is OK
    assert states[-1] is grpc.ChannelConnectivity.READY


def test_a_stop_leaves_no_descriptor_and_no_thread(serve: Serve) -> None:
    with Served({ECHO: echo}) as first:
        assert outcome(first.unary(ECHO)) is OK  # the core's own threads and descriptors are made once
    before, threads = len(os.listdir("/dev/fd")), threading.active_count()
    for _ in range(5):
        with Served({ECHO: echo}) as served:
            assert outcome(served.unary(ECHO)) is OK
    assert wait_until(lambda: len(os.listdir("/dev/fd")) <= before)
    assert threading.active_count() <= threads


def test_a_stop_on_the_loop_thread_is_an_error_and_not_a_deadlock(serve: Serve) -> None:
    served = serve({ECHO: echo})

    def stop() -> str:
        try:
            served.server.stop(drain_s=0, grace_s=0)
        except RuntimeError as error:
            return str(error)
        return "no error"

    assert "call it from another thread" in served.on_loop(stop)


def test_two_stops_at_once_give_the_same_report(serve: Serve) -> None:
    served = serve({ECHO: echo})
    reports: list[object] = []
    threads = [in_background(lambda: reports.append(served.server.stop(drain_s=0, grace_s=1))) for _ in range(4)]
    for thread in threads:
        thread.join(WAIT_S)
    assert len(reports) == 4
    assert len({id(report) for report in reports}) == 1


def test_a_server_that_was_bound_and_never_run_can_be_stopped() -> None:
    server = CompletionQueueServer(TransportOptions(port=0), {}, {}, on_error=lambda _: (13, ""))
    server.bind()
    began = time.monotonic()
    server.stop(drain_s=10, grace_s=10)
    assert time.monotonic() - began < 5
    with pytest.raises(RuntimeError, match="comes once"):
        server.run()


def test_order_is_kept_bind_run_stop() -> None:
    server = CompletionQueueServer(TransportOptions(port=0), {}, {}, on_error=lambda _: (13, ""))
    with pytest.raises(RuntimeError, match="bind"):
        server.run()
    with pytest.raises(RuntimeError, match="bind"):
        server.stop(drain_s=0, grace_s=0)


def test_a_refusing_server_answers_new_calls_with_its_status(serve: Serve) -> None:
    served = serve({ECHO: echo})
    multi = served.unary(ECHO)
    assert outcome(multi) is OK
    served.server.refuse_new(14, "moved: ☺")
    with pytest.raises(grpc.RpcError) as caught:
        multi(b"", timeout=10)
    assert (caught.value.code(), caught.value.details()) == (UNAVAILABLE, "moved: ☺")
    assert served.server.stats.calls_refused == 1
