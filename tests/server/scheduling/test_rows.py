"""The arrays of the steps: whoever comes and goes, each row holds what its text has been."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.runtime.fake_generator import CHARACTERS, FakeGeneratorRun, fake_generator, right_text
from forwardpass_server.scheduling.rows import Rows
from forwardpass_server.scheduling.text import Sampling, Text

GENERATOR = fake_generator()
TOKEN, FORCED, UNIFORM, TEMPERATURE, TOP_K, TOP_P, STATE = range(7)


def text(prompt: str = "a", max_tokens: int = 1000, **sampling: float) -> Text:
    tokens = [CHARACTERS.index(character) for character in prompt]
    return Text(tokens, Sampling(max_tokens=max_tokens, **sampling), object(), Timeline())  # type: ignore[arg-type]


def advance(rows: Rows, texts: list[Text], steps: int) -> dict[Text, str]:
    """One step; what each text wrote in it."""
    step = rows.step(texts, steps)
    tokens, state = FakeGeneratorRun(GENERATOR)(step.inputs, [0, 1])
    rows.keep(range(len(texts)), tokens, [state])
    wrote = {}
    for row, each in enumerate(texts):
        read = step.forced[row]
        each.unread -= read
        count = min(steps - read, each.left)
        each.left -= count
        wrote[each] = "".join(CHARACTERS[token] for token in tokens[row, read : read + count])
    return wrote


@given(
    prompts=st.lists(st.text("".join(CHARACTERS), min_size=1, max_size=40), min_size=1, max_size=6),
    steps=st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.integers(1, 32)), min_size=1, max_size=12),
)
def test_whoever_rides_with_whom_each_text_is_its_own(prompts: list[str], steps: list[tuple[set[int], int]]) -> None:
    rows = Rows(GENERATOR)
    texts = [text(prompt, seed=number, temperature=0.7) for number, prompt in enumerate(prompts)]
    written = dict.fromkeys(texts, "")
    for riders, count in steps:
        riding = [texts[number] for number in riders if number < len(texts)]
        if riding:
            for each, wrote in advance(rows, riding, count).items():
                written[each] += wrote
    for number, each in enumerate(texts):
        right = right_text(prompts[number], Sampling(max_tokens=400, seed=number, temperature=0.7))
        assert right.startswith(written[each][:400])


def test_the_prompt_is_forced_and_the_rest_has_its_numbers() -> None:
    step = Rows(GENERATOR).step([text("abcde", seed=1), text("a", seed=1), text("a", temperature=0)], 6)
    assert step.forced == [4, 0, 0]
    assert step.inputs[TOKEN].tolist() == [[0], [0], [0]]
    assert step.inputs[FORCED].tolist() == [[1, 2, 3, 4, -1, -1], [-1] * 6, [-1] * 6]
    numbers = step.inputs[UNIFORM]
    assert numbers[0, 4:].tolist() == numbers[1, :2].tolist()
    assert not numbers[2].any()
    assert step.inputs[TEMPERATURE].tolist() == [[1], [1], [0]]
    assert not step.inputs[STATE].any()


def test_no_numbers_are_drawn_beyond_the_end_of_a_text() -> None:
    short = text(max_tokens=3, seed=1)
    step = Rows(GENERATOR).step([short, text()], 8)
    assert step.inputs[UNIFORM][0, :3].all()
    assert not step.inputs[UNIFORM][0, 3:].any()


def test_states_stay_where_they_are_while_nobody_comes_or_goes() -> None:
    rows, texts = Rows(GENERATOR), [text("a"), text("b")]
    advance(rows, texts, 4)
    left = rows.step(texts, 4).inputs[STATE]
    assert left is rows.step(texts, 4).inputs[STATE]
    assert texts[0].states is None


def test_one_that_is_left_out_holds_its_own_rows_and_no_more() -> None:
    rows, texts = Rows(GENERATOR), [text("a"), text("b"), text("c")]
    advance(rows, texts, 4)
    rows.step(texts[:1], 4)
    for each in texts[1:]:
        assert each.states is not None
        assert all(array.shape[0] == 1 and array.base is None for array in each.states)
    rows.forget(texts[2])
    rows.step(texts[:2], 4)
    assert texts[1].states is None


def test_rows_that_failed_are_dropped_and_the_others_keep_their_settings() -> None:
    rows, texts = Rows(GENERATOR), [text("a"), text("b", top_k=5), text("c", top_k=7)]
    step = rows.step(texts, 2)
    tokens, state = FakeGeneratorRun(GENERATOR)([array[[0, 2]] for array in step.inputs], [0, 1])
    rows.keep([0, 2], tokens, [state])
    after = rows.step([texts[0], texts[2]], 2)
    assert after.inputs[TOP_K].tolist() == [[0], [7]]
    assert np.array_equal(after.inputs[STATE], state)
    assert after.inputs[TOKEN].tolist() == tokens[:, -1:].tolist()
