"""Orders to every process, with links and without processes: who dies, who joins late, who orders at once."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Pipe

import pytest

from forwardpass_server.broadcast import Broadcast
from forwardpass_server.control import (
    InForce,
    Order,
    Reply,
    pack_in_force,
    pack_order,
    pack_replies,
    unpack_in_force,
    unpack_order,
    unpack_replies,
)
from forwardpass_server.link import Link, LinkClosed, NoAnswer
from forwardpass_server.seat import ADOPT, OBEY

WAIT_S = 20.0


class Process:
    """A process's end of a link, which writes down what it obeys; `hold` keeps it from answering."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.obeyed: list[bytes] = []
        self.adopted: list[InForce] = []
        self.fails = False
        self.raises = False
        self.go_on = threading.Event()
        self.go_on.set()
        self.asked = threading.Event()
        ours, theirs = Pipe()
        self.theirs = Link(theirs, on_note=lambda _: None, answer=self._answer, on_end=lambda: None)
        self.link = Link(ours, on_note=lambda _: None, answer=lambda _: b"", on_end=lambda: None)
        self.ask = self.link.ask
        self.theirs.start()
        self.link.start()

    def hold(self) -> None:
        self.asked.clear()
        self.go_on.clear()

    def die(self) -> None:
        self.theirs.close()

    def _answer(self, question: bytes) -> bytes:
        self.asked.set()
        assert self.go_on.wait(WAIT_S)
        assert not self.raises
        if question.startswith(ADOPT):
            self.adopted.append(unpack_in_force(question.removeprefix(ADOPT)))
            return b""
        order = unpack_order(question.removeprefix(OBEY))
        self.obeyed.append(order.body)
        if self.fails:
            return pack_replies([Reply(process=self.number, code=3, message="no")])
        leaves = {order.body.decode(): order} if order.changes else {}
        return pack_replies([Reply(process=self.number, body=order.body.upper(), leaves=leaves)])


@pytest.fixture
def processes() -> Iterator[Callable[[int], Process]]:
    made: list[Process] = []

    def make(number: int) -> Process:
        made.append(Process(number))
        return made[-1]

    yield make
    for each in made:
        each.go_on.set()
        each.die()


def order(name: bytes, *, changes: bool = True) -> bytes:
    return pack_order(Order(method="/a/Load", body=name, changes=changes))


def in_background(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


def test_what_goes_over_the_link_comes_back_as_it_was() -> None:
    body = bytes(range(256))
    one = Order(method="/a/B", body=body, changes=True)
    assert unpack_order(pack_order(one)) == one
    told = [
        Reply(process=3, code=8, message="voll ✓", trailers=(("grpc-retry-pushback-ms", "5"),)),
        Reply(process=4, body=body, silent=True, leaves={"model m": one, "model n": None}),
    ]
    assert unpack_replies(pack_replies(told)) == told
    assert list(unpack_in_force(pack_in_force({"b": one, "a": one})).items()) == [("b", one), ("a", one)]


def test_a_process_killed_while_it_obeys_is_left_out_and_its_successor_is_given_the_order(
    processes: Callable[[int], Process],
) -> None:
    broadcast = Broadcast()
    one, two = processes(0), processes(1)
    for each in (one, two):
        broadcast.join(each, pack_in_force({}))
    two.hold()
    thread, replies = in_background(lambda: unpack_replies(broadcast.answer(order(b"m"))))
    assert two.asked.wait(WAIT_S)
    two.die()
    thread.join(WAIT_S)
    assert replies == [[Reply(process=0, body=b"M", leaves={"m": unpack_order(order(b"m"))})]]
    broadcast.leave(two)
    again = processes(1)
    broadcast.join(again, pack_in_force({}))
    assert again.adopted == [{"m": unpack_order(order(b"m"))}]
    assert [reply.process for reply in unpack_replies(broadcast.answer(order(b"n")))] == [0, 1]


def test_what_is_ordered_while_a_newcomer_is_brought_up_to_date_is_made_up_for(
    processes: Callable[[int], Process],
) -> None:
    broadcast = Broadcast()
    broadcast.join(processes(0), pack_in_force({}))
    broadcast.answer(order(b"m"))
    late = processes(1)
    late.hold()
    thread, _ = in_background(lambda: broadcast.join(late, pack_in_force({})))
    assert late.asked.wait(WAIT_S)
    # Nobody waits for the newcomer.
    assert [reply.process for reply in unpack_replies(broadcast.answer(order(b"n")))] == [0]
    late.go_on.set()
    thread.join(WAIT_S)
    assert [[*each] for each in late.adopted] == [["m"], ["m", "n"]]
    assert len(unpack_replies(broadcast.answer(order(b"o")))) == 2


def test_orders_of_several_callers_come_to_all_in_the_same_order(processes: Callable[[int], Process]) -> None:
    broadcast = Broadcast()
    members = [processes(number) for number in range(3)]
    for each in members:
        broadcast.join(each, pack_in_force({}))
    threads = [in_background(partial(broadcast.answer, order(b"%d" % number)))[0] for number in range(40)]
    for thread in threads:
        thread.join(WAIT_S)
    assert len(members[0].obeyed) == 40
    assert members[0].obeyed == members[1].obeyed == members[2].obeyed


def test_what_nobody_could_do_is_not_in_force_and_what_one_could_is(processes: Callable[[int], Process]) -> None:
    broadcast = Broadcast()
    one, two = processes(0), processes(1)
    for each in (one, two):
        broadcast.join(each, pack_in_force({}))
    one.fails = two.fails = True
    assert [reply.code for reply in unpack_replies(broadcast.answer(order(b"bad")))] == [3, 3]
    two.fails = False
    assert [reply.code for reply in unpack_replies(broadcast.answer(order(b"half")))] == [3, 0]
    late = processes(2)
    broadcast.join(late, pack_in_force({}))
    assert [[*each] for each in late.adopted] == [["half"]]


def test_what_was_loaded_at_the_start_is_in_force_and_no_process_of_the_start_is_told_so(
    processes: Callable[[int], Process],
) -> None:
    broadcast = Broadcast()
    start = {"m": Order(method="/a/Load", body=b"m", changes=True)}
    first, second, late = processes(0), processes(1), processes(1)
    for each in (first, second):
        broadcast.join(each, pack_in_force(start))
        assert each.adopted == []
    broadcast.leave(second)
    broadcast.join(late, pack_in_force({}))
    assert late.adopted == [start]


def test_who_only_asks_waits_for_no_order_and_not_long_for_the_silent(processes: Callable[[int], Process]) -> None:
    seconds = iter([0.0, 0.0, WAIT_S])  # when it is asked, and when each process is waited for
    broadcast = Broadcast(answer_wait_s=WAIT_S, clock=lambda: next(seconds))
    one, two = processes(0), processes(1)
    for each in (one, two):
        broadcast.join(each, pack_in_force({}))
    two.hold()
    thread, _ = in_background(lambda: broadcast.answer(order(b"slow")))
    assert two.asked.wait(WAIT_S)
    replies = unpack_replies(broadcast.answer(order(b"how?", changes=False)))
    assert (replies[0].body, replies[0].silent) == (b"HOW?", False)
    assert (replies[1].process, replies[1].code, replies[1].silent) == (1, 14, True)
    assert "process 1 does not answer" in replies[1].message
    two.go_on.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_newcomer_that_dies_or_cannot_be_brought_up_to_date_is_asked_nothing(
    processes: Callable[[int], Process],
) -> None:
    broadcast = Broadcast()
    broadcast.join(processes(0), pack_in_force({}))
    broadcast.answer(order(b"m"))
    dead, broken = processes(1), processes(2)
    dead.die()
    with pytest.raises(LinkClosed):
        broadcast.join(dead, pack_in_force({}))
    broken.raises = True
    with pytest.raises(NoAnswer):
        broadcast.join(broken, pack_in_force({}))
    assert len(unpack_replies(broadcast.answer(order(b"n")))) == 1


def test_a_process_that_raises_while_it_obeys_is_one_that_failed(processes: Callable[[int], Process]) -> None:
    broadcast = Broadcast()
    one, two = processes(0), processes(1)
    for each in (one, two):
        broadcast.join(each, pack_in_force({}))
    one.raises = True
    replies = unpack_replies(broadcast.answer(order(b"m")))
    assert [(reply.code, reply.message) for reply in replies] == [
        (13, "it could not answer; its log says why"),
        (0, ""),
    ]
