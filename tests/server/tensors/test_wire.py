"""Decoding against protobuf, with and without memory of earlier messages; limits; bytes that nobody meant to send."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest, RunFailed
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.arrays import to_array
from forwardpass_server.tensors.dtypes import BF16, BOOL, BYTES, FP32, Dtype
from forwardpass_server.tensors.infer_request import InferRequest
from forwardpass_server.tensors.wire import HEADS_MAX, Decoder, Encoder

RAW, OTHERS = 7, (1, 2, 3, 4, 5, 6)


def message(
    *shapes: Sequence[int], model: str = "m", request_id: str = "", datatype: str = "FP32", fill: int = 0
) -> pb.ModelInferRequest:
    """A request with one raw input for each shape."""
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    for index, shape in enumerate(shapes):
        request.inputs.add(name=f"x{index}", datatype=datatype, shape=shape)
        request.raw_input_contents.append(bytes([fill]) * int(np.prod(shape) * 4))
    return request


def facts(request: InferRequest) -> tuple[Any, ...]:
    """All that a decoded request says, as plain values."""
    return (
        request.model_name,
        request.model_version,
        request.id,
        dict(request.parameters),
        [
            (
                tensor.name,
                tensor.datatype,
                tensor.shape,
                dict(tensor.parameters),
                None if tensor.raw is None else bytes(tensor.raw),
                None if tensor.contents is None else tensor.contents.SerializeToString(),
            )
            for tensor in request.inputs
        ],
        [(output.name, dict(output.parameters)) for output in request.outputs],
    )


def facts_of_protobuf(body: bytes) -> tuple[Any, ...]:
    """The same, read by protobuf."""
    request = pb.ModelInferRequest.FromString(body)

    def values(parameters: Any) -> dict[str, Any]:
        return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in parameters.items()}

    raws: list[bytes | None] = list(request.raw_input_contents) or [None] * len(request.inputs)
    return (
        request.model_name,
        request.model_version,
        request.id,
        values(request.parameters),
        [
            (
                tensor.name,
                tensor.datatype,
                tuple(tensor.shape),
                values(tensor.parameters),
                raw,
                tensor.contents.SerializeToString() if tensor.HasField("contents") else None,
            )
            for tensor, raw in zip(request.inputs, raws, strict=True)
        ],
        [(output.name, values(output.parameters)) for output in request.outputs],
    )


def decoded(body: bytes, decoder: Decoder | None = None) -> tuple[Any, ...] | None:
    """What a decoder makes of it; None for a refusal. Any other exception is a failed test."""
    try:
        return facts((decoder or Decoder()).decode(body))
    except InvalidRequest:
        return None


NAMES = st.text(max_size=6)
PARAMETERS = st.dictionaries(
    NAMES,
    st.one_of(
        st.booleans().map(lambda value: pb.InferParameter(bool_param=value)),
        st.integers(-(2**63), 2**63 - 1).map(lambda value: pb.InferParameter(int64_param=value)),
        NAMES.map(lambda value: pb.InferParameter(string_param=value)),
        st.floats(allow_nan=False).map(lambda value: pb.InferParameter(double_param=value)),
        st.integers(0, 2**64 - 1).map(lambda value: pb.InferParameter(uint64_param=value)),
    ),
    max_size=3,
)
CONTENTS = st.one_of(
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4).map(lambda v: pb.InferTensorContents(int_contents=v)),
    st.lists(st.floats(width=32), max_size=4).map(lambda v: pb.InferTensorContents(fp32_contents=v)),
    st.lists(st.binary(max_size=4), max_size=4).map(lambda v: pb.InferTensorContents(bytes_contents=v)),
)
SHAPES = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=NAMES,
    datatype=st.sampled_from([*(dtype.wire for dtype in dtypes.ALL), "FP8", ""]),
    shape=SHAPES,
    parameters=PARAMETERS,
    contents=st.none() | st.none() | CONTENTS,
)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    model_name=NAMES,
    model_version=NAMES,
    id=NAMES,
    parameters=PARAMETERS,
    inputs=st.lists(INPUTS, max_size=3),
    outputs=st.lists(
        st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=NAMES, parameters=PARAMETERS), max_size=2
    ),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=3),
)


@given(REQUESTS)
def test_any_request_is_what_protobuf_says_or_refused(request: pb.ModelInferRequest) -> None:
    body = request.SerializeToString()
    has_contents = any(tensor.HasField("contents") for tensor in request.inputs)
    raws = len(request.raw_input_contents)
    refused = raws and (has_contents or raws != len(request.inputs))
    assert decoded(body) == (None if refused else facts_of_protobuf(body))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    decoded(body)


@given(REQUESTS, st.data())
def test_a_damaged_message_is_a_request_or_refused(request: pb.ModelInferRequest, data: st.DataObject) -> None:
    body = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if body:
            at = data.draw(st.integers(0, len(body) - 1))
            body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    decoded(bytes(body))


@given(st.lists(REQUESTS, min_size=1, max_size=3), st.data())
def test_memory_of_earlier_messages_never_changes_what_is_read(
    requests: list[pb.ModelInferRequest], data: st.DataObject
) -> None:
    decoder = Decoder()
    bodies = [request.SerializeToString() for request in requests]
    for _ in range(12):
        body = bytearray(data.draw(st.sampled_from(bodies)))
        if body and data.draw(st.booleans()):  # same length, so that the remembered layout is tried
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        assert repr(decoded(bytes(body), decoder)) == repr(decoded(bytes(body)))  # repr: damage can make a NaN


def test_a_known_head_in_the_layout_of_another_is_checked_like_a_new_one() -> None:
    two = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(name="ab")] * 2).SerializeToString()
    one = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(name="ab" * 4)]).SerializeToString()
    of_two, of_one = b"\x3a\x00\x3a\x041234", b"\x3a\x06123456"
    assert (len(two), len(of_two)) == (len(one), len(of_one))
    decoder = Decoder()
    for body in (one + of_one, two + of_two):
        assert decoded(body, decoder) == facts_of_protobuf(body)
    with pytest.raises(InvalidRequest, match="1 inputs but 2 raw"):
        decoder.decode(one + of_two)


@pytest.mark.parametrize("ids", [(b"\x80", b"ok"), (b"ok", b"\x80"), (b"\x80", b"\x80", b"ok")])
def test_every_id_must_be_text_also_those_that_do_not_count(ids: tuple[bytes, ...]) -> None:
    body = b"".join(b"\x1a" + bytes([len(each)]) + each for each in ids)
    with pytest.raises(DecodeError):
        pb.ModelInferRequest.FromString(body)
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        Decoder().decode(body)


@pytest.mark.parametrize("request_id", ["", "1", "é", "x" * 127, "y" * 128])
def test_a_request_seen_before_is_read_without_a_scan(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder()
    decoder.decode(message([1, 10], request_id="0" * len(request_id.encode())).SerializeToString())
    monkeypatch.setattr(Decoder, "_by_scan", None)
    body = message([1, 10], request_id=request_id, fill=7).SerializeToString()
    assert facts(decoder.decode(body)) == facts_of_protobuf(body)


def test_raw_tensors_are_views_into_the_message() -> None:
    body = message([1, 150_000]).SerializeToString()
    decoder = Decoder()
    for _ in range(2):  # by scan, then from memory
        tensor = decoder.decode(body).inputs[0]
        assert tensor.raw is not None
        assert tensor.raw.obj is body
        assert to_array(tensor, FP32).base is not None


def test_fields_in_any_order_are_one_request() -> None:
    body = message([2, 2], [3], request_id="7", fill=9).SerializeToString()
    parts = list(split(body))
    shuffled = b"".join(part for number, part in parts if number == RAW)
    shuffled += b"".join(part for number, part in parts if number in OTHERS)
    decoder = Decoder()
    for _ in range(2):
        assert decoded(shuffled, decoder) == facts_of_protobuf(body)
    assert decoded(body, decoder) == facts_of_protobuf(body)


def split(body: bytes) -> list[tuple[int, bytes]]:
    """Top-level fields, for messages whose every part is shorter than 128 bytes."""
    parts, at = [], 0
    while at < len(body):
        stop = at + 2 + body[at + 1]
        parts.append((body[at] >> 3, body[at:stop]))
        at = stop
    return parts


def add_inputs(count: int) -> bytes:
    return message(*[[1]] * count).SerializeToString()


def with_dims(count: int) -> bytes:
    return message([1] * count).SerializeToString()


def with_parameters(count: int) -> bytes:
    request = message([1])
    for index in range(count):
        request.parameters[str(index)].int64_param = index
    return request.SerializeToString()


def with_tensor_parameters(count: int) -> bytes:
    request = message([1])
    for index in range(count):
        request.inputs[0].parameters[str(index)].int64_param = index
    return request.SerializeToString()


def with_outputs(count: int) -> bytes:
    request = message([1])
    request.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=str(index)) for index in range(count))
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("most", "build"),
    [
        (64, add_inputs),
        (64, with_outputs),
        (16, with_dims),
        (64, with_parameters),
        (64, with_tensor_parameters),
        (128, lambda length: message([1], model="m" * length).SerializeToString()),
        (128, lambda length: message([1], request_id="i" * length).SerializeToString()),
        (128, lambda length: message([1], datatype="D" * length).SerializeToString()),
    ],
    ids=["inputs", "outputs", "dims", "parameters", "tensor parameters", "name", "id", "datatype"],
)
def test_limits_hold_at_the_limit_and_one_beyond(most: int, build: Callable[[int], bytes]) -> None:
    assert decoded(build(most)) == facts_of_protobuf(build(most))
    with pytest.raises(InvalidRequest, match=str(most)):
        Decoder().decode(build(most + 1))


@pytest.mark.parametrize(
    "body",
    [
        b"\x2a\x00" * 2**20,  # a million inputs of two bytes each
        b"\x32\x00" * 2**20,
        b"\x3a\x00" * 2**20,
        b"\x22\x00" * 2**20,
        b"\x78\x00" * 2**20,  # a field that nobody knows
        message().SerializeToString() + b"\x2a\x80\x80\x80\x01" + b"\x18\x01" * 2**20,  # dimensions one by one
        b"\x2a\x85\x80\x80\x01\x1a\x80\x80\x80\x01" + b"\x01" * 2**21,  # dimensions packed
        b"\x2a\x80\x80\x80\x01" + b"\x22\x00" * 2**20,  # parameters of a tensor
    ],
    ids=["inputs", "outputs", "raws", "parameters", "unknown", "dims", "packed dims", "tensor parameters"],
)
def test_millions_of_small_things_are_refused_before_they_are_built(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pb, "ModelInferRequest", None)  # protobuf would build them all
    with pytest.raises(InvalidRequest):
        Decoder().decode(body)


def test_memory_is_bounded() -> None:
    decoder = Decoder()
    for index in range(5000):
        decoder.decode(message([1], model=f"model-{index}", request_id="i" * (index % 120)).SerializeToString())
    assert len(decoder._heads) <= 2 * HEADS_MAX
    assert len(decoder._layouts) <= 2 * HEADS_MAX


def test_data_both_raw_and_typed_are_refused() -> None:
    request = message([1], [1])
    request.inputs[1].contents.fp32_contents.append(1.0)
    with pytest.raises(InvalidRequest, match="both in raw_input_contents and in contents"):
        Decoder().decode(request.SerializeToString())


@pytest.mark.parametrize("raws", [1, 3])
def test_a_wrong_number_of_raw_tensors_names_both(raws: int) -> None:
    request = message([1], [1])
    del request.raw_input_contents[:]
    request.raw_input_contents.extend([b"1234"] * raws)
    with pytest.raises(InvalidRequest, match=f"2 inputs but {raws} raw_input_contents"):
        Decoder().decode(request.SerializeToString())


def test_an_id_that_is_not_utf8_is_refused_by_scan_and_from_memory() -> None:
    decoder = Decoder()
    good = message([1], request_id="ab").SerializeToString()
    bad = good.replace(b"\x1a\x02ab", b"\x1a\x02\xff\xfe")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="id is not UTF-8"):
            decoder.decode(bad)
        decoder.decode(good)


# ------------------------------------------------------------------------------------------------------------ encoding


def awkward(dtype: Dtype) -> np.ndarray:
    """Every awkward value of a datatype: NaN payloads, infinities, -0.0, subnormals, extremes, NUL and empty text."""
    if dtype is BYTES:
        array = np.empty((2, 3), np.object_)
        array[:] = [["", "\0", "a\0b"], ["é🂡", "x" * 70_000, "\n"]]
        return array
    if dtype is BOOL:
        return np.array([[True, False, True]])
    if dtype.numpy.kind in "iu" and dtype is not BF16:
        info = np.iinfo(dtype.numpy)
        return np.array([[info.min, 0, info.max]], dtype.numpy)
    patterns = np.random.default_rng(1).integers(0, 256, (4096, dtype.itemsize), np.uint8)
    patterns[:4, :] = np.array([0, 1, 0x7F, 0xFF], np.uint8)[:, None]  # signalling NaNs among them
    return patterns.view(dtype.numpy).reshape(64, 64)


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=repr)
@pytest.mark.parametrize("request_id", ["", "req-1"])
def test_every_datatype_goes_out_and_comes_back_bit_exact(dtype: Dtype, request_id: str) -> None:
    array = awkward(dtype)
    encoder = Encoder()
    for _ in range(2):  # prepared, then from memory
        body = encoder.encode(model_name="m", model_version="3", request_id=request_id, outputs=[("y", dtype, array)])
        reply = pb.ModelInferResponse.FromString(body)
        assert (reply.model_name, reply.model_version, reply.id) == ("m", "3", request_id)
        assert [(o.name, o.datatype, tuple(o.shape)) for o in reply.outputs] == [("y", dtype.wire, array.shape)]
        request = pb.ModelInferRequest(raw_input_contents=reply.raw_output_contents)
        request.inputs.add(name="x", datatype=dtype.wire, shape=array.shape)
        back = to_array(Decoder().decode(request.SerializeToString()).inputs[0], dtype)
        assert back.dtype == dtype.numpy
        assert back.tolist() == array.tolist() if dtype is BYTES else back.tobytes() == array.tobytes()


def test_outputs_and_raw_contents_stand_in_one_order() -> None:
    outputs = [
        ("a", FP32, np.arange(6, dtype="<f4").reshape(2, 3).T),  # not contiguous
        ("b", BYTES, np.array(["one", "two"], np.object_)),
        ("c", dtypes.INT64, np.array(-1)),
        ("d", FP32, np.empty((0, 4), "<f4")),
    ]
    body = Encoder().encode(model_name="m", model_version="1", request_id="", outputs=outputs)
    reply = pb.ModelInferResponse.FromString(body)
    assert [output.name for output in reply.outputs] == ["a", "b", "c", "d"]
    assert [list(output.shape) for output in reply.outputs] == [[3, 2], [2], [], [0, 4]]
    assert np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(3, 2).tolist() == outputs[0][2].tolist()
    assert reply.raw_output_contents[1] == b"\3\0\0\0one\3\0\0\0two"
    assert [len(raw) for raw in reply.raw_output_contents[2:]] == [8, 0]


def test_a_reply_without_outputs_is_empty_and_well_formed() -> None:
    body = Encoder().encode(model_name="m", model_version="1", request_id="9", outputs=[])
    reply = pb.ModelInferResponse.FromString(body)
    assert (reply.model_name, reply.id, len(reply.outputs)) == ("m", "9", 0)


def test_shapes_and_dtypes_of_one_name_are_not_mixed_up() -> None:
    encoder = Encoder()
    for array, dtype in [
        (np.zeros((1, 2), "<f4"), FP32),
        (np.zeros((2, 1), "<f4"), FP32),
        (np.zeros((1, 2), "<f8"), dtypes.FP64),
        (np.zeros((1, 2), "<i4"), dtypes.INT32),
    ] * 2:
        body = encoder.encode(model_name="m", model_version="1", request_id="", outputs=[("y", dtype, array)])
        output = pb.ModelInferResponse.FromString(body).outputs[0]
        assert (output.datatype, tuple(output.shape)) == (dtype.wire, array.shape)


def test_an_array_of_another_dtype_than_declared_is_our_fault() -> None:
    with pytest.raises(RunFailed, match="came as float64"):
        Encoder().encode(model_name="m", model_version="1", request_id="", outputs=[("y", FP32, np.zeros(2))])
