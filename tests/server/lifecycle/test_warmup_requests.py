"""`model_warmup`: run as asked, or refused by its field."""

from pathlib import Path

import numpy as np
import pytest

from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle.config_pbtxt import parse
from forwardpass_server.lifecycle.model_settings import UnsupportedConfig
from forwardpass_server.lifecycle.warmup_requests import Inputs, requests
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (
        TensorSpec("x", dtypes.FP32, ("batch", "width")),
        TensorSpec("words", dtypes.BYTES, ("batch", 2)),
        TensorSpec("maybe", dtypes.INT64, ("batch",), optional=True),
    ),
    (TensorSpec("y", dtypes.FP32, ("batch",)),),
    max_batch_size=4,
)

X = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: [3] random_data: true } }'
WORDS = 'inputs { key: "words" value { data_type: TYPE_STRING dims: [2] zero_data: true } }'


def made(root: Path, warmup: str, signature: Signature = SIGNATURE) -> list[tuple[str, Inputs]]:
    (root / "m/warmup").mkdir(parents=True, exist_ok=True)
    return list(requests(parse(f"model_warmup {{ {warmup} }}", model="m"), signature, root / "m", root))


@pytest.mark.parametrize(
    ("warmup", "parts"),
    [
        (f"batch_size: 5 {X} {WORDS}", ["batch_size", "5", "1 to 4"]),
        (f"{X} {WORDS}", ["batch_size", "0"]),
        (f"batch_size: 1 count: 1001 {X} {WORDS}", ["count", "1001"]),
        (f"batch_size: 1 {X}", ["inputs", "'words'"]),
        (f'batch_size: 1 {X} {WORDS} inputs {{ key: "z" value {{ zero_data: true }} }}', ["inputs[z]", "'x', 'words'"]),
        (f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ dims: [3] }} }}', ["inputs[x]", "needs one of"]),
        (f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ dims: [] zero_data: true }} }}', ["inputs[x].dims", "[]"]),
        (
            f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ dims: [-1] zero_data: true }} }}',
            ["inputs[x]", "negative"],
        ),
        (
            f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ dims: [9999999999] zero_data: true }} }}',
            ["inputs[x].dims", "too many"],
        ),
        (
            f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ data_type: TYPE_INT8 dims: [3] zero_data: true }} }}',
            ["inputs[x].data_type", "TYPE_INT8", "FP32"],
        ),
        (
            f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ dims: [3] input_data_file: "none" }} }}',
            ["input_data_file", "'none'"],
        ),
        (
            f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ dims: [3] input_data_file: "../../../x" }} }}',
            ["input_data_file"],
        ),
        (
            f'batch_size: 1 {WORDS} inputs {{ key: "x" value {{ dims: [3] input_data_file: "short" }} }}',
            ["inputs[x]", "expected 12 bytes", "got 5"],
        ),
    ],
)
def test_a_request_that_the_model_does_not_take_is_refused(tmp_path: Path, warmup: str, parts: list[str]) -> None:
    (tmp_path / "x").write_bytes(b"outside")
    root = tmp_path / "root"
    (root / "m/warmup").mkdir(parents=True)
    (root / "m/warmup/short").write_bytes(b"12345")
    with pytest.raises(LoadFailed) as caught:
        made(root, warmup)
    for part in parts:
        assert part in str(caught.value)


def test_requests_are_made_as_asked(tmp_path: Path) -> None:
    (tmp_path / "m/warmup").mkdir(parents=True)
    (tmp_path / "m/warmup/x.bin").write_bytes(np.array([1, 2, 3, 4], "<f4").tobytes())
    words = b"\x01\x00\x00\x00a\x00\x00\x00\x00" * 2
    (tmp_path / "m/warmup/words").write_bytes(words)
    from_files = (
        'name: "real" batch_size: 2 count: 3 inputs { key: "x" value { dims: [2] input_data_file: "x.bin" } } '
        'inputs { key: "words" value { dims: [2] input_data_file: "words" } }'
    )
    runs = made(tmp_path, from_files)
    assert [name for name, _ in runs] == ["real"] * 3
    x, got_words, maybe = runs[0][1]
    assert x is not None
    assert got_words is not None
    np.testing.assert_array_equal(x, [[1, 2], [3, 4]])
    assert got_words.tolist() == [["a", ""], ["a", ""]]
    assert maybe is None
    ((_, made_up),) = made(tmp_path, f"batch_size: 4 {X} {WORDS}")
    assert [None if a is None else a.shape for a in made_up] == [(4, 3), (4, 2), None]
    assert made_up[1] is not None
    assert set(made_up[1].ravel()) == {""}


def test_no_config_wants_nothing(tmp_path: Path) -> None:
    assert list(requests(parse("", model="m"), SIGNATURE, tmp_path, tmp_path)) == []


def test_a_model_that_is_not_batched_takes_dims_as_they_are(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", dtypes.FP32, (2,)),), (), 0)
    ((_, (x,)),) = made(tmp_path, 'inputs { key: "x" value { dims: [2] zero_data: true } }', signature)
    assert x is not None
    assert x.shape == (2,)
    with pytest.raises(UnsupportedConfig):
        made(tmp_path, 'inputs { key: "x" value { dims: [3] zero_data: true } }', signature)
