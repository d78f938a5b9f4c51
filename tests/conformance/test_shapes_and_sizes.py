"""Shapes, and bytes that do not match them: cases 3 to 7, 10 and 11."""

import math

import numpy as np
import pytest
from conformance.process import MIB, ServerProcess
from conformance.wire import CONTENTS, DATATYPES, NUMPY, Caller, Tensor, ask, invalid, ok, strings, tensor, zeros

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)

case_3 = pytest.mark.case("3", "raw bytes fewer or more than shape x dtype", "INVALID_ARGUMENT, both numbers")


@case_3
@pytest.mark.parametrize("datatype", NUMPY)
@pytest.mark.parametrize(
    "difference", ["nothing", "1 fewer", "1 more", "an element fewer", "an element more", "double"]
)
def test_raw_bytes_that_do_not_fill_the_shape_exactly_are_refused(
    caller: Caller, datatype: str, difference: str
) -> None:
    itemsize = NUMPY[datatype].itemsize
    expected = 8 * itemsize
    got = {
        "nothing": 0,
        "1 fewer": expected - 1,
        "1 more": expected + 1,
        "an element fewer": expected - itemsize,
        "an element more": expected + itemsize,
        "double": 2 * expected,
    }[difference]
    invalid(caller.infer(ask(f"identity_{datatype.lower()}", Tensor("x", datatype, (2, 4), bytes(got)))), expected, got)


@case_3
@pytest.mark.parametrize("got", [0, 3, 5, 8])
def test_raw_bytes_of_a_scalar_are_exactly_one_element(caller: Caller, got: int) -> None:
    invalid(caller.infer(ask("scalar", Tensor("x", "FP32", (), bytes(got)))), 4, got)


@case_3
@pytest.mark.parametrize("got", [1, 4, 1000])
def test_raw_bytes_of_an_empty_tensor_are_none(caller: Caller, got: int) -> None:
    invalid(caller.infer(ask("identity_fp32", Tensor("x", "FP32", (1, 0), bytes(got)))), 0, got)


@case_3
@pytest.mark.parametrize("datatype", [name for name in CONTENTS if name != "BYTES"])
@pytest.mark.parametrize("got", [1, 7, 9, 100])
def test_typed_elements_that_do_not_fill_the_shape_are_refused(caller: Caller, datatype: str, got: int) -> None:
    request = ask(f"identity_{datatype.lower()}", zeros(datatype, (2, 4)))
    del request.raw_input_contents[:]
    getattr(request.inputs[0].contents, CONTENTS[datatype]).extend([0] * got)
    invalid(caller.infer(request), 8, got)


case_4 = pytest.mark.case("4", "BYTES: fewer or more elements than the shape", "INVALID_ARGUMENT, both counts")


@case_4
@pytest.mark.parametrize("got", [0, 1, 6, 7, 9, 10, 1000])
@pytest.mark.parametrize("element", [b"", b"one"], ids=["empty", "three bytes"])
def test_a_wrong_number_of_raw_strings_is_refused(caller: Caller, got: int, element: bytes) -> None:
    invalid(caller.infer(ask("identity_bytes", strings("x", [element] * got, (2, 4)))), 8, got)


@case_4
@pytest.mark.parametrize("got", [1, 6, 9])
def test_a_wrong_number_of_typed_strings_is_refused(caller: Caller, got: int) -> None:
    request = ask("identity_bytes", strings("x", [b""] * 8, (2, 4)))
    del request.raw_input_contents[:]
    request.inputs[0].contents.bytes_contents.extend([b"one"] * got)
    invalid(caller.infer(request), 8, got)


case_5 = pytest.mark.case(
    "5", "BYTES: length beyond the buffer; bytes left over", "INVALID_ARGUMENT, no big allocation"
)


@case_5
@pytest.mark.parametrize("length", [6, 7, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 4, (1 << 32) - 1])
@pytest.mark.parametrize("at", ["first", "last"])
def test_a_string_longer_than_what_is_left_is_refused(
    server: ServerProcess, caller: Caller, length: int, at: str
) -> None:
    whole = strings("x", [b"fine!"]).raw
    lying = length.to_bytes(4, "little") + b"five!"
    raw = lying + whole if at == "first" and length > 14 else whole + lying
    before = server.memory_bytes("VmHWM")
    invalid(caller.infer(ask("identity_bytes", Tensor("x", "BYTES", (1, 2), raw))))
    assert server.memory_bytes("VmHWM") - before < 16 * MIB, "it allocated what the length claimed"


@case_5
@pytest.mark.parametrize("left_over", [b"\0", b"\1\0", b"\0\0\0"], ids=["1", "2", "3"])
@pytest.mark.parametrize("elements", [0, 1, 4])
def test_a_length_that_is_not_complete_is_refused(caller: Caller, left_over: bytes, elements: int) -> None:
    raw = strings("x", [b"abc"] * elements).raw + left_over
    invalid(caller.infer(ask("identity_bytes", Tensor("x", "BYTES", (1, elements), raw))))
    invalid(caller.infer(ask("identity_bytes", Tensor("x", "BYTES", (1, elements + 1), raw))))


@case_5
@pytest.mark.parametrize("cut", range(1, 14))
def test_strings_cut_at_any_byte_are_refused(caller: Caller, cut: int) -> None:
    raw = strings("x", [b"abc", b"", b"xyz"]).raw
    assert len(raw) == 18
    invalid(caller.infer(ask("identity_bytes", Tensor("x", "BYTES", (1, 3), raw[:-cut]))))


case_6 = pytest.mark.case("6", "negative dimensions; wrong rank", "INVALID_ARGUMENT")


@case_6
@pytest.mark.parametrize("dimension", [-1, -2, -4, INT64_MIN, INT64_MIN + 1, -(1 << 32)])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_a_negative_dimension_is_refused_by_value(caller: Caller, dimension: int, position: int, datatype: str) -> None:
    shape = (dimension, 4) if position == 0 else (1, dimension)
    invalid(caller.infer(ask(f"identity_{datatype.lower()}", Tensor("x", datatype, shape, bytes(16)))), dimension)


@case_6
@pytest.mark.parametrize("shape", [(-2, -2), (-1, -4), (-1, -1, 4)])
def test_negative_dimensions_whose_product_is_right_are_refused(caller: Caller, shape: tuple[int, ...]) -> None:
    invalid(caller.infer(ask("identity_fp32", Tensor("x", "FP32", shape, bytes(16)))))


@case_6
@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 4), (1,) * 15 + (4,), (1,) * 16 + (4,), (1,) * 33, (1,) * 100_000])
def test_a_wrong_rank_is_refused(caller: Caller, shape: tuple[int, ...]) -> None:
    outcome = caller.infer(ask("identity_fp32", Tensor("x", "FP32", shape, bytes(4 * math.prod(shape)))))
    invalid(outcome)
    assert len(outcome.details) < 2000, "a caller's shape is quoted without end"


@case_6
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("mlp", (1, 9)),
        ("mlp", (1, 11)),
        ("mlp", (10, 1)),
        ("mlp", (10,)),
        ("mlp", (1, 0)),
        ("fixed", (3, 2)),
        ("fixed", (1, 3)),
        ("fixed", (2, 3, 1)),
        ("fixed", (0, 3)),
        ("scalar", (1,)),
        ("scalar", (0,)),
        ("scalar", (1, 1)),
    ],
)
def test_a_shape_other_than_the_models_is_refused(caller: Caller, model: str, shape: tuple[int, ...]) -> None:
    invalid(caller.infer(ask(model, zeros("FP32", shape))))


@case_6
def test_inputs_that_disagree_on_the_batch_are_refused(caller: Caller) -> None:
    invalid(caller.infer(ask("pair", zeros("FP32", (2, 2), "left"), zeros("INT32", (3, 3), "right"))))


case_7 = pytest.mark.case("7", "shape product overflows 64 bits", "INVALID_ARGUMENT before any allocation")

# Products that are small again modulo 2^64, in elements or, times 4 or 8, in bytes.
OVERFLOWS = [
    (1 << 4, (1 << 60) + 2),
    (1 << 32, 1 << 32),
    (1 << 62, 4),
    (1 << 62, 1),
    (1 << 61, 1),
    ((1 << 62) + 1, 4),
    (INT64_MAX, INT64_MAX),
    (INT64_MAX, 2),
    (INT64_MAX, 1),
    ((1 << 31) + 1, (1 << 31) + 1),
    (1 << 40, 1),
]


@case_7
@pytest.mark.parametrize("shape", OVERFLOWS, ids=str)
@pytest.mark.parametrize("filled", ["wrapped", "empty"])
def test_a_shape_whose_size_overflows_is_refused_before_any_allocation(
    server: ServerProcess, caller: Caller, shape: tuple[int, ...], filled: str
) -> None:
    before = server.memory_bytes("VmHWM")
    for datatype in ("FP32", "FP64", "INT8", "BOOL", "BYTES"):
        # The hostile form brings exactly as many bytes as arithmetic modulo 2^64 would ask for.
        itemsize = 4 if datatype == "BYTES" else NUMPY[datatype].itemsize
        wrapped = math.prod(shape) * itemsize % (1 << 64)
        raw = bytes(wrapped) if filled == "wrapped" and wrapped <= MIB else b""
        for order in (shape, shape[::-1]):
            invalid(caller.infer(ask(f"identity_{datatype.lower()}", Tensor("x", datatype, order, raw))))
    assert server.memory_bytes("VmHWM") - before < 16 * MIB, "it allocated before it refused"


@case_7
@pytest.mark.parametrize("shape", [(0, INT64_MAX), (INT64_MAX, 0), (0, 1 << 32)], ids=str)
def test_a_huge_dimension_beside_a_zero_harms_nothing(caller: Caller, shape: tuple[int, ...]) -> None:
    outcome = caller.infer(ask("identity_fp32", Tensor("x", "FP32", shape, b"")))
    if not outcome.ok:
        invalid(outcome)


case_10 = pytest.mark.case("10", "zero-size dimension where the model allows it", "OK, zero-size output")


@case_10
@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(1, 0), (0, 0), (0, 4), (3, 0)], ids=str)
def test_a_tensor_without_elements_is_answered_with_one(caller: Caller, datatype: str, shape: tuple[int, ...]) -> None:
    answer = ok(caller.infer(ask(f"identity_{datatype.lower()}", zeros(datatype, shape))))["y"]
    assert (answer.shape, answer.raw) == (shape, b"")


@case_10
def test_no_rows_are_answered_with_no_rows(caller: Caller) -> None:
    answer = ok(caller.infer(ask("mlp", zeros("FP32", (0, 10)))))["y"]
    assert (answer.shape, answer.raw) == ((0, 1), b"")


case_11 = pytest.mark.case("11", "more rows than max_batch_size", "INVALID_ARGUMENT with the limit")
MAX_ROWS = 64


@case_11
@pytest.mark.parametrize("rows", [65, 66, 128, 10_000])
@pytest.mark.parametrize("model", ["mlp", "copied", "identity_fp32"])
def test_more_rows_than_one_run_takes_are_refused_with_the_limit(caller: Caller, model: str, rows: int) -> None:
    invalid(caller.infer(ask(model, zeros("FP32", (rows, 10)))), MAX_ROWS, rows)


@case_11
@pytest.mark.parametrize("rows", [1, 2, 63, 64])
def test_rows_up_to_the_limit_are_served(caller: Caller, rows: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    assert ok(caller.infer(ask("identity_fp32", tensor("x", x))))["y"].raw == x.tobytes()


@pytest.mark.parametrize("rows", [1, 65, 1000])
def test_a_model_whose_rows_depend_on_each_other_has_no_limit_of_rows(caller: Caller, rows: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    answer = ok(caller.infer(ask("crowd", tensor("x", x))))["y"].array
    np.testing.assert_allclose(answer, x - x.mean(axis=0, keepdims=True), atol=1e-5)


def test_a_scalar_goes_in_and_comes_out(caller: Caller) -> None:
    answer = ok(caller.infer(ask("scalar", tensor("x", np.array(21, np.float32)))))["y"]
    assert (answer.shape, float(answer.array)) == ((), 42.0)


def test_a_fixed_batch_is_served_as_it_stands(caller: Caller) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert ok(caller.infer(ask("fixed", tensor("x", x))))["y"].array.tolist() == (-x).tolist()
