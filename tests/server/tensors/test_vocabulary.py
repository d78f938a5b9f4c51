"""Text to tokens and back."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.tensors.vocabulary import Vocabulary

WORDS = Vocabulary(["", "a", "b", "ab", "abc", "a"])


def test_characters_outside_are_named_with_their_places() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Vocabulary(["a", "b"]).read("aébß\n~x", 100)
    assert "'é' at 1, 'ß' at 3, '\\n' at 4 and 2 more" in str(caught.value)
    assert "2 tokens" in str(caught.value)


def test_three_characters_outside_are_no_more_than_three() -> None:
    with pytest.raises(InvalidRequest, match="'x' at 0, 'y' at 1, 'z' at 2: not in"):
        Vocabulary(["a"]).read("xyz", 100)


def test_a_replacement_stands_for_each_of_them() -> None:
    assert Vocabulary(["a", "?"], replacement=1).read("axya", 100) == [0, 1, 1, 0]


def test_the_longest_token_is_read_and_of_equal_ones_the_first() -> None:
    assert WORDS.read("abcaba", 100) == [4, 3, 1]


def test_an_empty_token_is_written_and_never_read() -> None:
    assert WORDS.write([0, 1, 0, 2]) == "ab"


@pytest.mark.parametrize("vocabulary", [Vocabulary(["a", "b"]), Vocabulary(["a", "b", "aab"]), Vocabulary(["b"], 0)])
def test_no_more_is_read_than_may_be(vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidRequest, match="more than 3 tokens"):
        vocabulary.read("a" * 5, 3)
    assert vocabulary.write(vocabulary.read("bbb", 3)) == "bbb"
    with pytest.raises(InvalidRequest):
        vocabulary.read("~" * 4, 3) if vocabulary.longest > 1 else vocabulary.read("b" * 4, 3)


@given(st.text("abc", max_size=20))
def test_what_is_read_is_written_the_same(text: str) -> None:
    vocabulary = Vocabulary(["a", "b", "c", "ab", "bca"])
    assert vocabulary.write(vocabulary.read(text, 100)) == text


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_the_tokens_that_cover_characters_are_as_few_as_can_be(tokens: list[int], data: st.DataObject) -> None:
    text = WORDS.write(tokens)
    if text:
        characters = data.draw(st.integers(1, len(text)))
        covering = WORDS.covering(tokens, characters)
        assert len(WORDS.write(covering)) >= characters
        assert len(WORDS.write(covering[:-1])) < characters
