"""Which tensors a request brings and asks for: cases 1, 2, 8 and 9."""

import numpy as np
import pytest
from conformance.wire import CONTENTS, DATATYPES, NUMPY, Caller, Tensor, ask, invalid, ok, tensor, zeros

from forwardpass_proto import grpc_service_pb2 as pb

LEFT = tensor("left", np.array([[1, 2]], np.float32))
RIGHT = tensor("right", np.array([[1, 2, 3]], np.int32))


def renamed(each: Tensor, name: str) -> Tensor:
    return Tensor(name, each.datatype, each.shape, each.raw)


case_1 = pytest.mark.case("1", "inputs missing or unknown", "INVALID_ARGUMENT, n, m and the names")


@case_1
def test_no_inputs_at_all_is_refused_with_both_counts_and_every_missing_name(caller: Caller) -> None:
    invalid(caller.infer(ask("pair")), 2, 0, "left", "right")


@case_1
@pytest.mark.parametrize(("brought", "missing"), [(LEFT, "right"), (RIGHT, "left")], ids=["left", "right"])
def test_a_missing_input_is_named(caller: Caller, brought: Tensor, missing: str) -> None:
    invalid(caller.infer(ask("pair", brought)), 2, 1, missing)


@case_1
@pytest.mark.parametrize("name", ["ghost", "", "LEFT", "left ", "left\0", "ｌｅｆｔ", "left\nright", "😀"])
def test_an_unknown_input_is_refused_in_place_of_a_known_one(caller: Caller, name: str) -> None:
    invalid(caller.infer(ask("pair", renamed(LEFT, name), RIGHT)))


@case_1
def test_an_unknown_input_beside_all_the_known_ones_is_named(caller: Caller) -> None:
    invalid(caller.infer(ask("pair", LEFT, RIGHT, renamed(LEFT, "ghost"))), "ghost")


@case_1
@pytest.mark.parametrize("model", ["scalar", "fixed", "mlp", "slow", "copied"])
def test_no_inputs_are_refused_whatever_the_model(caller: Caller, model: str) -> None:
    invalid(caller.infer(ask(model)), 1, 0)


@case_1
@pytest.mark.parametrize("name", ["ghost", "", "SUM", "sum ", "left"])
def test_an_unknown_requested_output_is_refused(caller: Caller, name: str) -> None:
    invalid(caller.infer(ask("pair", LEFT, RIGHT, outputs=["sum", name])))


def test_inputs_are_matched_by_name_and_not_by_order(caller: Caller) -> None:
    outputs = ok(caller.infer(ask("pair", RIGHT, LEFT)))
    assert outputs["sum"].array.tolist() == [[3.0]]
    assert outputs["negated"].array.tolist() == [[-1, -2, -3]]


@pytest.mark.parametrize("names", [["sum"], ["negated"], ["negated", "sum"], ["sum", "negated"]], ids=" ".join)
def test_only_the_requested_outputs_come_back_in_the_order_asked(caller: Caller, names: list[str]) -> None:
    assert list(ok(caller.infer(ask("pair", LEFT, RIGHT, outputs=names)))) == names


case_2 = pytest.mark.case("2", "same input twice; same output twice", "INVALID_ARGUMENT")


@case_2
@pytest.mark.parametrize("times", [2, 3, 60])
def test_the_same_input_twice_is_refused_by_name(caller: Caller, times: int) -> None:
    invalid(caller.infer(ask("mlp", *[zeros("FP32", (1, 10))] * times)), "x")


@case_2
def test_the_same_input_twice_is_refused_where_the_count_is_right(caller: Caller) -> None:
    invalid(caller.infer(ask("pair", LEFT, LEFT)), "left")


@case_2
def test_the_same_input_twice_with_different_values_is_refused(caller: Caller) -> None:
    other = tensor("left", np.array([[9, 9]], np.float32))
    invalid(caller.infer(ask("pair", LEFT, other, RIGHT)), "left")


@case_2
@pytest.mark.parametrize("names", [["y", "y"], ["y"] * 60], ids=["2", "60"])
def test_the_same_output_twice_is_refused_by_name(caller: Caller, names: list[str]) -> None:
    invalid(caller.infer(ask("mlp", zeros("FP32", (1, 10)), outputs=names)), "y")


case_8 = pytest.mark.case("8", "dtype wrong, or none at all", "INVALID_ARGUMENT, names both")


@case_8
@pytest.mark.parametrize("served", DATATYPES)
def test_a_dtype_other_than_the_models_is_refused_naming_both(caller: Caller, served: str) -> None:
    for other in DATATYPES:
        if other != served:
            invalid(caller.infer(ask(f"identity_{served.lower()}", zeros(other, (1, 4)))), served, other)


@case_8
@pytest.mark.parametrize(
    "datatype",
    ["", "fp32", "FLOAT", "FLOAT32", "FP32 ", "FP32\0", "TYPE_FP32", "FP8", "STRING", "INT", "＿", "x" * 128],
)
def test_a_dtype_that_does_not_exist_is_refused_naming_the_models(caller: Caller, datatype: str) -> None:
    invalid(caller.infer(ask("mlp", Tensor("x", datatype, (1, 10), bytes(40)))), "FP32")


@case_8
@pytest.mark.parametrize("length", [1000, 1_000_000])
def test_a_dtype_without_end_is_refused_and_not_quoted_whole(caller: Caller, length: int) -> None:
    outcome = caller.infer(ask("mlp", Tensor("x", "x" * length, (1, 10), bytes(40))))
    invalid(outcome)
    assert len(outcome.details) < 2000


@case_8
def test_a_dtype_of_the_same_size_is_not_reinterpreted(caller: Caller) -> None:
    invalid(caller.infer(ask("mlp", Tensor("x", "INT32", (1, 10), bytes(40)))), "FP32", "INT32")


case_9 = pytest.mark.case("9", "raw and typed together; raw count ≠ inputs", "INVALID_ARGUMENT")


def typed(
    name: str, datatype: str, shape: tuple[int, ...], values: list[object]
) -> pb.ModelInferRequest.InferInputTensor:
    head = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    getattr(head.contents, CONTENTS[datatype]).extend(values)
    return head


@case_9
def test_typed_and_raw_contents_of_one_input_are_refused(caller: Caller) -> None:
    request = ask("mlp", zeros("FP32", (1, 10)))
    request.inputs[0].contents.fp32_contents.extend([0.0] * 10)
    invalid(caller.infer(request))


@case_9
def test_typed_contents_of_one_input_and_raw_of_another_are_refused(caller: Caller) -> None:
    request = ask("pair", LEFT)
    request.inputs.append(typed("right", "INT32", (1, 3), [1, 2, 3]))
    invalid(caller.infer(request))


@case_9
@pytest.mark.parametrize("count", [0, 1, 3, 64, 1000])
def test_a_wrong_number_of_raw_contents_is_refused(caller: Caller, count: int) -> None:
    request = ask("pair", LEFT, RIGHT)
    del request.raw_input_contents[:]
    request.raw_input_contents.extend([LEFT.raw, RIGHT.raw, *[b""] * 1000][:count])
    invalid(caller.infer(request))


@case_9
def test_raw_contents_without_any_input_are_refused(caller: Caller) -> None:
    invalid(caller.infer(pb.ModelInferRequest(model_name="mlp", raw_input_contents=[bytes(40)])))


@case_9
@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_in_the_field_of_another_dtype_are_refused(caller: Caller, datatype: str) -> None:
    values: dict[str, object] = {"bytes_contents": b"", "bool_contents": False}
    for field in set(CONTENTS.values()) - {CONTENTS[datatype]}:
        request = ask(f"identity_{datatype.lower()}", zeros(datatype, (1, 4)))
        del request.raw_input_contents[:]
        getattr(request.inputs[0].contents, field).extend([values.get(field, 0)] * 4)
        invalid(caller.infer(request))


@case_9
@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_in_two_fields_are_refused(caller: Caller, datatype: str) -> None:
    request = ask(f"identity_{datatype.lower()}", zeros(datatype, (1, 4)))
    del request.raw_input_contents[:]
    contents = request.inputs[0].contents
    getattr(contents, CONTENTS[datatype]).extend([b"" if datatype == "BYTES" else 0] * 4)
    other = "fp64_contents" if datatype == "FP32" else "fp32_contents"
    getattr(contents, other).extend([0.0] * 4)
    invalid(caller.infer(request))


@case_9
@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
@pytest.mark.parametrize("field", ["fp32_contents", "int_contents", "bytes_contents"])
def test_a_dtype_without_a_typed_field_takes_raw_bytes_only(caller: Caller, datatype: str, field: str) -> None:
    request = ask(f"identity_{datatype.lower()}", zeros(datatype, (1, 4)))
    del request.raw_input_contents[:]
    getattr(request.inputs[0].contents, field).extend([b"" if field == "bytes_contents" else 0] * 4)
    invalid(caller.infer(request), datatype)


LIMITS = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in NUMPY.items() if dtype.kind in "iu"
}


@pytest.mark.parametrize("datatype", LIMITS)
def test_typed_integers_keep_their_extremes(caller: Caller, datatype: str) -> None:
    low, high = LIMITS[datatype]
    head = typed("x", datatype, (1, 4), [low, high, 0, 1])
    answer = ok(caller.infer(pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}", inputs=[head])))["y"]
    assert answer.array.tolist() == [[low, high, 0, 1]]


@case_9
@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
@pytest.mark.parametrize("beyond", ["low", "high"])
def test_a_typed_integer_beyond_its_dtype_is_refused_and_not_wrapped(
    caller: Caller, datatype: str, beyond: str
) -> None:
    low, high = LIMITS[datatype]
    value = high + 1 if beyond == "high" else low - 1
    if value < 0 and datatype.startswith("U"):
        value = 1 << 31
    head = typed("x", datatype, (1, 4), [0, 0, 0, value])
    invalid(caller.infer(pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}", inputs=[head])), value)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False, False, True]),
        ("FP32", [1.5, -0.0, float("inf"), 1.401298464324817e-45]),
        ("FP64", [1.5, -0.0, float("-inf"), 5e-324]),
        ("BYTES", [b"", b"a\0b", "é😀".encode(), b"\0"]),
    ],
)
def test_typed_contents_are_served_and_answered_raw(caller: Caller, datatype: str, values: list[object]) -> None:
    head = typed("x", datatype, (1, 4), values)
    answer = ok(caller.infer(pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}", inputs=[head])))["y"]
    if datatype == "BYTES":
        assert answer.strings == values
    else:
        assert answer.raw == np.array(values, NUMPY[datatype]).tobytes()


def test_the_answer_names_model_version_and_request(caller: Caller) -> None:
    reply = caller.infer(ask("mlp", zeros("FP32", (1, 10)), request_id="a-7")).reply
    assert (reply.model_name, reply.model_version, reply.id) == ("mlp", "1", "a-7")
