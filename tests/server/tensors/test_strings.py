"""BYTES tensors: lengths that lie, text that is none, and tensors of ten million elements."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.errors import InvalidRequest, RunFailed
from forwardpass_server.tensors import strings


def wire(*elements: bytes) -> memoryview:
    return memoryview(b"".join(struct.pack("<I", len(element)) + element for element in elements))


def objects(elements: list[str]) -> np.ndarray:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


@given(st.lists(st.text(), max_size=200))
def test_text_comes_back_as_it_went(elements: list[str]) -> None:
    encoded = bytes(strings.encode(objects(elements)))
    assert encoded == bytes(wire(*(element.encode() for element in elements)))
    assert strings.decode(memoryview(encoded), len(elements), "x") == elements


@given(st.integers(1, 400), st.text(alphabet="ab\0é", max_size=3))
def test_many_equal_elements_come_back_as_they_went(count: int, element: str) -> None:
    encoded = memoryview(bytes(strings.encode(objects([element] * count))))
    assert strings.decode(encoded, count, "x") == [element] * count


@given(st.binary(max_size=64), st.integers(0, 16))
def test_any_bytes_give_elements_or_a_refusal(raw: bytes, count: int) -> None:
    try:
        elements = strings.decode(memoryview(raw), count, "x")
    except InvalidRequest:
        return
    assert len(elements) == count
    assert bytes(strings.encode(objects(elements))) == raw


@pytest.mark.parametrize("got", [2, 5])
def test_a_wrong_number_of_elements_names_both_counts(got: int) -> None:
    with pytest.raises(InvalidRequest, match=f"'x': expected 4 elements, got {got}"):
        strings.decode(wire(*[b"abc"] * got), 4, "x")


def test_equal_lengths_of_the_wrong_count_are_not_mistaken_for_the_shape() -> None:
    # 4 elements of 4 bytes are as long as 2 of 12: the lengths, not the total, must decide
    with pytest.raises(InvalidRequest, match="expected 2 elements, got 4"):
        strings.decode(wire(*[b"abcd"] * 4), 2, "x")


def test_a_length_beyond_the_end_is_refused_without_allocating_it() -> None:
    with pytest.raises(InvalidRequest, match="element 1 says 4294967295 bytes, 3 are left"):
        strings.decode(memoryview(bytes(wire(b"ab")) + b"\xff\xff\xff\xffabc"), 2, "x")


@pytest.mark.parametrize("left", [1, 2, 3])
def test_bytes_left_over_are_refused(left: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{left} bytes are left over after element 1"):
        strings.decode(memoryview(bytes(wire(b"ab")) + b"\0" * left), 1, "x")


@pytest.mark.parametrize("count", [1, 300])
def test_text_that_is_not_utf8_is_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match="'x': an element is not UTF-8"):
        strings.decode(wire(*[b"\xff\xfe"] * count), count, "x")


def test_nul_and_empty_and_a_megabyte_survive() -> None:
    elements = ["a\0b", "", "\0", "é" * 2**19, "🂡"]
    encoded = memoryview(bytes(strings.encode(objects(elements))))
    assert strings.decode(encoded, len(elements), "x") == elements


def test_ten_million_elements_of_one_byte() -> None:
    count = 10_485_760
    raw = b"\1\0\0\0x" * count
    elements = strings.decode(memoryview(raw), count, "x")
    assert len(elements) == count
    assert set(elements) == {"x"}
    assert bytes(strings.encode(objects(elements))) == raw


def test_an_output_element_that_is_no_text_is_our_fault() -> None:
    with pytest.raises(RunFailed, match="no text"):
        strings.encode(objects(["a", 3.5]))  # type: ignore[list-item]
    with pytest.raises(RunFailed, match="no text"):
        strings.encode(objects(["\ud800"]))
