"""The scan against protobuf itself, and against bytes that are no message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest
from forwardpass_server.tensors import scan


def scanned(data: bytes) -> list[scan.Field]:
    return list(scan.fields(data, 0, len(data)))


@given(st.binary(max_size=200))
def test_any_bytes_are_covered_by_fields_or_refused(data: bytes) -> None:
    try:
        found = scanned(data)
    except InvalidRequest:
        return
    assert [field.at for field in found] == [0, *(field.stop for field in found)][: len(found)]
    assert (found[-1].stop if found else 0) == len(data)


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_read_as_protobuf_writes_them(number: int) -> None:
    data = pb.StatisticDuration(ns=number).SerializeToString()
    for field in scanned(data):
        assert scan.varint(data, field.start, field.stop) == (number, field.stop)


@given(st.integers(1, 15), st.integers(0, 2**31))
def test_a_prefix_is_read_back(number: int, length: int) -> None:
    data = scan.prefix(number, length)
    tag, at = scan.varint(data, 0, len(data))
    assert (tag >> 3, tag & 7) == (number, scan.LENGTH)
    assert scan.varint(data, at, len(data)) == (length, len(data))


@pytest.mark.parametrize(
    "inside", [b"", b"\x08\x01", b"\x0a\x02\x0c\x0c", b"\x0d\0\0\0\0", b"\x13\x0b\x0c\x14", b"\x09" + bytes(8)]
)
def test_an_unknown_group_is_one_field(inside: bytes) -> None:
    data = b"\x0b" + inside + b"\x0c"
    assert scanned(data + b"\x10\x05") == [
        scan.Field(1, scan.GROUP, 0, 1, len(data)),
        scan.Field(2, scan.VARINT, len(data), len(data) + 1, len(data) + 2),
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff" * 11, "has no end"),
        (b"\x3a\x80", "has no end"),
        (b"\x3a\x05ab", "3 bytes short"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes short"),
        (b"\x0d\x00", "3 bytes short"),
        (b"\x09\x00", "7 bytes short"),
        (b"\x0c", "wire type 4"),
        (b"\x0b", "group 1 has no end"),
        (b"\x0b\x08\x01", "group 1 has no end"),
        (b"\x0b\x14", "the end of group 2 at byte 1 ends another"),
        (b"\x0b\x0f\x0c", "wire type 7"),
        (b"\x0b\x0a\x7f\x0c", "group 1 has no end"),
        (b"\x0b" * 101 + b"\x0c" * 101, "more than 100 groups"),
        (b"\x0f", "wire type 7"),
        (b"\x02\x00", "field number 0"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        scanned(data)
