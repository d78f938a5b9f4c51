"""A file that crashes the loader takes a child with it, and not the server."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forwardpass_server.errors import LoadFailed
from forwardpass_server.runtime import child

Model = Callable[[str], Path]


def test_a_good_file_loads(model: Model) -> None:
    child.try_load(model("mlp"))


def test_a_bad_file_is_refused_with_onnxruntimes_reason(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(LoadFailed, match=r"bad\.onnx") as failed:
        child.try_load(bad)
    assert str(tmp_path) not in str(failed.value)


def in_place_of_the_child(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    real = subprocess.run

    def run(command: list[str], **given: object) -> object:
        assert command[:2] == [sys.executable, "-P"]
        return real([sys.executable, "-c", code], **given)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_crash_is_named_by_its_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    in_place_of_the_child(
        monkeypatch,
        "import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
        f"os.kill(os.getpid(), signal.{name})",
    )
    with pytest.raises(LoadFailed, match=rf"model\.onnx crashes the loader \({name}"):
        child.try_load(tmp_path / "model.onnx")


def test_a_loader_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_place_of_the_child(monkeypatch, "import threading; threading.Event().wait()")
    with pytest.raises(LoadFailed, match=r"did not load within 0\.2 s"):
        child.try_load(tmp_path / "model.onnx", timeout_s=0.2)


def test_a_child_that_ends_oddly_shows_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_place_of_the_child(monkeypatch, "raise SystemExit('no such module')")
    with pytest.raises(LoadFailed, match="status 1: no such module"):
        child.try_load(tmp_path / "model.onnx")
