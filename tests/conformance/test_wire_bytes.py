"""Messages as bytes: broken ones are refused, and lawful ones are understood however they are written."""

import itertools
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from conformance.process import MIB, ServerProcess
from conformance.wire import Caller, Outcome, ask, invalid, ok, tensor, zeros

from forwardpass_proto import grpc_service_pb2 as pb

X = tensor("x", np.array([[1.5, -2.0, 3.25, 4.0]], np.float32))
BODY = ask("identity_fp32", X, request_id="an-id", outputs=["y"]).SerializeToString()

CALLERS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}


def at_most_the_callers_fault(outcome: Outcome) -> None:
    assert outcome.ok or outcome.code in CALLERS_FAULT, outcome


case_broken = pytest.mark.case("broken", "bytes that are no message", "INVALID_ARGUMENT")

NO_MESSAGES = {
    "a lone tag": b"\x0a",
    "a length without data": b"\x0a\x05mlp",
    "a length of 2^64 - 1": b"\x0a" + b"\xff" * 9 + b"\x01",
    "a length of 2^63": b"\x0a" + b"\x80" * 9 + b"\x01",
    "a varint without end": b"\x0a" + b"\x80" * 11,
    "a varint of 1 MiB": b"\x08" + b"\x80" * MIB,
    "field number 0": b"\x00\x00",
    "field number beyond 2^29": b"\xf8\xff\xff\xff\x7f\x00",
    "wire type 6": b"\x0e",
    "wire type 7": b"\x0f",
    "an end of no group": b"\x0c",
    "a group without end": b"\x0b" * 10,
    "a million groups": b"\x0b" * 1_000_000,
    "a name that is not UTF-8": b"\x0a\x02\xff\xfe",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "JSON": b'{"model_name": "mlp"}',
    "raw contents beyond the end": b"\x3a\xff\xff\xff\xff\x0f",
}


@case_broken
@pytest.mark.parametrize("body", NO_MESSAGES.values(), ids=NO_MESSAGES)
@pytest.mark.parametrize("rpc", ["ModelInfer", "ModelMetadata", "ModelReady"])
def test_bytes_that_are_no_message_are_refused(server: ServerProcess, caller: Caller, rpc: str, body: bytes) -> None:
    before = server.memory_bytes("VmHWM")
    invalid(caller.call(rpc, body))
    assert server.memory_bytes("VmHWM") - before < 32 * MIB


@case_broken
@pytest.mark.parametrize("body", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_bytes_that_are_no_message_never_count_as_the_servers_fault(caller: Caller, body: bytes) -> None:
    for rpc in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex", "ModelConfig", "ModelStatistics"):
        at_most_the_callers_fault(caller.call(rpc, body))


@case_broken
@pytest.mark.parametrize("inside", ["input", "shape", "contents", "parameters"])
def test_a_broken_part_inside_a_sound_message_is_refused(caller: Caller, inside: str) -> None:
    part = {
        "input": b"\x2a\x03\x0a\x05x",
        "shape": b"\x2a\x04\x1a\x02\x80\x80",
        "contents": b"\x2a\x04\x2a\x02\x32\x05",
        "parameters": b"\x22\x03\x12\x05x",
    }[inside]
    invalid(caller.call("ModelInfer", b"\x0a\x03mlp" + part))


@case_broken
def test_a_message_cut_at_any_byte_is_never_the_servers_fault(caller: Caller) -> None:
    pending = [caller.start("ModelInfer", BODY[:length]) for length in range(len(BODY))]
    for each in pending:
        at_most_the_callers_fault(each.outcome())


@case_broken
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_message_with_any_byte_changed_is_never_the_servers_fault(caller: Caller, flip: int) -> None:
    for at in range(len(BODY)):
        body = bytearray(BODY)
        body[at] ^= flip
        # Sent in turn: whatever a broken message leaves behind is met by the sound one after it.
        at_most_the_callers_fault(caller.call("ModelInfer", bytes(body)))
        assert ok(caller.call("ModelInfer", BODY))["y"].raw == X.raw


case_lawful = pytest.mark.case("lawful", "one message, written in unusual lawful ways", "read alike")


def field(number: int, content: bytes | int, pad: int = 0) -> bytes:
    """A protobuf field; `pad` makes its length or value longer than it need be, which is lawful."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content, pad)
    return varint(number << 3 | 2) + varint(len(content), pad) + content


def varint(value: int, pad: int = 0) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(pad):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


NAME, ID, OUTPUT, RAW = field(1, b"identity_fp32"), field(3, b"an-id"), field(6, field(1, b"y")), field(7, X.raw)
HEAD = field(5, field(1, b"x") + field(2, b"FP32") + field(3, b"\x01\x04"))
OTHER_ID, GHOST = field(3, b"other"), field(1, b"ghost")
GROUP = varint(100 << 3 | 3) + field(7, b"no raw") + varint(100 << 3 | 4)


def head(*parts: bytes) -> bytes:
    """An input of these fields, in a message that is otherwise as usual."""
    return NAME + ID + field(5, b"".join(parts)) + OUTPUT + RAW


UNUSUAL = {
    "as usual": NAME + ID + HEAD + OUTPUT + RAW,
    "raw contents first": RAW + NAME + ID + HEAD + OUTPUT,
    "raw contents between": NAME + RAW + HEAD + ID + OUTPUT,
    "id last": NAME + HEAD + OUTPUT + RAW + ID,
    "id first": ID + NAME + HEAD + OUTPUT + RAW,
    "the last name counts": GHOST + NAME + ID + HEAD + OUTPUT + RAW,
    "the last name counts, at the end": GHOST + ID + HEAD + OUTPUT + RAW + NAME,
    "the last id counts": OTHER_ID + NAME + ID + HEAD + OUTPUT + RAW,
    "the last id counts, at the end": OTHER_ID + NAME + HEAD + OUTPUT + RAW + ID,
    "the last id counts, at both ends of the data": OTHER_ID + NAME + HEAD + RAW + OUTPUT + ID,
    "an unknown varint": NAME + field(100, 7) + ID + HEAD + OUTPUT + RAW,
    "an unknown string": NAME + ID + HEAD + OUTPUT + RAW + field(100, b"later"),
    "an unknown string that looks like an id": NAME + ID + field(100, OTHER_ID) + HEAD + OUTPUT + RAW,
    "an unknown 64 bits": NAME + ID + varint(100 << 3 | 1) + bytes(8) + HEAD + OUTPUT + RAW,
    "an unknown 32 bits": NAME + ID + varint(100 << 3 | 5) + bytes(4) + HEAD + OUTPUT + RAW,
    "an unknown group": NAME + ID + GROUP + HEAD + OUTPUT + RAW,
    "the highest field number": NAME + ID + field((1 << 29) - 1, 1) + HEAD + OUTPUT + RAW,
    "long lengths": field(1, b"identity_fp32", 3) + field(3, b"an-id", 2) + HEAD + OUTPUT + field(7, X.raw, 4),
    "shape not packed": head(field(1, b"x"), field(2, b"FP32"), field(3, 1), field(3, 4)),
    "shape in two parts": head(field(3, b"\x01"), field(1, b"x"), field(2, b"FP32"), field(3, b"\x04")),
    "shape with long numbers": head(field(1, b"x"), field(2, b"FP32"), field(3, varint(1, 5) + varint(4, 8))),
    "an unknown field in the input": head(field(1, b"x"), field(2, b"FP32"), field(3, b"\x01\x04"), field(99, b"?")),
    "an empty version": NAME + field(2, b"") + ID + HEAD + OUTPUT + RAW,
    "the version": NAME + field(2, b"1") + ID + HEAD + OUTPUT + RAW,
    "fields of the wrong wire type": NAME + field(7, 5) + field(3, 5) + ID + HEAD + OUTPUT + RAW,
}


@case_lawful
@pytest.mark.parametrize("body", UNUSUAL.values(), ids=UNUSUAL)
def test_a_message_is_read_alike_however_it_is_lawfully_written(caller: Caller, body: bytes) -> None:
    # What protobuf itself reads is the law.
    assert pb.ModelInferRequest.FromString(body).id == "an-id"
    for _ in range(3):
        outcome = caller.call("ModelInfer", body)
        assert ok(outcome)["y"].raw == X.raw
        assert outcome.reply.id == "an-id"


@case_lawful
def test_messages_of_one_length_are_never_taken_for_each_other(caller: Caller) -> None:
    # A server that remembers layouts by length, or heads by their bytes, must not mistake one of these for another.
    def messages(request_id: bytes, data: bytes, junk: bytes) -> Iterator[bytes]:
        head = field(5, field(1, b"x") + field(2, b"UINT8") + field(3, b"\x01" + varint(len(data))))
        for parts in itertools.permutations([field(1, b"identity_uint8"), field(3, request_id), head, field(90, junk)]):
            yield b"".join(parts) + field(7, data)

    ids_and_junk = [
        (b"abcdef", b"ghijkl"),
        (b"ghijkl", b"abcdef"),
        (b"abc", b"defghijkl"),
        (b"\x1a\x04abcd", b"\x1a\x04efgh"),
        (b"", b"abcdefghijkl"),
    ]
    contents = [b"\x01\x02\x03\x04\x05\x06", b"\x1a\x04\x1a\x02ab", b"\x3a\x04\x3a\x02xy"]
    asked = [
        (body, request_id.decode(), data)
        for (request_id, junk), data in itertools.product(ids_and_junk, contents)
        for body in messages(request_id, data, junk)
    ]
    for _ in range(2):
        for body, request_id, data in asked:
            outcome = caller.call("ModelInfer", body)
            assert ok(outcome)["y"].raw == data
            assert outcome.reply.id == request_id


@case_lawful
def test_the_data_may_look_like_a_message(caller: Caller) -> None:
    for data in (BODY, RAW, ID * 7, NAME + HEAD, b"\x3a" * 64):
        sent = tensor("x", np.frombuffer(data, np.uint8).reshape(1, -1))
        for request_id in ("", "an-id", "x" * len(data[:120])):
            outcome = caller.infer(ask("identity_uint8", sent, request_id=request_id))
            assert ok(outcome)["y"].raw == data
            assert outcome.reply.id == request_id


@case_lawful
@pytest.mark.parametrize("times", [2, 3])
def test_a_request_after_a_refused_one_of_the_same_head_is_served(caller: Caller, times: int) -> None:
    good, bad = zeros("FP32", (1, 10)), ask("mlp", zeros("FP32", (1, 10)))
    bad.raw_input_contents[0] = bytes(36)
    for _ in range(times):
        invalid(caller.infer(bad), 40, 36)
        ok(caller.infer(ask("mlp", good)))
