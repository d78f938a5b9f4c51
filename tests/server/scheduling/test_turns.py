"""Who rides in a step, and how far: nobody is lost, nobody rides twice, nobody waits for longer than a round."""

from math import ceil
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.scheduling.text import Sampling, Text
from forwardpass_server.scheduling.turns import FIRST_STEPS, STEP_S, Turns, steps_of


def text(prompt: int = 1, max_tokens: int = 1000, *, spoke: bool = False) -> Text:
    made = Text([0] * prompt, Sampling(max_tokens=max_tokens), object(), Timeline())  # type: ignore[arg-type]
    made.spoke_ns = int(spoke)
    return made


class Bookkeeping(RuleBasedStateMachine):
    """Whatever happens to texts in whatever order: each is in one place, and each that wants a turn gets one soon."""

    inside = Bundle("inside")

    def __init__(self) -> None:
        super().__init__()
        self.slots = 3
        self.turns = Turns(self.slots)
        self.known: dict[Text, str] = {}
        self.waited: dict[Text, int] = {}
        self.most: dict[Text, int] = {}

    @rule(target=inside)
    def join(self) -> Text:
        new = text()
        self.turns.join(new)
        self.known[new] = "wants"
        self.waited[new] = 0
        return new

    @rule(who=inside)
    def park(self, who: Text) -> None:
        if who in self.known:
            self.turns.park(who)
            self.known[who] = "parked"

    @rule(who=inside)
    def resume(self, who: Text) -> None:
        self.turns.resume(who)
        if self.known.get(who) == "parked":
            self.known[who] = "wants"
            self.waited[who] = 0

    @rule(who=consumes(inside))
    def remove(self, who: Text) -> None:
        self.turns.remove(who)
        self.known.pop(who, None)

    @rule()
    def step(self) -> None:
        wanting = [each for each, what in self.known.items() if what == "wants"]
        riding = self.turns.next()
        assert len(riding) == len(set(riding)) == min(self.slots, len(wanting))
        assert set(riding) <= set(wanting)
        for each in wanting:
            self.waited[each] = 0 if each in riding else self.waited[each] + 1
            # Nobody can have been passed by more than all those who ever wanted a turn beside it.
            assert self.waited[each] <= ceil(len(self.known) / self.slots) + len(self.waited)

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        everybody = self.turns.everybody
        assert len(everybody) == len(set(everybody)) == len(self.turns) == len(self.known)
        assert set(everybody) == self.known.keys()
        assert set(self.turns.parked) == {each for each, what in self.known.items() if what == "parked"}
        assert self.turns.wanting == len(self.known) - len(self.turns.parked)


TestBookkeeping = Bookkeeping.TestCase


@given(count=st.integers(1, 40), slots=st.integers(1, 12))
def test_each_text_rides_once_in_every_round(count: int, slots: int) -> None:
    turns = Turns(slots)
    texts = [text(max_tokens=1 if number % 2 else 10**6) for number in range(count)]
    for each in texts:
        turns.join(each)
    bound = ceil(count / slots)
    last = dict.fromkeys(texts, 0)
    for step in range(1, 4 * bound + 1):
        for each in turns.next():
            last[each] = step
        assert all(step - seen < bound for seen in last.values()), "somebody waited for more than a round"


@given(others=st.integers(0, 30), slots=st.integers(1, 8), steps=st.integers(0, 5))
def test_a_newcomer_rides_within_one_round_however_many_there_are(others: int, slots: int, steps: int) -> None:
    turns = Turns(slots)
    for _ in range(others):
        turns.join(text())
    for _ in range(steps):
        turns.next()
    newcomer = text()
    turns.join(newcomer)
    assert any(newcomer in turns.next() for _ in range(ceil((others + 1) / slots)))


def test_a_text_that_fits_joins_at_the_next_step_and_nobody_makes_room() -> None:
    turns = Turns(4)
    early = [text(), text()]
    for each in early:
        turns.join(each)
    turns.next()
    late = text()
    turns.join(late)
    assert set(turns.next()) == {*early, late}


def test_a_parked_text_rides_no_more_until_it_is_resumed_and_then_comes_last() -> None:
    turns = Turns(1)
    slow, other = text(), text()
    turns.join(slow)
    turns.park(slow)
    assert turns.next() == []
    turns.join(other)
    assert turns.next() == [other]
    turns.resume(slow)
    assert turns.next() == [slow]


def test_one_that_left_is_not_brought_back_by_being_resumed() -> None:
    turns = Turns(1)
    gone = text()
    turns.join(gone)
    turns.park(gone)
    turns.remove(gone)
    turns.resume(gone)
    turns.remove(gone)
    assert (len(turns), turns.next()) == (0, [])


@pytest.mark.parametrize(
    ("texts", "token_s", "steps"),
    [
        ([text()], 0.0, FIRST_STEPS),
        ([text(spoke=True)], 0.0, 32),
        ([text(), text(spoke=True)], 0.0, FIRST_STEPS),
        ([text(), text(spoke=True), text(spoke=True)], 0.0, 32),
        ([text(prompt=FIRST_STEPS)], 0.0, FIRST_STEPS),
        ([text(prompt=FIRST_STEPS + 1)], 0.0, 32),
        ([text(max_tokens=1)], 0.0, 1),
        ([text(prompt=20, max_tokens=1)], 0.0, 20),
        ([text(max_tokens=5, spoke=True), text(max_tokens=7, spoke=True)], 0.0, 7),
        ([text(spoke=True)], STEP_S / 4.5, 4),
        ([text(spoke=True)], 10 * STEP_S, 1),
        ([text(spoke=True)], 1e-9, 32),
    ],
    ids=str,
)
def test_how_long_a_step_is(texts: Any, token_s: float, steps: int) -> None:
    assert steps_of(texts, 32, token_s) == steps
