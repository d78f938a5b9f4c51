"""Values that a model cannot compute with: the caller's fault in words, and never the end of the server."""

from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import pytest
from conformance.wire import Caller, Tensor, ask, invalid, ok, refused, strings, tensor

SMALLEST = -(1 << 63)

case_values = pytest.mark.case(
    "values", "values that the model cannot compute with", "INVALID_ARGUMENT, with the operator"
)
case_fatal = pytest.mark.case("values", "values that end ONNX Runtime's own process", "OK or INVALID_ARGUMENT; alive")
case_memory = pytest.mark.case("values", "values that ask for more memory than there is", "RESOURCE_EXHAUSTED; alive")

Numbers = Mapping[str, Sequence[int] | int]


def inputs(numbers: Numbers) -> list[Tensor]:
    """INT64 tensors of these numbers; `data`, where it is a number, is so many FP32 zeros."""
    return [
        tensor(name, np.zeros(value, np.float32) if name == "data" else np.array(value, np.int64))
        for name, value in numbers.items()
    ]


@case_values
@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        ("op_reshape", {"data": 4, "shape": [3]}),
        ("op_reshape", {"data": 4, "shape": [-1, -1]}),
        ("op_reshape", {"data": 4, "shape": [1 << 62, 4]}),
        ("op_slice", {"data": 4, "starts": [0], "ends": [2], "axes": [0], "steps": [0]}),
        ("op_slice", {"data": 4, "starts": [0], "ends": [2], "axes": [7], "steps": [1]}),
        ("op_gather_elements", {"data": 4, "indices": [9]}),
        ("op_split", {"data": 4, "split": [1, 1]}),
        ("op_split", {"data": 4, "split": [-1, 5]}),
        ("op_topk", {"data": 4, "k": [9]}),
        ("op_topk", {"data": 4, "k": [-1]}),
        ("op_squeeze", {"data": 4, "axes": [0]}),
        ("op_squeeze", {"data": 4, "axes": [5]}),
        ("op_pad", {"data": 4, "pads": [1]}),
        ("op_pad", {"data": 4, "pads": [-9, 0]}),
        ("op_expand", {"data": 4, "shape": [3]}),
        ("op_expand", {"data": 1, "shape": [1 << 62, 4]}),
        ("op_tile", {"data": 4, "repeats": [-3]}),
        ("op_tile", {"data": 4, "repeats": [1 << 40]}),
        ("op_constant_of_shape", {"shape": [-3]}),
        ("op_constant_of_shape", {"shape": [1 << 62, 4]}),
        ("op_range", {"start": 0, "limit": 5, "delta": 0}),
        ("op_div", {"a": [4], "b": [0]}),
        ("op_mod", {"a": [4], "b": [0]}),
        ("op_div", {"a": [1, 2, 3], "b": [1, 2]}),
    ],
    ids=str,
)
def test_values_that_an_operator_refuses_are_the_callers_fault(caller: Caller, model: str, numbers: Numbers) -> None:
    outcome = caller.infer(ask(model, *inputs(numbers)))
    invalid(outcome, "operator")
    assert "/" not in outcome.details, "a path of the server in a message"
    assert "::" not in outcome.details, "a function of C++ in a message"


@case_values
@pytest.mark.parametrize("shape", [[0, (1 << 63) - 1], [1] * 65], ids=["too large", "too many dimensions"])
def test_an_answer_of_a_shape_that_no_array_has_is_the_callers_fault(caller: Caller, shape: list[int]) -> None:
    invalid(
        caller.infer(ask("op_constant_of_shape", *inputs({"shape": shape}))), "no array can hold"
    )  # found by fuzzing


@case_values
@pytest.mark.parametrize("text", [b"abc", b"", b"9" * 40, "٣".encode()])
def test_text_that_is_no_number_is_the_callers_fault(caller: Caller, text: bytes) -> None:
    invalid(caller.infer(ask("op_cast", strings("text", [text], (1,)))), "operator Cast")
    assert ok(caller.infer(ask("op_cast", strings("text", [b"-42"], (1,)))))["y"].array.tolist() == [-42]


@case_memory
@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        ("op_constant_of_shape", {"shape": [1 << 44]}),
        ("op_expand", {"data": 1, "shape": [1 << 44]}),
        ("op_pad", {"data": 4, "pads": [1 << 44, 0]}),
        ("op_range", {"start": 0, "limit": 1 << 44, "delta": 1}),
    ],
    ids=str,
)
def test_a_run_that_finds_no_memory_fails_alone(caller: Caller, model: str, numbers: Numbers) -> None:
    outcome = caller.infer(ask(model, *inputs(numbers)))
    refused(outcome, grpc.StatusCode.RESOURCE_EXHAUSTED, "memory")


@case_fatal
@pytest.mark.parametrize(("model", "answer"), [("op_div", SMALLEST), ("op_mod", 0)])
def test_the_smallest_integer_by_minus_one_is_answered(caller: Caller, model: str, answer: int) -> None:
    request = ask(model, *inputs({"a": [SMALLEST, 7], "b": [-1, -7]}))
    assert ok(caller.infer(request))["y"].array.tolist() == [answer, -1 if model == "op_div" else 0]


@case_fatal
@pytest.mark.parametrize("model", ["op_lstm", "op_gru"])
@pytest.mark.parametrize("shape", [(0, 1, 2), (3, 0, 2), (0, 0, 2)])
def test_a_recurrent_layer_without_elements_is_the_callers_fault(
    caller: Caller, model: str, shape: tuple[int, ...]
) -> None:
    invalid(caller.infer(ask(model, tensor("x", np.zeros(shape, np.float32)))), "no elements")
    assert ok(caller.infer(ask(model, tensor("x", np.zeros((3, 2, 2), np.float32)))))["y"].shape == (3, 1, 2, 3)
