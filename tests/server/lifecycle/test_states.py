"""The life of a version: the legal steps, and no others."""

import itertools

import pytest

from forwardpass_server.errors import IllegalTransition
from forwardpass_server.lifecycle.states import NEXT, State, step

LIFE = [
    State.FOUND,
    State.VERIFYING,
    State.LOADING,
    State.WARMING,
    State.PROVING,
    State.READY,
    State.DRAINING,
    State.UNLOADED,
]


def test_a_life_goes_from_found_to_unloaded() -> None:
    for before, after in itertools.pairwise(LIFE):
        assert step(before, after) is after


@pytest.mark.parametrize("state", [state for state in LIFE if state is not State.UNLOADED])
def test_every_living_state_may_fail(state: State) -> None:
    assert step(state, State.FAILED) is State.FAILED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (State.FOUND, State.READY),
        (State.PROVING, State.LOADING),
        (State.READY, State.UNLOADED),
        (State.DRAINING, State.READY),
        (State.UNLOADED, State.READY),
        (State.FAILED, State.READY),
        (State.READY, State.READY),
    ],
)
def test_a_leap_is_refused_and_named(before: State, after: State) -> None:
    with pytest.raises(IllegalTransition, match=f"from {before.name} to {after.name}"):
        step(before, after)


def test_every_state_has_its_line() -> None:
    assert set(NEXT) == set(State)


def test_whatever_ended_can_begin_anew() -> None:
    for state in (State.UNLOADED, State.FAILED):
        assert step(state, State.FOUND) is State.FOUND
