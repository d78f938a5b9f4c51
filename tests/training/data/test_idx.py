"""The idx format, whole and broken."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from forwardpass_training.data.idx import read_idx
from forwardpass_training.errors import DataError

HEAD = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 2, 3)
GOOD = HEAD + bytes(range(12))


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "images.gz"
    path.write_bytes(data)
    return path


def test_an_array_of_the_stated_shape(tmp_path: Path) -> None:
    array = read_idx(written(tmp_path, gzip.compress(GOOD)))
    np.testing.assert_array_equal(array, np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    assert array.dtype == np.uint8
    assert array.flags.writeable


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"plain", "not a whole gzip"),
        (gzip.compress(GOOD)[:-9], "not a whole gzip"),
        (gzip.compress(b""), "not an idx file"),
        (gzip.compress(b"\x01" + GOOD[1:]), "not an idx file"),
        (gzip.compress(GOOD[:2] + b"\x0d" + GOOD[3:]), "idx type 0x0d"),
        (gzip.compress(GOOD[:9]), "inside its head"),
        (gzip.compress(GOOD[:-1]), "holds 11 values"),
        (gzip.compress(GOOD + b"!"), "holds 13 values"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(written(tmp_path, data))
    assert "images.gz" in str(caught.value)
