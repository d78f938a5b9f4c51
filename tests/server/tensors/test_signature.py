"""Requests against a signature: conformance cases 1 to 11, each with its numbers and names."""

from collections.abc import Sequence

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import CheckedRequest, Signature, TensorSpec
from forwardpass_server.tensors.wire import Decoder

MLP = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 10)),),
    (TensorSpec("probability", dtypes.FP32, ("batch", 1)),),
    max_batch_size=64,
)
LSTM = Signature(
    (
        TensorSpec("tokens", dtypes.INT64, ("batch", "time")),
        TensorSpec("mask", dtypes.BOOL, ("batch", "time")),
        TensorSpec("h0", dtypes.FP32, ("batch", 2, 4), optional=True),
    ),
    (TensorSpec("logits", dtypes.FP32, ("batch", "time", 65)), TensorSpec("h1", dtypes.FP32, ("batch", 2, 4))),
    max_batch_size=8,
)
TEXT = Signature(
    (TensorSpec("text", dtypes.BYTES, (None,)),), (TensorSpec("length", dtypes.INT64, (None,)),), max_batch_size=0
)


def request(*inputs: tuple[str, str, Sequence[int], bytes], outputs: Sequence[str] = ()) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    for name, datatype, shape, data in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    message.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs)
    return message


def check(signature: Signature, message: pb.ModelInferRequest) -> CheckedRequest:
    """Checked twice over one decoder, so that what was kept from the first time is tried as well."""
    decoder = Decoder()
    body = message.SerializeToString()
    first = signature.check(decoder.decode(body))
    second = signature.check(decoder.decode(body))
    assert repr(first) == repr(second)
    return second


def refusal(signature: Signature, message: pb.ModelInferRequest) -> str:
    """The text of the refusal, which must be the same a second time."""
    decoder = Decoder()
    body = message.SerializeToString()
    texts = []
    for _ in range(2):
        with pytest.raises(InvalidRequest) as caught:
            signature.check(decoder.decode(body))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    return texts[0]


def floats(*shape: int) -> bytes:
    return np.zeros(shape, "<f4").tobytes()


X = ("x", "FP32", [1, 10], floats(1, 10))
TOKENS = ("tokens", "INT64", [2, 3], np.arange(6, dtype="<i8").tobytes())
MASK = ("mask", "BOOL", [2, 3], b"\1" * 6)


def test_a_good_request_becomes_arrays_in_the_signatures_order() -> None:
    h0 = ("h0", "FP32", [2, 2, 4], floats(2, 2, 4))
    checked = check(LSTM, request(h0, MASK, TOKENS, outputs=["h1"]))
    tokens, mask, state = checked.inputs
    assert tokens is not None
    assert tokens.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert mask is not None
    assert mask.dtype == np.bool_
    assert state is not None
    assert state.shape == (2, 2, 4)
    assert (checked.rows, checked.nbytes, checked.outputs) == (2, 64 + 6 + 48, (1,))


def test_raw_tensors_are_not_copied() -> None:
    body = request(("x", "FP32", [15_000, 10], floats(15_000, 10))).SerializeToString()
    signature = Signature(MLP.inputs, MLP.outputs, max_batch_size=15_000)
    array = signature.check(Decoder().decode(body)).inputs[0]
    assert array is not None
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


def test_typed_contents_are_taken_too() -> None:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[2, 10])
    tensor.contents.fp32_contents.extend(range(20))
    checked = check(MLP, message)
    assert checked.inputs[0] is not None
    assert checked.inputs[0].ravel().tolist() == list(range(20))
    assert (checked.rows, checked.nbytes) == (2, 80)


def test_no_outputs_asked_for_means_all_and_asked_for_keeps_the_callers_order() -> None:
    assert check(LSTM, request(TOKENS, MASK)).outputs == (0, 1)
    assert check(LSTM, request(TOKENS, MASK, outputs=["h1", "logits"])).outputs == (1, 0)


def test_an_optional_input_may_be_left_out() -> None:
    assert check(LSTM, request(TOKENS, MASK)).inputs[2] is None


def test_no_inputs_at_all() -> None:
    assert refusal(LSTM, request()) == (
        "model 'm' expected 3 inputs ('tokens', 'mask', 'h0'), got 0: missing 'tokens', 'mask'"
    )


def test_missing_and_unknown_inputs_are_listed() -> None:
    text = refusal(LSTM, request(TOKENS, ("z", "FP32", [1], floats(1))))
    assert text.endswith("got 2: missing 'mask'; unknown 'z'")


def test_an_input_sent_twice() -> None:
    assert "input 'x' already exists" in refusal(MLP, request(X, X))


def test_an_output_asked_for_twice_and_one_that_does_not_exist() -> None:
    assert "output 'h1' already exists" in refusal(LSTM, request(TOKENS, MASK, outputs=["h1", "h1"]))
    text = refusal(LSTM, request(TOKENS, MASK, outputs=["h2"]))
    assert text == "unexpected output 'h2': model 'm' has 'logits', 'h1'"


@pytest.mark.parametrize("floats_sent", [0, 8, 12])
def test_raw_bytes_that_do_not_match_the_shape(floats_sent: int) -> None:
    text = refusal(MLP, request(("x", "FP32", [1, 10], floats(floats_sent))))
    assert text == f"input 'x': expected 40 bytes for FP32 [1, 10], got {4 * floats_sent}"


@pytest.mark.parametrize("count", [2, 5])
def test_bytes_elements_that_do_not_match_the_shape(count: int) -> None:
    text = refusal(TEXT, request(("text", "BYTES", [4], b"\2\0\0\0ab" * count)))
    assert text == f"input 'text': expected 4 elements, got {count}"


def test_text_arrives_as_text() -> None:
    checked = check(TEXT, request(("text", "BYTES", [2], b"\2\0\0\0\xc3\xa9\0\0\0\0")))
    assert checked.inputs[0] is not None
    assert checked.inputs[0].tolist() == ["é", ""]
    assert (checked.rows, checked.nbytes) == (1, 10)


def test_booleans_that_are_none() -> None:
    text = refusal(LSTM, request(TOKENS, ("mask", "BOOL", [2, 3], b"\1\1\1\1\1\7")))
    assert "'mask': BOOL elements are bytes 0 or 1, got 7" in text


@pytest.mark.parametrize("shape", [[-1, 10], [1, -10]])
def test_a_negative_dimension(shape: list[int]) -> None:
    assert "negative dimension" in refusal(MLP, request(("x", "FP32", shape, floats(10))))


@pytest.mark.parametrize("shape", [[10], [1, 11], [1, 10, 1], [], [10, 1]])
def test_a_shape_that_does_not_fit(shape: list[int]) -> None:
    text = refusal(MLP, request(("x", "FP32", shape, floats(*shape))))
    assert text == (
        f"unexpected shape for input 'x' of model 'm': expected [batch, 10], got {shape}; "
        "the first dimension is the batch, at most 64"
    )


@pytest.mark.parametrize("shape", [[2**4, 2**60 + 2], [2**62, 10]])
def test_a_shape_whose_size_wraps(shape: list[int]) -> None:
    signature = Signature((TensorSpec("x", dtypes.FP32, (None, None)),), MLP.outputs, max_batch_size=0)
    assert "expected" in refusal(signature, request(("x", "FP32", shape, floats(32))))


@pytest.mark.parametrize("datatype", ["FP64", "fp32", "", "FP32\0"])
def test_another_datatype(datatype: str) -> None:
    text = refusal(MLP, request(("x", datatype, [1, 10], floats(1, 10))))
    assert text == f"input 'x': model 'm' expects datatype FP32, got '{datatype}'"


def test_a_batch_of_zero_rows_is_one() -> None:
    checked = check(MLP, request(("x", "FP32", [0, 10], b"")))
    assert checked.inputs[0] is not None
    assert checked.inputs[0].shape == (0, 10)
    assert checked.rows == 0


def test_a_batch_at_the_limit_and_one_row_beyond() -> None:
    assert check(MLP, request(("x", "FP32", [64, 10], floats(64, 10)))).rows == 64
    text = refusal(MLP, request(("x", "FP32", [65, 10], floats(65, 10))))
    assert text == "batch of 65 rows; model 'm' takes at most 64: send several requests"


def test_a_model_that_is_not_batched_takes_any_first_dimension() -> None:
    signature = Signature(MLP.inputs, MLP.outputs, max_batch_size=0)
    assert check(signature, request(("x", "FP32", [650, 10], floats(650, 10)))).rows == 1


def test_inputs_that_disagree_on_a_named_dimension() -> None:
    text = refusal(LSTM, request(TOKENS, ("mask", "BOOL", [2, 4], b"\1" * 8)))
    assert text == "inputs of model 'm' disagree on dimension 'time': 3 elsewhere, 4 in 'mask' [2, 4]"


def test_inputs_that_disagree_on_an_unnamed_batch() -> None:
    signature = Signature(
        (TensorSpec("a", dtypes.FP32, (None,)), TensorSpec("b", dtypes.FP32, (None,))), MLP.outputs, max_batch_size=8
    )
    text = refusal(signature, request(("a", "FP32", [1], floats(1)), ("b", "FP32", [2], floats(2))))
    assert text == "inputs of model 'm' disagree on the batch: [1, 2] rows"


def test_an_unranked_input_takes_any_shape() -> None:
    signature = Signature((TensorSpec("x", dtypes.FP32, (), ranked=False),), MLP.outputs, max_batch_size=0)
    for shape in ([], [3], [1, 2, 3]):
        assert check(signature, request(("x", "FP32", shape, floats(*shape)))).rows == 1


def test_a_swapped_version_checks_a_known_head_anew() -> None:
    decoder = Decoder()
    body = request(X).SerializeToString()
    assert MLP.check(decoder.decode(body)).rows == 1
    wider = Signature((TensorSpec("x", dtypes.FP32, ("batch", 20)),), MLP.outputs, max_batch_size=64)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="expected \\[batch, 20\\]"):
            wider.check(decoder.decode(body))
        assert MLP.check(decoder.decode(body)).rows == 1
