"""The loop itself: its order, its bell, its idle work, and that nothing a caller gives it can end it."""

import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import grpc
import pytest
from served import WAIT_S, Served, wait_until

from forwardpass_server.transport.call import Call
from forwardpass_server.transport.completion_queue import CompletionQueueServer
from forwardpass_server.transport.loop import EVENTS_PER_ROUND
from forwardpass_server.transport.options import TransportOptions

Serve = Callable[..., Served]
ECHO = "/test.Service/Echo"


def echo(call: Call, body: bytes) -> None:
    call.reply(body)


def rings(served: Served, count: int) -> None:
    """Wake the loop `count` times, each time after it has fallen asleep."""
    for _ in range(count):
        passes = served.server.stats.loop_passes
        ran = threading.Event()
        began = time.monotonic()
        served.server.call_soon(ran.set)
        assert ran.wait(WAIT_S)
        assert time.monotonic() - began < 5
        assert wait_until(partial(has_passed, served, passes))


def has_passed(served: Served, passes: int) -> bool:
    return served.server.stats.loop_passes > passes


def test_a_sleeping_loop_is_woken_before_the_first_call_and_after_it(serve: Serve) -> None:
    served = serve({ECHO: echo})
    rings(served, 50)
    assert served.unary(ECHO)(b"1", timeout=10) == b"1"
    rings(served, 50)


def test_a_sleeping_loop_is_woken_after_its_latest_caller_has_gone(serve: Serve) -> None:
    served = serve({ECHO: echo})
    channel = served.channel()
    channel.unary_unary(ECHO)(b"1", timeout=10)
    channel.close()
    rings(served, 50)


def test_what_threads_give_runs_once_each_in_their_order_on_the_loop(serve: Serve) -> None:
    served = serve({ECHO: echo})
    ran: list[tuple[int, int]] = []
    names: set[str] = set()

    def note(number: int, n: int) -> None:
        ran.append((number, n))
        names.add(threading.current_thread().name)

    def give(number: int) -> None:
        for n in range(500):
            served.server.call_soon(partial(note, number, n))

    threads = [threading.Thread(target=give, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wait_until(lambda: len(ran) == 2000)
    assert names == {"loop"}
    for number in range(4):
        assert [n for who, n in ran if who == number] == list(range(500))


def test_what_is_given_before_the_loop_runs_is_run_by_it(serve: Serve) -> None:
    server = CompletionQueueServer(TransportOptions(port=0), {}, {}, on_error=lambda _: (13, ""))
    ran = threading.Event()
    server.call_soon(ran.set)
    server.bind()
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ran.wait(WAIT_S)
    server.stop(drain_s=0, grace_s=1)
    thread.join()
    with pytest.raises(RuntimeError, match="loop has ended"):
        server.call_soon(ran.set)


def test_what_the_loop_gives_itself_runs_without_starving_calls(serve: Serve) -> None:
    served = serve({ECHO: echo})
    going = True
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        if going:
            served.server.call_soon(again)

    served.server.call_soon(again)
    for _ in range(20):
        assert served.unary(ECHO)(b"1", timeout=10) == b"1"
    going = False
    assert count > 20


def test_a_function_that_raises_is_logged_and_the_loop_goes_on(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve({ECHO: echo})

    def broken() -> None:
        raise KeyError("given")

    served.server.call_soon(broken)
    assert served.unary(ECHO)(b"1", timeout=10) == b"1"
    assert wait_until(lambda: "KeyError: 'given'" in caplog.text)


def test_an_on_idle_that_raises_is_logged_and_the_loop_goes_on(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bool:
        raise KeyError("idle")

    served = serve({ECHO: echo}, on_idle=broken)
    assert served.unary(ECHO)(b"1", timeout=10) == b"1"
    assert wait_until(lambda: "KeyError: 'idle'" in caplog.text)


def test_idle_work_sees_what_gathered_and_runs_on_the_loop(serve: Serve) -> None:
    """Batches form by themselves: calls that arrive while the loop works are answered together."""
    waiting: list[Call] = []
    batches: list[int] = []
    names: set[str] = set()
    gate = threading.Event()

    def idle() -> bool:
        if not waiting:
            return False
        names.add(threading.current_thread().name)
        gate.wait(WAIT_S)  # the first batch takes long
        batches.append(len(waiting))
        while waiting:
            waiting.pop().reply(b"")
        return True

    served = serve({ECHO: lambda call, _: waiting.append(call)}, on_idle=idle)
    multi = served.unary(ECHO)
    futures = [multi.future(b"", timeout=20)]
    assert wait_until(lambda: bool(names))
    futures += [multi.future(b"", timeout=20) for _ in range(32)]
    gate.set()
    assert all(future.result() == b"" for future in futures)
    assert batches[0] == 1
    assert sum(batches) == 33
    assert max(batches) > 1
    assert names == {"loop"}


def test_idle_work_that_goes_on_neither_blocks_nor_starves_the_calls(serve: Serve) -> None:
    left = 5000

    def idle() -> bool:
        nonlocal left
        left -= 1
        return left > 0

    served = serve({ECHO: echo}, on_idle=idle)
    assert served.unary(ECHO)(b"1", timeout=10) == b"1"
    assert wait_until(lambda: left <= 0)


def test_arrivals_do_not_starve_idle_work(serve: Serve) -> None:
    """More events than a round takes are ready at once: idle work still gets its turn between them."""
    rounds: list[int] = []
    handled = 0
    gate = threading.Event()

    def handler(call: Call, body: bytes) -> None:
        nonlocal handled
        if body == b"gate":
            gate.wait(WAIT_S)
        handled += 1
        call.reply(body)

    def idle() -> bool:
        rounds.append(handled)
        return False

    served = serve({ECHO: handler}, on_idle=idle)
    multi = served.unary(ECHO)
    first = multi.future(b"gate", timeout=30)
    count = EVENTS_PER_ROUND * 2
    futures = [multi.future(b"", timeout=30) for _ in range(count)]
    gate.set()
    assert first.result() == b"gate"
    assert all(future.result() == b"" for future in futures)
    assert wait_until(lambda: rounds[-1] == count + 1)
    steps = [after - before for before, after in pairwise(rounds)]
    assert max(steps) <= EVENTS_PER_ROUND


def test_the_counts_add_up_and_the_lag_is_measured(serve: Serve) -> None:
    def handler(call: Call, body: bytes) -> None:
        if body == b"slow":
            threading.Event().wait(0.05)
        if body == b"bad":
            raise KeyError
        call.reply(body)

    served = serve({ECHO: handler})
    channel = served.channel()
    for _ in range(10):
        channel.unary_unary(ECHO)(b"", timeout=10)
    channel.unary_unary(ECHO)(b"slow", timeout=10)
    with pytest.raises(Exception, match="KeyError"):
        channel.unary_unary(ECHO)(b"bad", timeout=10)
    with pytest.raises(Exception, match="no method"):
        channel.unary_unary("/no/no")(b"", timeout=10)
    assert served.quiet()
    stats = served.server.stats
    assert (stats.calls_started, stats.calls_completed, stats.calls_refused, stats.calls_cancelled) == (12, 12, 1, 0)
    assert wait_until(lambda: stats.loop_lag_max_s >= 0.05)
    assert stats.loop_busy_s >= 0.05
    rings(served, 1)
    assert wait_until(lambda: stats.loop_lag_s < stats.loop_lag_max_s)


class Ends(BaseException):
    """What no handler should raise: not an Exception."""


def test_what_is_no_exception_ends_the_loop_and_leaves_nothing_hanging() -> None:
    def fatal(_call: Call, _body: bytes) -> None:
        raise Ends

    held: list[Call] = []
    methods = {ECHO: fatal, "/s/Hold": lambda call, _body: held.append(call)}
    server = CompletionQueueServer(TransportOptions(port=0), methods, {}, on_error=lambda _: (13, ""))
    port = server.bind()
    came_out: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except Ends as error:
            came_out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        waiting = channel.unary_unary("/s/Hold").future(b"", timeout=20)
        assert wait_until(lambda: len(held) == 1)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(ECHO)(b"", timeout=20)
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert len(came_out) == 1
        assert waiting.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert held[0].reply(b"late") is False
    assert server.stop(drain_s=10, grace_s=10).total_s < 5


def test_a_server_that_reads_late_refuses_those_who_may_not_wait_any_more_and_no_others(serve: Serve) -> None:
    gate = threading.Event()
    began = threading.Event()

    def idle() -> bool:
        began.set()
        gate.wait(WAIT_S)
        return False

    served = serve({ECHO: echo}, on_idle=idle)
    multi = served.unary(ECHO)
    first = multi.future(b"0")
    assert began.wait(WAIT_S)
    closed_s = time.monotonic()
    patient = [multi.future(b"1") for _ in range(EVENTS_PER_ROUND)]  # more than one round reads
    hurried = [multi.future(b"2", timeout=4) for _ in range(20)]
    unhurried = multi.future(b"3", timeout=1000)
    assert wait_until(lambda: time.monotonic() > closed_s + 1.2)  # more than a quarter of the four seconds
    gate.set()
    assert first.result() == b"0"
    assert {future.result() for future in patient} == {b"1"}
    assert unhurried.result() == b"3"
    for future in hurried:
        assert future.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "late, too much for this one's deadline; retry later" in future.details()
        assert int(dict(future.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1200
    assert multi(b"4", timeout=4) == b"4"
    assert served.server.stats.calls_refused == 20
