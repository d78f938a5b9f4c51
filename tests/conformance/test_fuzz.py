"""Any bytes and any request end in OK or in the caller's fault: never INTERNAL, never UNKNOWN, never a crash.

Protobuf's own parser is the law: what it cannot read is INVALID_ARGUMENT, and what was served was served as it reads
it. A short, repeatable run by default; with FORWARDPASS_FUZZ_MINUTES=10 (`make fuzz`) one of so many minutes, different
each time. Whatever it finds becomes an `@example` here, or a test of its own in the file of what was wrong.
"""

import functools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from conformance import operators
from conformance.operators import OPERATORS
from conformance.process import ServerProcess
from conformance.wire import CONTENTS, DATATYPES, INFERENCE, NUMPY, Caller, Outcome, ask, strings, tensor, zeros
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

MINUTES = float(os.environ.get("FORWARDPASS_FUZZ_MINUTES", "0"))
EXAMPLES = 600
"""Of one target; in a longer run, of each of its rounds."""
TARGETS = 7
SECONDS = MINUTES * 60 / TARGETS
"""That one target has."""

rounds = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not MINUTES,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
pytestmark = [
    pytest.mark.case("fuzz", "any bytes, any request", "OK or the caller's fault"),
    pytest.mark.timeout(120 + 2 * SECONDS),
]


def fuzz(target: Callable[..., None]) -> Callable[..., None]:
    """Run a target for one round, or for its share of FORWARDPASS_FUZZ_MINUTES, each round with another seed."""
    one_round = rounds(target)

    @functools.wraps(one_round)
    def until_its_time_is_over(*args: Any, **kwargs: Any) -> None:
        give_up = time.monotonic() + SECONDS
        one_round(*args, **kwargs)
        while time.monotonic() < give_up:
            one_round(*args, **kwargs)

    return until_its_time_is_over


OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ALLOWED = {
    OK,
    INVALID,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
CLOSED = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED}
"""How an rpc that is off answers whatever it is asked."""
PROMPT_S = 5.0
"""Far below the calls' own deadline: a DEADLINE_EXCEEDED after that is a hang, and not a `timeout` parameter."""


@pytest.fixture
def fuzzed(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Caller]:
    """A channel that all examples of one test share; what comes back over it is counted by code alone."""
    codes: Counter[str] = Counter()
    request.node.user_properties.append(("fuzzed", codes))
    with Caller(server.target, lambda outcome: codes.update([outcome.code.name])) as caller:
        yield caller


@pytest.fixture
def survive(fuzzed: Caller) -> Callable[[bytes], None]:
    """Send a ModelInfer of these bytes and assert the property."""
    return lambda body: check(body, fuzzed.call("ModelInfer", body))


def parsed(kind: type[Message], body: bytes) -> Message | None:
    """The message, as protobuf reads it; None when it cannot."""
    try:
        message = kind()
        message.ParseFromString(body)
    except DecodeError:
        return None
    return message


def check(body: bytes, outcome: Outcome) -> None:
    assert outcome.code in ALLOWED, outcome
    assert outcome.seconds < PROMPT_S, outcome
    assert len(outcome.details.encode()) <= 4096, "a status message without end"
    request = parsed(pb.ModelInferRequest, body)
    if request is None:
        assert outcome.code is INVALID, f"no ModelInferRequest, and yet {outcome}"
        return
    assert isinstance(request, pb.ModelInferRequest)
    if not outcome.ok:
        return
    reply, outputs = outcome.reply, outcome.outputs
    assert (reply.model_name, reply.id) == (request.model_name, request.id)
    assert list(outputs) == [each.name for each in request.outputs] or not request.outputs
    for each in outputs.values():
        if each.datatype == "BYTES":
            assert len(each.strings) == math.prod(each.shape)
        else:
            assert len(each.raw) == math.prod(each.shape) * NUMPY[each.datatype].itemsize
    if request.model_name.startswith("identity_"):
        (sent,) = request.inputs
        answer = outputs["y"]
        assert (answer.datatype, answer.shape) == (sent.datatype, tuple(sent.shape))
        if request.raw_input_contents and sent.datatype != "BOOL":
            assert answer.raw == request.raw_input_contents[0]


# Every model but the slow ones, whose work a caller chooses, and the broken one, which is never ready.
SOUND = [
    *(ask(f"identity_{datatype.lower()}", zeros(datatype, (2, 3)), request_id="id") for datatype in DATATYPES),
    ask("identity_bytes", strings("x", [b"a", "é".encode(), b"", b"\0\0"]), outputs=["y"]),
    ask("mlp", zeros("FP32", (1, 10)), version="1"),
    ask("copied", zeros("FP32", (3, 10)), outputs=["y"]),
    ask("gather", zeros("INT64", (4,), "i")),
    ask("scalar", zeros("FP32", ())),
    ask("fixed", zeros("FP32", (2, 3))),
    ask("crowd", zeros("FP32", (5, 4))),
    ask("pair", zeros("FP32", (2, 2), "left"), zeros("INT32", (2, 3), "right"), outputs=["negated"]),
]
BODIES = [each.SerializeToString() for each in SOUND]


# ------------------------------------------------------------------------------------------------------------ bytes


@fuzz
@given(body=st.binary(max_size=300))
@example(body=b"")
def test_any_bytes_are_survived(survive: Callable[[bytes], None], body: bytes) -> None:
    survive(body)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


NUMBERS = st.integers(0, 9) | st.sampled_from([15, 16, 100, (1 << 29) - 1, 1 << 29])
INTEGERS = st.integers(0, 300) | st.integers(0, (1 << 64) - 1)
WORDS = st.sampled_from([b"x", b"y", b"i", b"FP32", b"BYTES", b"mlp", b"gather", b"identity_fp32", b"timeout", b"\xff"])


def fields(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Some fields, most of them well-formed, holding integers, words or `content`."""
    delimited = st.builds(
        lambda number, data, lie: varint(number << 3 | 2) + varint(max(0, len(data) + lie)) + data,
        NUMBERS,
        content,
        st.sampled_from([0] * 30 + [1, -1, 1 << 20, 1 << 40]),
    )
    integer = st.builds(lambda number, value: varint(number << 3) + varint(value), NUMBERS, INTEGERS)
    fixed = st.builds(
        lambda number, kind, data: varint(number << 3 | kind) + data[: 8 if kind == 1 else 4],
        NUMBERS,
        st.sampled_from([1, 5]),
        st.binary(min_size=8, max_size=8),
    )
    odd = st.builds(lambda number, kind: varint(number << 3 | kind), NUMBERS, st.sampled_from([3, 4, 6, 7]))
    return st.lists(st.one_of(delimited, delimited, delimited, integer, fixed, odd), max_size=8).map(b"".join)


@fuzz
@example(body=b"\x1a\x01\x80\x1a\x01x")  # found: an id that is not UTF-8, before the one that counts
@given(body=st.recursive(WORDS | st.binary(max_size=40), fields, max_leaves=20))
def test_anything_that_looks_like_protobuf_is_survived(survive: Callable[[bytes], None], body: bytes) -> None:
    survive(body)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound request, changed in a few places."""
    body = bytearray(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "insert", "repeat", "splice", "swap"]))
        end = min(len(body), at + draw(st.integers(1, 12)))
        if kind == "flip" and at < len(body):
            body[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and at < len(body):
            body[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del body[at:end]
        elif kind == "insert":
            body[at:at] = draw(st.binary(min_size=1, max_size=6))
        elif kind == "repeat":
            body[at:at] = body[at:end] * draw(st.integers(1, 3))
        elif kind == "splice":
            other = draw(st.sampled_from(BODIES))
            body[at:] = other[min(at, len(other)) :]
        elif kind == "swap":
            body[:] = body[at:] + body[:at]
    return bytes(body)


@fuzz
@given(body=mutated())
def test_a_sound_request_changed_anywhere_is_survived(survive: Callable[[bytes], None], body: bytes) -> None:
    survive(body)


# --------------------------------------------------------------------------------------------------------- requests

NAMES = st.sampled_from(sorted({each.model_name for each in SOUND}))
ODD_TEXT = st.text(max_size=20) | st.sampled_from(["", "x" * 200, "../mlp", "\0", "mlp\n", "😈"])
VERSIONS = st.sampled_from(["", "1"]) | st.sampled_from(["2", "0", "01", "-1", "v1", "9" * 30]) | ODD_TEXT
SIZES = st.integers(0, 5) | st.sampled_from([10, 64, 65, -1, -(1 << 63), 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1])
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)

PARAMETER = st.one_of(
    st.builds(lambda value: {"bool_param": value}, st.booleans()),
    st.builds(lambda value: {"int64_param": value}, INT64 | st.integers(0, 10)),
    st.builds(lambda value: {"uint64_param": value}, st.integers(0, (1 << 64) - 1)),
    st.builds(lambda value: {"double_param": value}, st.floats()),
    st.builds(lambda value: {"string_param": value}, ODD_TEXT),
    st.just({}),
).map(lambda choice: pb.InferParameter(**choice))
KEYS = st.sampled_from(
    [
        "priority",
        "timeout",
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "triton_enable_empty_final_response",
        "triton_x",
        "shared_memory_region",
        "shared_memory_offset",
        "shared_memory_byte_size",
        "classification",
        "binary_data",
        "headers",
    ]
)
PARAMETERS: st.SearchStrategy[dict[str, pb.InferParameter]] = st.just({}) | st.dictionaries(
    KEYS | ODD_TEXT, PARAMETER, max_size=3
)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(-2, 2),
    "int64_contents": INT64,
    "uint_contents": st.integers(0, (1 << 32) - 1) | st.integers(0, 2),
    "uint64_contents": st.integers(0, (1 << 64) - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=5) | st.text(max_size=3).map(str.encode),
}


@st.composite
def tensors(draw: st.DrawFn, sound: pb.ModelInferRequest.InferInputTensor) -> tuple[Any, bytes | None]:
    """An input, half the time as the model wants it; and its raw contents, None when it brings typed ones."""
    head = pb.ModelInferRequest.InferInputTensor()
    head.name = draw(st.sampled_from([sound.name] * 4 + ["x", "y", ""]) | ODD_TEXT)
    head.datatype = draw(st.sampled_from([sound.datatype] * 6 + list(DATATYPES)) | st.sampled_from(["", "FP8"]))
    head.shape.extend(draw(st.sampled_from([list(sound.shape)]) | st.lists(SIZES, max_size=4)))
    for key, value in draw(PARAMETERS).items():
        head.parameters[key].CopyFrom(value)
    elements = math.prod(head.shape)
    count = draw(st.sampled_from([max(0, min(elements, 200))] * 3 + [0, 1, 7]))
    if draw(st.integers(0, 3)) == 0:
        for field in draw(
            st.lists(st.sampled_from([CONTENTS.get(head.datatype, "fp32_contents"), *VALUES]), max_size=2)
        ):
            getattr(head.contents, field).extend(draw(st.lists(VALUES[field], min_size=count, max_size=count)))
        return head, None
    if head.datatype == "BYTES":
        elements_of = st.text(max_size=4).map(str.encode) | st.binary(max_size=4)
        raw = b"".join(len(each).to_bytes(4, "little") + each for each in draw(st.lists(elements_of, max_size=8)))
        return head, raw + draw(st.sampled_from([b"", b"", b"\1", b"\xff\xff\xff\xff"]))
    itemsize = NUMPY[head.datatype].itemsize if head.datatype in NUMPY else 1
    size = count * itemsize + draw(st.sampled_from([0, 0, 0, 0, 1, 3]))
    return head, draw(st.binary(min_size=size, max_size=size)) if size < 64 else bytes(size)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request to a model that is there, most of it right."""
    sound = draw(st.sampled_from(SOUND))
    request = pb.ModelInferRequest(
        model_name=draw(st.sampled_from([sound.model_name] * 5) | NAMES | ODD_TEXT),
        model_version=draw(st.sampled_from(["", "1"]) | VERSIONS),
        id=draw(ODD_TEXT),
    )
    for key, value in draw(PARAMETERS).items():
        request.parameters[key].CopyFrom(value)
    for each in draw(st.just(list(sound.inputs)) | st.lists(st.sampled_from(list(sound.inputs)), max_size=3)):
        head, raw = draw(tensors(each))
        request.inputs.append(head)
        if raw is not None:
            request.raw_input_contents.append(raw)
    for name in draw(st.just([]) | st.lists(st.sampled_from(["y", "sum", "negated"]) | ODD_TEXT, max_size=3)):
        output = request.outputs.add(name=name)
        for key, value in draw(PARAMETERS).items():
            output.parameters[key].CopyFrom(value)
    if draw(st.integers(0, 20)) == 0:
        request.raw_input_contents.append(draw(st.binary(max_size=10)))
    return request.SerializeToString()


@fuzz
@given(body=requests())
def test_any_request_is_survived(survive: Callable[[bytes], None], body: bytes) -> None:
    survive(body)


# ----------------------------------------------------------------------------------------------------------- values

# Little, or more than any machine has: what lies between would only measure how long memory takes to fill.
EXTREMES = [-(1 << 63), 1 << 44, (1 << 63) - 1]
NUMBERS_OF_OPERATORS = st.integers(-3, 9) | st.sampled_from(EXTREMES)
DIGITS = st.text(st.characters(codec="utf-8"), max_size=4) | st.integers().map(str) | st.floats().map(str)


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """A request of sound form to a model of one operator, with any values, of any small size."""
    model = draw(st.sampled_from(sorted(OPERATORS)))
    given_inputs = []
    for name, (element, dimensions) in OPERATORS[model].inputs.items():
        shape = tuple(each if isinstance(each, int) else draw(st.integers(0, 4)) for each in dimensions)
        count = math.prod(shape)
        if element == operators.INT64:
            numbers = draw(st.lists(NUMBERS_OF_OPERATORS, min_size=count, max_size=count))
            given_inputs.append(tensor(name, np.array(numbers, np.int64).reshape(shape)))
        elif element == operators.BYTES:
            texts = draw(st.lists(DIGITS, min_size=count, max_size=count))
            given_inputs.append(strings(name, [text.encode() for text in texts], shape))
        else:
            given_inputs.append(zeros("FP32", shape, name))
    return ask(model, *given_inputs).SerializeToString()


@fuzz
@given(body=values())
def test_any_values_are_survived(survive: Callable[[bytes], None], body: bytes) -> None:
    survive(body)


# ------------------------------------------------------------------------------------------------------- other rpcs

RPCS: dict[str, type[Message]] = {
    f"{INFERENCE}/ServerLive": pb.ServerLiveRequest,
    f"{INFERENCE}/ServerReady": pb.ServerReadyRequest,
    f"{INFERENCE}/ServerMetadata": pb.ServerMetadataRequest,
    f"{INFERENCE}/ModelReady": pb.ModelReadyRequest,
    f"{INFERENCE}/ModelMetadata": pb.ModelMetadataRequest,
    f"{INFERENCE}/RepositoryIndex": pb.RepositoryIndexRequest,
    f"{INFERENCE}/ModelConfig": pb.ModelConfigRequest,
    f"{INFERENCE}/ModelStatistics": pb.ModelStatisticsRequest,
    f"{INFERENCE}/RepositoryModelLoad": pb.RepositoryModelLoadRequest,
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
}


@fuzz
@given(
    rpc=st.sampled_from(sorted(RPCS)),
    body=st.binary(max_size=60)
    | fields(WORDS | st.binary(max_size=10))
    | st.builds(
        lambda name, version: pb.ModelReadyRequest(name=name, version=version).SerializeToString(), ODD_TEXT, VERSIONS
    ),
)
def test_any_bytes_to_any_other_rpc_are_survived(server: ServerProcess, fuzzed: Caller, rpc: str, body: bytes) -> None:
    outcome = fuzzed.call(rpc, body)
    assert outcome.code in ALLOWED | CLOSED, outcome
    assert outcome.seconds < PROMPT_S, outcome
    if parsed(RPCS[rpc], body) is None:
        assert outcome.code in {INVALID, *CLOSED}, f"no {rpc} request, and yet {outcome}"


METADATA_KEYS = st.from_regex(r"[a-z0-9_.-]{1,12}(-bin)?", fullmatch=True).filter(
    lambda key: not key.startswith("grpc-")
)
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)


@fuzz
@given(
    path=st.from_regex(r"/[!-.0-~]{0,20}/[!-~]{0,20}", fullmatch=True) | PRINTABLE.map(lambda text: f"/{text}"),
    metadata=st.dictionaries(METADATA_KEYS, PRINTABLE, max_size=4),
)
def test_any_path_with_any_metadata_is_survived(
    server: ServerProcess, fuzzed: Caller, path: str, metadata: dict[str, str]
) -> None:
    pairs = [(key, text.encode() if key.endswith("-bin") else text) for key, text in metadata.items()]
    outcome = fuzzed.call(path, b"", metadata=pairs)
    assert outcome.code in ALLOWED, outcome
    assert outcome.seconds < PROMPT_S, outcome
