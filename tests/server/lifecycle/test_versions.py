"""What to load and let go: every rule of the policy, by plain values."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.lifecycle.versions import (
    Current,
    Decision,
    Every,
    Found,
    Latest,
    Policy,
    Specific,
    decide,
    wanted,
)


def found(*numbers: int, settled: bool = True, stamp: str = "") -> dict[int, Found]:
    return {number: Found(stamp=f"{number}{stamp}", settled=settled) for number in numbers}


def serving(*numbers: int) -> dict[int, Current]:
    return {number: Current(serving=str(number)) for number in numbers}


def failed(*numbers: int) -> dict[int, Current]:
    return {number: Current(failed=str(number)) for number in numbers}


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (Latest(), {10}),
        (Latest(2), {3, 10}),
        (Latest(9), {1, 2, 3, 10}),
        (Every(), {1, 2, 3, 10}),
        (Specific(frozenset({2, 7})), {2}),
    ],
)
def test_a_policy_chooses_by_number_and_not_by_text(policy: Policy, chosen: set[int]) -> None:
    assert wanted([1, 2, 3, 10], policy) == chosen


def test_the_first_version_is_loaded() -> None:
    assert decide(found(1), {}, Latest()) == Decision(load=(1,))


def test_the_highest_is_loaded_first() -> None:
    assert decide(found(1, 2, 3), {}, Latest(2)) == Decision(load=(3, 2))


def test_a_predecessor_stays_while_its_successor_is_loaded() -> None:
    assert decide(found(1, 2), serving(1), Latest()) == Decision(load=(2,))


def test_a_predecessor_goes_once_its_successor_serves() -> None:
    assert decide(found(1, 2), serving(1, 2), Latest()) == Decision(unload=(1,))


def test_a_failed_successor_leaves_its_predecessor_serving() -> None:
    assert decide(found(1, 2), serving(1) | failed(2), Latest()) == Decision()


def test_beside_a_broken_version_a_restarted_server_serves_the_one_before_it() -> None:
    assert decide(found(1, 2), failed(2), Latest()) == Decision(load=(1,))


def test_a_failed_version_is_tried_again_when_its_files_change() -> None:
    assert decide(found(1) | found(2, stamp="mended"), serving(1) | failed(2), Latest()) == Decision(load=(2,))


def test_a_version_that_is_still_written_is_waited_for_while_the_one_before_it_serves() -> None:
    unsettled = found(1) | found(2, settled=False)
    assert decide(unsettled, serving(1), Latest()) == Decision(waiting=(2,))
    assert decide(unsettled, {}, Latest()) == Decision(load=(1,), waiting=(2,))


def test_a_version_that_is_not_wanted_is_not_waited_for() -> None:
    assert decide(found(1, settled=False) | found(2), serving(2), Latest()) == Decision()


def test_files_changed_in_place_are_loaded_anew_beside_what_serves() -> None:
    assert decide(found(1, stamp="new"), serving(1), Latest()) == Decision(load=(1,))


def test_files_changed_for_the_worse_leave_what_serves() -> None:
    current = {1: Current(serving="1", failed="1broken")}
    assert decide(found(1, stamp="broken"), current, Latest()) == Decision()


def test_a_deleted_version_is_let_go() -> None:
    assert decide({}, serving(1), Latest()) == Decision(unload=(1,))


def test_a_deleted_version_serves_until_its_successor_does() -> None:
    assert decide(found(2), serving(1), Latest()) == Decision(load=(2,))
    assert decide(found(2), serving(1) | failed(2), Latest()) == Decision(unload=(1,))


def test_a_rollback_by_deleting_the_new_version_loads_the_old_one_before_the_new_one_goes() -> None:
    assert decide(found(1), serving(2), Latest()) == Decision(load=(1,))
    assert decide(found(1), serving(1, 2), Latest()) == Decision(unload=(2,))


def test_a_policy_of_particular_versions_takes_no_other_in_their_place() -> None:
    assert decide(found(1, 2, 3), failed(2), Specific(frozenset({2}))) == Decision()


NUMBERS = st.integers(1, 5)
FOUND = st.dictionaries(NUMBERS, st.builds(Found, stamp=st.sampled_from("abc"), settled=st.booleans()))
CURRENT = st.dictionaries(
    NUMBERS, st.builds(Current, serving=st.sampled_from([None, *"abc"]), failed=st.sampled_from([None, *"abc"]))
)
POLICY = st.one_of(
    st.builds(Latest, st.integers(1, 3)),
    st.just(Every()),
    st.builds(Specific, st.frozensets(NUMBERS)),
)


@given(FOUND, CURRENT, POLICY, st.frozensets(NUMBERS))
def test_following_the_decisions_ends_and_never_leaves_a_gap(
    folders: Mapping[int, Found], current: Mapping[int, Current], policy: Policy, broken: frozenset[int]
) -> None:
    """Whatever fails, loads end; and something that serves goes only when nothing is left to load."""
    state = dict(current)
    for _ in range(40):
        decision = decide(folders, state, policy)
        if decision.load:
            assert not decision.unload
            number = decision.load[0]
            before = state.get(number, Current())
            stamp = folders[number].stamp
            state[number] = (
                Current(serving=before.serving, failed=stamp) if number in broken else Current(serving=stamp)
            )
            continue
        for number in decision.unload:
            state[number] = Current(failed=state[number].failed)
        if not decision.unload:
            break
    else:
        pytest.fail("the decisions do not end")
    assert decide(folders, state, policy).load == ()
