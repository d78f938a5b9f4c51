"""Sequences and slots: nothing is lost, order is kept, slots never leak; whatever clients send, whenever they leave."""

from collections import defaultdict
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from forwardpass_server.scheduling.sequence import Ended, Member, Next, NotStarted, Position, Sequences, Slot

IDS = (1, "1", 2, "a")
SLOTS = 2
IDLE_S = 10.0


def member(name: int | str, starts: bool = False, ends: bool = False) -> Member:
    return Member(Position(name, starts, ends))


def start(name: int | str, ends: bool = False) -> Member:
    return member(name, starts=True, ends=ends)


def end(name: int | str) -> Member:
    return member(name, ends=True)


def test_who_goes_on_with_what_was_never_started_is_refused() -> None:
    sequences: Sequences[Member] = Sequences(2, IDLE_S)
    with pytest.raises(NotStarted) as refused:
        sequences.admit(member(7))
    assert refused.value.ended is None
    assert len(sequences) == 0
    assert sequences.active == 0


def test_what_comes_behind_the_end_must_start() -> None:
    sequences: Sequences[Member] = Sequences(2, IDLE_S)
    first, last = start(7), end(7)
    assert sequences.admit(first).run == [first]
    assert sequences.admit(last).run == []
    with pytest.raises(NotStarted):
        sequences.admit(member(7))
    again = start(7)
    assert sequences.admit(again).run == []
    assert sequences.finished(first, 0.0, stepped=True).run == [last]
    assert sequences.finished(last, 0.0, stepped=True).run == [again]
    assert sequences.ended == {Ended.END: 1}


def test_integer_and_string_ids_are_different_sequences() -> None:
    sequences: Sequences[Member] = Sequences(2, IDLE_S)
    sequences.admit(start(1))
    with pytest.raises(NotStarted):
        sequences.admit(member("1"))


def test_a_start_on_an_active_id_runs_in_its_turn_and_begins_anew() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, second = start(7), start(7)
    sequences.admit(first)
    assert sequences.admit(second).run == []
    assert sequences.finished(first, 0.0, stepped=True).run == [second]
    assert second.sequence.slot is not None
    assert second.sequence.slot.read(second.position) == Slot.INITIAL
    assert sequences.ended == {Ended.RESTARTED: 1}
    assert sequences.active == 1


def test_state_is_read_from_where_the_last_step_wrote_it_and_a_failed_step_wrote_nothing() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first = start(7)
    sequences.admit(first)
    slot = first.sequence.slot
    assert slot is not None
    written = slot.write
    sequences.finished(first, 0.0, stepped=True)
    for _ in range(3):
        step = member(7)
        sequences.admit(step)
        assert slot.read(step.position) == written
        assert slot.write not in (written, Slot.INITIAL)
        sequences.finished(step, 0.0, stepped=False)
    step = member(7)
    sequences.admit(step)
    assert slot.read(step.position) == written


def test_the_end_that_failed_leaves_the_sequence_as_it_was() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, last = start(7), end(7)
    sequences.admit(first)
    sequences.admit(last)
    sequences.finished(first, 0.0, stepped=True)
    sequences.finished(last, 5.0, stepped=False)
    assert sequences.next_due == 15.0
    retried = end(7)
    assert sequences.admit(retried).run == [retried]
    sequences.finished(retried, 6.0, stepped=True)
    assert sequences.active == 0


def test_a_start_that_failed_takes_with_it_who_waited_behind_it_and_nobody_else() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, second, again = start(7), member(7), start(7)
    for each in (first, second, again):
        sequences.admit(each)
    then = sequences.finished(first, 0.0, stepped=False)
    assert then.failed == [(second, Ended.FAILED)]
    assert then.run == [again]


def test_a_caller_who_leaves_ends_its_sequence_and_not_the_one_before_it_in_the_line() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, last, again, behind, third = start(7), end(7), start(7), member(7), start(7)
    for each in (first, last, again, behind, third):
        sequences.admit(each)
    then = sequences.leave(behind)
    assert then is not None
    assert then.failed == [(again, Ended.LEFT)]
    assert sequences.finished(first, 0.0, stepped=True).run == [last]
    assert sequences.finished(last, 0.0, stepped=True).run == [third]


def test_one_whose_run_is_in_progress_is_told_by_its_runner() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, second = start(7), member(7)
    sequences.admit(first)
    sequences.admit(second)
    assert sequences.leave(first) is None
    then = sequences.finished(first, 0.0, stepped=False, left=True)
    assert then.failed == [(second, Ended.LEFT)]
    assert then.gone
    assert sequences.active == 0


def test_slots_go_to_who_waited_longest() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, second, third = start(1, ends=True), start(2), start(3)
    sequences.admit(first)
    assert not sequences.admit(second).run
    assert not sequences.admit(third).run
    assert (sequences.active, sequences.slotless, sequences.backlogged) == (1, 2, 2)
    assert sequences.finished(first, 0.0, stepped=True).run == [second]
    assert (sequences.active, sequences.slotless, sequences.backlogged) == (1, 1, 1)


def test_a_slot_is_not_kept_by_who_is_idle_for_too_long_and_says_so_afterwards() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, waiting = start(7), start(8)
    sequences.admit(first)
    sequences.admit(waiting)
    sequences.finished(first, 100.0, stepped=True)
    assert sequences.expire(109.9).run == []
    assert sequences.expire(110.0).run == [waiting]
    with pytest.raises(NotStarted) as refused:
        sequences.admit(member(7))
    assert refused.value.ended is Ended.IDLE


def test_one_that_is_ended_while_it_runs_keeps_its_slot_until_the_run_is_over() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    first, other = start(7), start(8)
    sequences.admit(first)
    sequences.admit(other)
    assert sequences.end(7, Ended.LEFT).run == []
    with pytest.raises(NotStarted):
        sequences.admit(member(7))
    assert sequences.active == 1
    assert sequences.finished(first, 0.0, stepped=True).run == [other]


class Clients(RuleBasedStateMachine):
    """Clients that send what they like, runs that fail or not, callers who leave: everything that can happen, in any
    order. The model beside it is what each request was told."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences: Sequences[Member] = Sequences(SLOTS, IDLE_S)
        self.now = 0.0
        self.number = count()
        self.order: dict[Member, int] = {}
        self.running: list[Member] = []
        self.waiting: list[Member] = []
        self.released: dict[int | str, list[int]] = defaultdict(list)
        self.told = 0
        self.admitted = 0

    def follow(self, then: Next[Member] | None) -> None:
        if then is None:
            return
        for each in then.run:
            self.waiting.remove(each)
            assert each.position.id not in {other.position.id for other in self.running}, "two of one sequence at once"
            # In the order of arrival, those that were failed left out.
            assert all(self.order[each] > earlier for earlier in self.released[each.position.id])
            self.released[each.position.id].append(self.order[each])
            self.running.append(each)
        for each, _ in then.failed:
            self.waiting.remove(each)
            self.told += 1

    @rule(name=st.sampled_from(IDS), starts=st.booleans(), ends=st.booleans())
    def send(self, name: int | str, starts: bool, ends: bool) -> None:
        new = member(name, starts, ends)
        self.order[new] = next(self.number)
        known = self.sequences.get(name)
        expected = starts or (known is not None and known.open)
        self.waiting.append(new)
        try:
            then = self.sequences.admit(new)
        except NotStarted:
            assert not expected
            self.waiting.remove(new)
            return
        assert expected
        self.admitted += 1
        self.follow(then)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), stepped=st.booleans(), left=st.booleans())
    def answer(self, data: st.DataObject, stepped: bool, left: bool) -> None:
        done = data.draw(st.sampled_from(self.running))
        self.running.remove(done)
        self.told += 1
        self.follow(self.sequences.finished(done, self.now, stepped=stepped, left=left and not stepped))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(gone)
        self.told += 1
        then = self.sequences.leave(gone)
        assert then is not None
        self.follow(then)

    @rule(name=st.sampled_from(IDS))
    def lose(self, name: int | str) -> None:
        self.follow(self.sequences.end(name, Ended.LEFT))

    @rule(seconds=st.sampled_from([1.0, IDLE_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.follow(self.sequences.expire(self.now))

    @invariant()
    def books_are_kept(self) -> None:
        sequences = self.sequences
        everyone = [sequence for name in IDS if (sequence := sequences.get(name)) is not None]
        slots = [sequence.slot for sequence in everyone if sequence.slot is not None]
        assert len({id(slot) for slot in slots}) == len(slots) == sequences.active <= SLOTS
        assert sequences.waiting == len(self.waiting) == sum(len(each.line) for each in everyone)
        assert sequences.backlogged == sum(len(each.line) for each in everyone if each.slot is None)
        assert sequences.slotless == sum(each.slot is None for each in everyone)
        assert {each.running for each in everyone} - {None} == set(self.running)
        # Work-conserving: nobody waits for a slot while one is free, and nobody who has one waits for nothing.
        assert sequences.slotless == 0 or sequences.active == SLOTS
        assert not any(each.line and each.slot and each.running is None for each in everyone)
        # Every start is ended once, or under way.
        under_way = sum(each.begun + sum(m.position.starts for m in each.line) for each in everyone)
        assert sequences.started == sequences.ended.total() + under_way
        assert self.admitted == self.told + len(self.waiting) + len(self.running)
        # Nobody idles for ever: a slot without a request is in the list of those that will be taken back.
        idle = [each for each in everyone if each.slot is not None and each.running is None]
        assert len(sequences._idle) == len(idle)

    def teardown(self) -> None:
        """Answer everybody and wait: nothing is left."""
        while self.running:
            done = self.running.pop()
            self.told += 1
            self.follow(self.sequences.finished(done, self.now, stepped=True))
        self.now += IDLE_S
        self.follow(self.sequences.expire(self.now))
        while self.running:
            done = self.running.pop()
            self.told += 1
            self.follow(self.sequences.finished(done, self.now, stepped=True))
            self.now += IDLE_S
            self.follow(self.sequences.expire(self.now))
        assert self.admitted == self.told
        assert len(self.sequences) == 0
        assert self.sequences.active == 0
        assert self.sequences.started == self.sequences.ended.total()


def test_whatever_happens_nothing_is_lost_and_no_slot_leaks() -> None:
    run_state_machine_as_test(Clients, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_unloading_ends_everything_and_starts_nobody() -> None:
    sequences: Sequences[Member] = Sequences(1, IDLE_S)
    running, behind, waiting = start(1), member(1), start(2)
    for each in (running, behind, waiting):
        sequences.admit(each)
    then = sequences.end_all(Ended.UNLOADED)
    assert not then.run
    assert {each for each, _ in then.failed} == {behind, waiting}
    assert not sequences.finished(running, 0.0, stepped=True).run
    assert len(sequences) == sequences.active == 0
