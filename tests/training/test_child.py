"""A child's crash, error or delay is told with its name and place, and leaves the parent alone."""

import io
import os
import signal
import sys
import threading
from typing import Any

import pytest

from forwardpass_training import child
from forwardpass_training.child import in_child, stage
from forwardpass_training.errors import ChildFailed


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work below is this file's; children find it by the name under which they can import it."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    for work in (double, crash, refuse, dawdle, mumble):
        monkeypatch.setattr(work, "__module__", "test_child")


def double(job: dict[str, Any]) -> dict[str, Any]:
    stage("doubling")
    return {"twice": job["x"] * 2, "pid": os.getpid()}


def crash(job: dict[str, Any]) -> dict[str, Any]:
    stage("reading")
    stage("loading it")
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def refuse(job: dict[str, Any]) -> dict[str, Any]:
    stage("building it")
    sys.stderr.write("a warning\n")
    raise ValueError("weights of shape [3] do not fit")


def dawdle(job: dict[str, Any]) -> dict[str, Any]:
    stage("thinking")
    threading.Event().wait()
    return {}


def mumble(job: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write("noise of a library, and no stage\n")
    return {"value": float("nan")}


def test_work_is_done_in_another_process_and_its_result_comes_back() -> None:
    result = in_child(double, {"x": 21}, timeout_s=60)
    assert result["twice"] == 42
    assert result["pid"] != os.getpid()


def test_a_crash_is_told_by_the_name_of_its_signal_and_by_what_was_being_done() -> None:
    with pytest.raises(ChildFailed, match=r"^crashed \(SIGSEGV\) while loading it$"):
        in_child(crash, {}, timeout_s=60)


def test_an_error_is_told_by_its_last_line() -> None:
    with pytest.raises(ChildFailed, match=r"^failed while building it: ValueError: weights of shape \[3\] do not fit$"):
        in_child(refuse, {}, timeout_s=60)


def test_work_that_does_not_end_is_ended() -> None:
    with pytest.raises(ChildFailed, match=r"not done within 3 s while thinking"):
        in_child(dawdle, {}, timeout_s=3)


def test_a_result_without_json_form_is_an_error_of_the_child() -> None:
    with pytest.raises(ChildFailed, match=r"^failed: ValueError: Out of range float values"):
        in_child(mumble, {}, timeout_s=60)


def test_a_child_outlives_its_parent_not_for_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The timer is in the child itself."""
    timers: list[float] = []
    monkeypatch.setattr(signal, "setitimer", lambda _, seconds: timers.append(seconds))
    monkeypatch.setattr(child.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"x": 1}'))
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    child._main("test_child", "double", str(tmp_path / "result.json"), "7")
    assert timers == [7.0]
