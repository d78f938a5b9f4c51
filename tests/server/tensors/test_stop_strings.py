"""Stop strings that come in pieces, overlap, or almost come."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from forwardpass_server.tensors.stop_strings import StopStrings

ALPHABET = st.text("ab", min_size=1, max_size=4)


def fed(strings: list[str], pieces: list[str]) -> tuple[str, int | None]:
    """What was said of the pieces; and how many characters were read when it ended, None if it did not."""
    stops, said, before = StopStrings(strings), "", 0
    for piece in pieces:
        text, read = stops.feed(piece)
        said += text
        if read is not None:
            return said, before + read
        before += len(piece)
    return said + stops.rest(), None


def by_hand(strings: list[str], text: str) -> tuple[str, int | None]:
    """The same, character by character."""
    for end in range(1, len(text) + 1):
        hits = [string for string in strings if text[:end].endswith(string)]
        if hits:
            return text[: end - max(map(len, hits))], end
    return text, None


@given(strings=st.lists(ALPHABET, max_size=3), pieces=st.lists(st.text("abc", max_size=5), max_size=8))
def test_pieces_change_nothing(strings: list[str], pieces: list[str]) -> None:
    assert fed(strings, pieces) == by_hand(strings, "".join(pieces))


@given(strings=st.lists(ALPHABET, min_size=1, max_size=3), pieces=st.lists(st.text("abc", max_size=5), max_size=8))
def test_what_was_said_is_never_part_of_what_stops(strings: list[str], pieces: list[str]) -> None:
    stops, said = StopStrings(strings), ""
    for piece in pieces:
        text, read = stops.feed(piece)
        said += text
        assert not any(string in said for string in strings)
        if read is not None:
            assert 0 < read <= len(piece)
            return


@pytest.mark.parametrize(
    ("strings", "pieces", "said"),
    [
        (["END"], ["to be E", "N", "D or"], "to be "),
        (["END"], ["to be E", "N", "or"], "to be ENor"),
        (["END"], ["to be EN"], "to be EN"),
        (["END"], ["ENEND"], "EN"),
        (["aab"], ["a", "a", "a", "b"], "a"),
        (["abc", "b"], ["a", "b", "c"], "a"),
        (["b", "ab"], ["xab"], "x"),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb"),
        ([], ["any", "thing"], "anything"),
        (["é"], ["caf", "é!"], "caf"),
    ],
)
def test_examples(strings: list[str], pieces: list[str], said: str) -> None:
    assert fed(strings, pieces)[0] == said


def test_no_more_is_held_back_than_could_stop() -> None:
    stops = StopStrings(["ROMEO:"])
    assert stops.feed("to ROM").text == "to "
    assert stops.feed("P").text == "ROMP"
    assert stops.feed("R").text == ""
    assert stops.rest() == "R"
