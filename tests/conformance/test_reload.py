"""Versions that come and go under load: cases 33 and 34."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from conformance import models
from conformance.process import ServerProcess, Start, wait_until
from conformance.wire import Caller, Outcome, ask, ok, refused, tensor
from onnx import TensorProto

from forwardpass_proto import grpc_service_pb2 as pb

POLL = ("--repository-poll-secs", "0.05")
X = np.zeros((1, 64), np.float32)
REQUEST = ask("stamp", tensor("x", X))


def ready(server: ServerProcess, model: str, version: int) -> bool:
    request = pb.ModelReadyRequest(name=model, version=str(version))
    outcome = server.caller.call("ModelReady", request.SerializeToString())
    return outcome.ok and pb.ModelReadyResponse.FromString(outcome.body or b"").ready


def publish(server: ServerProcess, root: Path, number: int) -> None:
    """Publish version `number` of `stamp`, and wait until it serves."""
    assert models.publish(root, "stamp", models.stamp(number)) == number
    wait_until(lambda: ready(server, "stamp", number), f"version {number} serves", timeout_s=20)


def wait_until_it_failed(server: ServerProcess) -> None:
    """Wait until a version of `stamp` has failed to load."""
    wait_until(lambda: server.total("model_load_failures_total", model="stamp") >= 1, "the load failed", timeout_s=20)


@contextmanager
def load_from_callers(server: ServerProcess, count: int) -> Iterator[list[Outcome]]:
    """Keep `count` closed-loop callers asking; what they got is complete when the block ends."""
    outcomes: list[Outcome] = []
    stop, begun = threading.Event(), threading.Semaphore(0)

    def call_all_the_time() -> None:
        body = REQUEST.SerializeToString()
        with Caller(server.target) as caller:
            while not stop.is_set():
                outcomes.append(caller.call("ModelInfer", body))
                begun.release()

    threads = [threading.Thread(target=call_all_the_time) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            begun.acquire()
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def assert_whole(outcomes: list[Outcome]) -> set[int]:
    """Every call succeeded, and each answer is wholly of the version it names. Returns the versions seen."""
    failed = [str(each) for each in outcomes if not each.ok]
    assert not failed, f"{len(failed)} of {len(outcomes)} calls failed: {failed[:3]}"
    versions = set()
    for each in outcomes:
        values = set(each.outputs["y"].array.ravel().tolist())
        assert values == {float(each.reply.model_version)}, f"version {each.reply.model_version} answered {values}"
        versions.add(int(each.reply.model_version))
    return versions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with version 1 of `stamp`, whose every answer is its version's number; and `identity_fp32`."""
    models.publish(tmp_path / "models", "identity_fp32", models.identity(TensorProto.FLOAT))
    models.publish(tmp_path / "models", "stamp", models.stamp(1))
    return tmp_path / "models"


@pytest.mark.case("34", "reload under load x100", "0 failed; each answer wholly one version's")
@pytest.mark.timeout(180)
def test_a_hundred_new_versions_under_load_fail_no_request_and_mix_no_answer(root: Path, start: Start) -> None:
    server = start(root, *POLL)
    server.take_baseline()
    with load_from_callers(server, 16) as outcomes:
        for number in range(2, 102):
            publish(server, root, number)
    assert len(assert_whole(outcomes)) > 50
    assert ok(server.caller.infer(REQUEST))["y"].array.tolist() == (X + 101).tolist()
    server.wait_until_idle()
    server.stop()


case_33 = pytest.mark.case("33", "a new version that cannot be loaded", "the old one serves; the reason is told")

UNSOUND = {
    "empty": b"",
    "text": b"this is no model",
    "cut in half": models.stamp(2).SerializeToString()[:100],
    "zeros": bytes(1000),
}


@case_33
@pytest.mark.parametrize("content", UNSOUND.values(), ids=UNSOUND)
def test_a_corrupt_version_leaves_the_one_before_it_serving(root: Path, start: Start, content: bytes) -> None:
    server = start(root, *POLL)
    with load_from_callers(server, 4) as outcomes:
        assert models.publish(root, "stamp", content) == 2
        wait_until_it_failed(server)
        assert not ready(server, "stamp", 2)
        outcome = server.caller.infer(ask("stamp", tensor("x", X), version="2"))
        refused(outcome, grpc.StatusCode.UNAVAILABLE, "stamp")
        assert str(root) not in outcome.details, "a path of the server in a message"
        index = server.caller.call("RepositoryIndex")
        assert index.ok, index
        found = pb.RepositoryIndexResponse.FromString(index.body or b"").models
        states = {each.version: each for each in found if each.name == "stamp"}
        assert (states["1"].state, states["2"].state) == ("READY", "UNAVAILABLE")
        assert states["2"].reason
        assert ready(server, "stamp", 1)
        publish(server, root, 3)
    assert assert_whole(outcomes) >= {1}
    server.stop()


@case_33
def test_a_file_that_is_not_what_its_manifest_says_is_not_served(root: Path, start: Start) -> None:
    server = start(root, *POLL)
    staged = root.parent / "staged"
    assert models.publish(staged, "stamp", models.stamp(2)) == 1
    (staged / "stamp" / "1" / "model.onnx").write_bytes(models.stamp(666).SerializeToString())
    with load_from_callers(server, 4) as outcomes:
        (staged / "stamp" / "1").rename(root / "stamp" / "2")
        wait_until_it_failed(server)
    assert assert_whole(outcomes) == {1}
    server.stop()


@case_33
def test_a_repository_that_vanishes_and_comes_back_fails_no_request(root: Path, start: Start) -> None:
    server = start(root, *POLL)
    with load_from_callers(server, 4) as outcomes:
        root.rename(root.parent / "away")
        ok(server.valid_request())
        wait_until(lambda: str(root) in server.log_text().rpartition("ready")[2], "the loss is in the log")
        (root.parent / "away").rename(root)
        publish(server, root, 2)
    assert assert_whole(outcomes) == {1, 2}
    server.stop()


@pytest.mark.case("33", "a model that is removed", "NOT_FOUND, and nothing else is touched")
def test_a_model_that_is_removed_is_not_found_any_more(root: Path, start: Start) -> None:
    server = start(root, *POLL)
    with Caller(server.target) as caller:
        ok(caller.infer(REQUEST))
        shutil.rmtree(root / "stamp")
        wait_until(lambda: not caller.infer(REQUEST).ok, "the model is gone")
        wait_until(lambda: caller.infer(REQUEST).code is grpc.StatusCode.NOT_FOUND, "the model is not found")
    ok(server.valid_request())
    server.stop()


@pytest.mark.case("33", "a new model", "served without a restart")
def test_a_model_that_is_published_later_is_served(root: Path, start: Start) -> None:
    server = start(root, *POLL)
    models.publish(root, "later", models.mlp())
    wait_until(lambda: ready(server, "later", 1), "the new model serves", timeout_s=20)
    models.copy(root, "copied", models.mlp())
    wait_until(lambda: ready(server, "copied", 1), "the copied model serves", timeout_s=30)
    server.stop()
