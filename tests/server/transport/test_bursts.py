"""Crowds: thousands at once, none CANCELLED; and what stays behind after many calls, which is nothing."""

import gc
import os
import threading
from collections import Counter
from collections.abc import Callable

import grpc
import pytest
from served import Served, wait_until

from forwardpass_server.transport.call import Call

Serve = Callable[..., Served]
ECHO = "/test.Service/Echo"


def echo(call: Call, body: bytes) -> None:
    call.reply(body)


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("posted", [1, 1000])
def test_four_thousand_calls_at_once_are_all_answered(serve: Serve, channels: int, posted: int) -> None:
    """The stock servers answer up to 3,923 of these CANCELLED; here every call gets its answer."""
    held: list[Call] = []
    gate = threading.Event()

    def hold(call: Call, body: bytes) -> None:
        gate.wait(10)
        held.append(call)
        call.reply(body)

    served = serve({ECHO: hold}, posted_calls=posted)
    multis = [served.unary(ECHO) for _ in range(channels)]
    futures = [multis[n % channels].future(b"%d" % n, timeout=60) for n in range(4000)]
    gate.set()
    codes = Counter(future.code() for future in futures)
    assert codes == {grpc.StatusCode.OK: 4000}
    assert [future.result() for future in futures] == [b"%d" % n for n in range(4000)]


def test_calls_that_nobody_answers_do_not_stop_others(serve: Serve) -> None:
    held: list[Call] = []
    served = serve({"/s/Hold": lambda call, _: held.append(call), ECHO: echo})
    hold = served.unary("/s/Hold")
    futures = [hold.future(b"", timeout=60) for _ in range(2000)]
    assert served.unary(ECHO)(b"1", timeout=20) == b"1"
    assert wait_until(lambda: len(held) == 2000)
    for call in held:
        call.reply(b"2")
    assert {future.result() for future in futures} == {b"2"}


def test_a_client_that_resets_thousands_of_calls_does_not_fail_a_polite_one(serve: Serve) -> None:
    served = serve({ECHO: echo, "/s/Never": lambda call, _: None})
    rude, polite = served.unary("/s/Never"), served.unary(ECHO)
    going = threading.Event()

    def attack() -> None:
        while not going.is_set():
            rude.future(b"").cancel()

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        answers = [polite(b"%d" % n, timeout=20) for n in range(300)]
    finally:
        going.set()
        thread.join()
    assert answers == [b"%d" % n for n in range(300)]
    assert served.quiet()


def test_many_calls_leave_no_objects_threads_or_descriptors(serve: Serve) -> None:
    served = serve({ECHO: echo})
    multi = served.unary(ECHO)

    def ask(count: int) -> None:
        for _ in range(count):
            multi(b"x", timeout=20)
        assert served.quiet()
        gc.collect()

    ask(300)
    objects, threads, descriptors = len(gc.get_objects()), threading.active_count(), len(os.listdir("/dev/fd"))
    ask(2000)
    assert len(gc.get_objects()) < objects + 200
    assert threading.active_count() <= threads
    assert len(os.listdir("/dev/fd")) <= descriptors


def test_connections_that_close_leave_no_descriptor(serve: Serve) -> None:
    """The latest call is kept as the loop's bell; its connection must not stay open for it."""
    served = serve({ECHO: echo})
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        channel = served.channel()
        assert channel.unary_unary(ECHO)(b"1", timeout=10) == b"1"
        channel.close()
    assert wait_until(lambda: len(os.listdir("/dev/fd")) <= before)
