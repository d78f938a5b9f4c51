"""Files that mean harm, in the repository of a real server: refused by name, and everything else is served."""

import os
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def external(location: str, path: Path) -> None:
    """Rewrite the model at `path` so that its weights lie at `location`."""
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())


def reason(server: Any) -> str:
    """Why the model `bad` failed; after which `good` is asked, and answers."""
    failed = str(server.wait_for("version failed", model="bad")["reason"])
    client = server.client()
    np.testing.assert_array_equal(client.infer("good", X)[0], 2 * X)
    code, text = client.code("bad")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert failed[:60] in text
    return failed


@pytest.fixture
def bad(bare: Any) -> Path:
    """The model file of `bad`, still sound, beside `good`."""
    bare("good", 1)
    path: Path = bare("bad", 1)
    return path


def test_a_pipe_called_model_onnx_holds_nobody_up(serve: Any, bad: Path) -> None:
    bad.unlink()
    os.mkfifo(bad)
    with serve() as server:
        assert "pipe" in reason(server)


def test_a_hard_link_to_a_file_outside_is_not_loaded(serve: Any, bad: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(1, np.float32).tobytes())
    external("w.bin", bad)
    os.link(secret, bad.parent / "w.bin")
    with serve() as server:
        assert "hard link" in reason(server)


@pytest.mark.parametrize("location", ["/etc/hostname", "../../../secret"])
def test_external_data_outside_is_not_loaded(serve: Any, bad: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(np.ones(1, np.float32).tobytes())
    external(location, bad)
    with serve() as server:
        assert location in reason(server)


def test_a_link_to_a_file_outside_is_not_loaded_and_its_place_not_told(serve: Any, bad: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bad.read_bytes())
    bad.unlink()
    bad.symlink_to(tmp_path / "secret")
    with serve() as server:
        text = reason(server)
        assert "leads out of the repository" in text
        assert str(tmp_path) not in text


def test_links_inside_the_repository_are_served(serve: Any, bad: Path) -> None:
    """`bad` is good here: a layout as git-sync and ConfigMaps make it."""
    real = bad.parent / "..data"
    real.mkdir()
    bad.rename(real / "model.onnx")
    bad.symlink_to("..data/model.onnx")
    with serve() as server:
        np.testing.assert_array_equal(server.client().infer("bad", X)[0], 2 * X)


def test_external_data_beside_the_model_is_served(serve: Any, bad: Path) -> None:
    external("weights/w.bin", bad)
    (bad.parent / "weights").mkdir()
    (bad.parent / "weights/w.bin").write_bytes(np.full(1, 5, np.float32).tobytes())
    with serve() as server:
        np.testing.assert_array_equal(server.client().infer("bad", X)[0], 5 * X)


def test_a_model_cut_at_every_kth_byte_never_takes_the_server_down(serve: Any, root: Path, bad: Path) -> None:
    """One model a cut, all at once: each is refused with a reason or whole enough to load; none crashes a thing."""
    whole = bad.read_bytes()
    cuts = list(range(0, len(whole), max(1, len(whole) // 12)))
    for cut in cuts:
        path = root / f"cut_{cut}" / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(whole[:cut])
    with serve() as server:
        client = server.client()
        np.testing.assert_array_equal(client.infer("good", X)[0], 2 * X)
        for cut in cuts:
            if not client.ready(f"cut_{cut}"):
                code, text = client.code(f"cut_{cut}")
                assert (code, "failed: " in text) == (grpc.StatusCode.UNAVAILABLE, True)
        assert not client.ready("cut_0")
        server.terminate()
        assert server.wait() == 0


def test_a_model_that_is_no_model_is_refused_in_words(serve: Any, bad: Path) -> None:
    bad.write_bytes(os.urandom(4096))
    with serve() as server:
        assert "not an ONNX file" in reason(server)


def test_names_that_are_no_names_are_passed_over(serve: Any, root: Path, bad: Path) -> None:
    for name in ("-flag", ".hidden", "new\nline", "x" * 200):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.onnx").write_bytes(bad.read_bytes())
    (root / "good" / "01").mkdir()
    with serve() as server:
        np.testing.assert_array_equal(server.client().infer("good", X)[0], 2 * X)
        warned = [line for line in server.lines if line["message"] == "repository: ignored"]
        assert {line["path"][:5] for line in warned} == {"-flag", "new\\n", "xxxxx", "good/"}
        assert all(line["path"].isprintable() for line in warned)
