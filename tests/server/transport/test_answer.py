"""What an answer may carry."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.transport.answer import MAX_MESSAGE_BYTES, checked_code, checked_metadata, shown, status_message

text = st.text(st.characters(codec="utf-8"))


def wire_bytes(message: bytes) -> int:
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in message)


@given(text, st.integers(1, 3000))
def test_a_message_never_exceeds_its_limit_and_short_ones_are_untouched(unit: str, times: int) -> None:
    message = unit * times
    sent = status_message(message)
    assert wire_bytes(sent) <= MAX_MESSAGE_BYTES
    if wire_bytes(message.encode()) <= MAX_MESSAGE_BYTES:
        assert sent.decode() == message
    else:
        kept = sent.decode().removesuffix(" … (cut)")
        assert message.startswith(kept)
        assert wire_bytes(sent) > MAX_MESSAGE_BYTES - 12, "no more is cut than needed"


def test_a_gigantic_message_is_cut_without_reading_all_of_it() -> None:
    assert len(status_message("x" * 50_000_000)) <= MAX_MESSAGE_BYTES


@given(st.text())
def test_what_is_shown_is_printable_ascii_and_short(name: str) -> None:
    there = shown(name)
    assert there.isascii()
    assert there.isprintable()
    assert len(there) <= 1000 + 6
    if name.isascii() and name.isprintable() and len(name) <= 100:
        assert there == name


def test_a_line_end_cannot_forge_a_line() -> None:
    assert shown("a\nINFO all is well") == "a\\nINFO all is well"


@pytest.mark.parametrize("code", [0, 17, -3])
def test_codes_outside_1_to_16_are_refused(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        checked_code(code)


@given(st.lists(st.tuples(st.from_regex(r"[0-9a-z_.]{1,9}", fullmatch=True), st.from_regex(r"[ -~]*", fullmatch=True))))
def test_metadata_that_can_be_carried_is_given_back(pairs: list[tuple[str, str]]) -> None:
    assert checked_metadata(tuple(pairs)) == tuple(pairs)


def test_quoting_agrees_with_the_counting() -> None:
    every = "".join(map(chr, range(0x250)))
    unquoted = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
    assert len(quote(every, safe=unquoted)) == wire_bytes(every.encode())
