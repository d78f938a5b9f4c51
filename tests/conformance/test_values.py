"""Values that come back bit for bit, or are refused: cases 12 to 14."""

import numpy as np
import pytest
from conformance.process import ServerProcess
from conformance.wire import NUMPY, Caller, Tensor, ask, invalid, ok, strings

case_12 = pytest.mark.case("12", "NaN, Inf, −0.0, subnormals; every bit pattern", "bit-exact through identity")

# Sign, exponent all ones, fraction: quiet and signalling NaNs with payloads, infinities, zeros, subnormals, extremes.
PATTERNS = {
    "FP16": [0x7E00, 0xFE01, 0x7C01, 0x7DFF, 0x7C00, 0xFC00, 0x8000, 0x0001, 0x83FF, 0x7BFF],
    "BF16": [0x7FC0, 0xFFC1, 0x7F81, 0x7FBF, 0x7F80, 0xFF80, 0x8000, 0x0001, 0x807F, 0x7F7F],
    "FP32": [
        0x7FC00000,
        0xFFC12345,
        0x7F800001,
        0xFFBFFFFF,
        0x7F800000,
        0xFF800000,
        0x80000000,
        1,
        0x807FFFFF,
        0x7F7FFFFF,
    ],
    "FP64": [
        0x7FF8000000000000,
        0xFFF8123456789ABC,
        0x7FF0000000000001,
        0x7FF0000000000000,
        0xFFF0000000000000,
        0x8000000000000000,
        1,
        0x800FFFFFFFFFFFFF,
        0x7FEFFFFFFFFFFFFF,
    ],
}


def identical(caller: Caller, datatype: str, raw: bytes, shape: tuple[int, ...]) -> None:
    answer = ok(caller.infer(ask(f"identity_{datatype.lower()}", Tensor("x", datatype, shape, raw))))["y"]
    assert (answer.datatype, answer.shape) == (datatype, shape)
    assert answer.raw == raw, "the bits changed"


@case_12
@pytest.mark.parametrize("datatype", PATTERNS)
def test_every_kind_of_float_comes_back_to_the_bit(caller: Caller, datatype: str) -> None:
    width = NUMPY[datatype].itemsize
    raw = b"".join(pattern.to_bytes(width, "little") for pattern in PATTERNS[datatype])
    identical(caller, datatype, raw, (1, len(PATTERNS[datatype])))


@case_12
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "INT16", "UINT16"])
def test_all_65_536_patterns_of_two_bytes_come_back(caller: Caller, datatype: str) -> None:
    identical(caller, datatype, np.arange(1 << 16, dtype="<u2").tobytes(), (16, 4096))


@case_12
@pytest.mark.parametrize("datatype", ["INT8", "UINT8"])
def test_all_256_patterns_of_one_byte_come_back(caller: Caller, datatype: str) -> None:
    identical(caller, datatype, bytes(range(256)), (2, 128))


@case_12
@pytest.mark.parametrize("datatype", [name for name in NUMPY if name != "BOOL"])
def test_random_bits_come_back(caller: Caller, datatype: str) -> None:
    identical(caller, datatype, np.random.default_rng(12).bytes(64 * 33 * NUMPY[datatype].itemsize), (64, 33))


@case_12
def test_booleans_come_back(caller: Caller) -> None:
    identical(caller, "BOOL", bytes([0, 1, 1, 0, 1]), (5, 1))


@pytest.mark.parametrize("byte", [2, 127, 128, 255])
def test_a_boolean_that_is_neither_0_nor_1_is_refused_or_read_as_true(caller: Caller, byte: int) -> None:
    outcome = caller.infer(ask("identity_bool", Tensor("x", "BOOL", (1, 2), bytes([byte, 0]))))
    if outcome.ok:
        assert outcome.outputs["y"].raw == b"\x01\x00"
    else:
        invalid(outcome)


case_13 = pytest.mark.case(
    "13", "strings: \\0, empty, 1 MB, invalid UTF-8", "bit-exact; invalid UTF-8 INVALID_ARGUMENT"
)

TEXTS = {
    "empty": b"",
    "one zero": b"\0",
    "zero inside": b"a\0b",
    "zeros at the end": b"ab\0\0\0",
    "only zeros": bytes(7),
    "spaces": b" a \t\r\n ",
    "two bytes": "é".encode(),
    "three bytes": "日本語".encode(),
    "four bytes": "😀🏴".encode(),
    "combining": "e\u0301".encode(),
    "byte order mark": "\ufeffx".encode(),
    "last code point": "\U0010ffff".encode(),
    "noncharacter": "\uffff".encode(),
    "a length inside": b"\x05\0\0\0abcde",
    "1 MB": b"x" * 1_000_000,
    "1 MB of four bytes": "😀".encode() * 250_000,
}


@case_13
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_string_comes_back_to_the_byte(caller: Caller, text: bytes) -> None:
    sent = [text, b"beside", text]
    answer = ok(caller.infer(ask("identity_bytes", strings("x", sent))))["y"]
    assert (answer.shape, answer.strings == sent) == ((1, 3), True)


@case_13
def test_strings_keep_their_places_in_rows_and_columns(caller: Caller) -> None:
    sent = [f"{row},{column}".encode() for row in range(64) for column in range(5)]
    answer = ok(caller.infer(ask("identity_bytes", strings("x", sent, (64, 5)))))["y"]
    assert (answer.shape, answer.strings) == ((64, 5), sent)


NOT_UTF8 = {
    "a continuation byte": b"\x80",
    "a cut sequence": "😀".encode()[:3],
    "an overlong slash": b"\xc0\xaf",
    "an overlong zero": b"\xc0\x80",
    "a surrogate": b"\xed\xa0\x80",
    "beyond the last code point": b"\xf4\x90\x80\x80",
    "never a byte of UTF-8": b"\xff\xfe",
    "Latin-1": "é".encode("latin-1"),
    "at the end of a megabyte": b"x" * 1_000_000 + b"\xff",
}


@case_13
@pytest.mark.parametrize("text", NOT_UTF8.values(), ids=NOT_UTF8)
@pytest.mark.parametrize("field", ["raw", "typed"])
def test_a_string_that_is_not_utf_8_is_refused(caller: Caller, text: bytes, field: str) -> None:
    request = ask("identity_bytes", strings("x", [b"fine", text]))
    if field == "typed":
        del request.raw_input_contents[:]
        request.inputs[0].contents.bytes_contents.extend([b"fine", text])
    outcome = caller.infer(request)
    invalid(outcome, "x")
    assert len(outcome.details) < 2000, "a caller's string is quoted without end"


case_14 = pytest.mark.case("14", "10 485 760 strings of one byte", "OK, 50 MiB back, still live")


@case_14
@pytest.mark.timeout(120)
def test_ten_million_strings_come_back(server: ServerProcess, caller: Caller) -> None:
    count = 10_485_760
    raw = np.tile(np.frombuffer(b"\1\0\0\0s", np.uint8), count).tobytes()
    answer = ok(caller.infer(ask("identity_bytes", Tensor("x", "BYTES", (1, count), raw)), timeout_s=100.0))["y"]
    assert (answer.shape, answer.raw == raw) == ((1, count), True)
