"""When silence means that a process hangs; no clock runs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.heartbeat import INTERVAL_S_MAX, Beat, Heartbeat


def test_a_process_that_answers_no_more_hangs_after_the_time_and_not_before() -> None:
    heart = Heartbeat(silence_s=30.0, now=95.0)
    assert heart.look(95.0, answered=True) is Beat.ASK
    beats = [heart.look(100.0 + 5 * step, answered=False) for step in range(7)]
    assert beats == [*[Beat.WAIT] * 5, Beat.HANGS, Beat.HANGS]


def test_a_process_that_starts_is_waited_for_however_long_it_takes() -> None:
    heart = Heartbeat(silence_s=4.0, now=0.0)
    assert heart.look(0.0, answered=False) is Beat.ASK
    assert {heart.look(float(now), answered=False) for now in range(1, 100)} == {Beat.WAIT}
    assert heart.look(100.0, answered=True) is Beat.ASK
    assert [heart.look(float(now), answered=False) for now in range(101, 105)] == [*[Beat.WAIT] * 3, Beat.HANGS]


def test_an_answer_begins_the_time_anew() -> None:
    heart = Heartbeat(silence_s=4.0, now=0.0)
    assert heart.look(0.0, answered=False) is Beat.ASK
    assert [heart.look(now, answered=False) for now in (1.0, 2.0, 3.0)] == [Beat.WAIT] * 3
    assert heart.look(3.9, answered=True) is Beat.ASK
    assert [heart.look(now, answered=False) for now in (4.9, 5.9, 6.9)] == [Beat.WAIT] * 3
    assert heart.look(7.9, answered=False) is Beat.HANGS


def test_time_in_which_the_supervisor_itself_was_stopped_does_not_count() -> None:
    heart = Heartbeat(silence_s=20.0, now=0.0)
    assert heart.look(0.0, answered=True) is Beat.ASK
    assert heart.look(3600.0, answered=False) is Beat.WAIT
    assert heart.look(3605.0, answered=True) is Beat.ASK


def test_without_a_limit_nothing_hangs_and_nobody_is_asked() -> None:
    heart = Heartbeat(silence_s=math.inf, now=0.0)
    assert [heart.look(now, answered=False) for now in (0.0, 1e6, 2e6)] == [Beat.WAIT] * 3
    assert heart.interval_s == INTERVAL_S_MAX


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 50), max_size=50))
def test_a_process_that_answers_by_the_next_look_never_hangs(silence_s: float, pauses_s: list[float]) -> None:
    heart, now = Heartbeat(silence_s, 0.0), 0.0
    for pause_s in pauses_s:
        now += pause_s
        assert heart.look(now, answered=True) is Beat.ASK


@pytest.mark.parametrize("silence_s", [0.1, 1.0, 30.0, 300.0])
def test_looking_at_its_interval_it_is_found_soon(silence_s: float) -> None:
    heart = Heartbeat(silence_s, 0.0)
    heart.look(0.0, answered=True)
    looks = 0
    while heart.look(looks * heart.interval_s, answered=False) is not Beat.HANGS:
        looks += 1
    assert silence_s - 1e-6 <= looks * heart.interval_s <= silence_s + 2 * heart.interval_s
