"""Versions come and go under load: no call fails, and no answer is a mixture."""

import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb

X = np.arange(12, dtype=np.float32).reshape(4, 3)


class Callers:
    """Closed-loop callers of one model; each notes the version and the answers it got, and whatever failed."""

    def __init__(self, client: Any, model: str, count: int = 16) -> None:
        self._client = client
        self._model = model
        self._stop = threading.Event()
        self.answers: Counter[tuple[str, float]] = Counter()
        self.failures: list[grpc.RpcError] = []
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(count)]

    def _work(self, number: int) -> None:
        rows = np.full((number % 5 + 1, 3), number + 1, np.float32)
        while not self._stop.is_set():
            try:
                answer, version = self._client.infer(self._model, rows)
            except grpc.RpcError as error:
                self.failures.append(error)
                return
            factors = set((answer / rows).ravel().tolist())
            with self._changed:
                self.answers.update((version, factor) for factor in factors)
                self._changed.notify_all()

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for_answers(self, version: str, count: int = 200) -> None:
        """Until that version gave so many answers; or somebody failed."""

        def enough() -> bool:
            return bool(self.failures) or sum(n for (v, _), n in self.answers.items() if v == version) >= count

        with self._changed:
            assert self._changed.wait_for(enough, 60), self.answers


def test_ten_versions_under_sixteen_callers_fail_no_call_and_mix_no_answer(serve: Any, publish: Any) -> None:
    publish("scale", 1.0)
    with serve() as server:
        with Callers(server.client(), "scale") as callers:
            for number in range(2, 11):
                callers.wait_for_answers(str(number - 1), 100)
                publish("scale", float(number))
            callers.wait_for_answers("10")
        assert callers.failures == []
        # Each answer has one factor, and it is that of the version that claims it.
        assert set(callers.answers) == {(str(n), float(n)) for n in range(1, 11)}
        assert server.client().ready("scale", "10")
        server.terminate()
        assert server.wait() == 0


def test_a_version_that_fails_its_proof_leaves_the_old_one_serving_and_says_why(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        with Callers(client, "scale", 4) as callers:
            publish("scale", 3.0, recorded=3.5)
            failed = server.wait_for("version failed", model="scale", version=2)
            callers.wait_for_answers("1")
        assert callers.failures == []
        assert set(callers.answers) == {("1", 2.0)}
        assert failed["serving"] == 1
        for part in ("'test_data_set_0'", "'y'", "max error 3", "tolerance"):
            assert part in failed["reason"]
        assert client.ready("scale", "1")
        assert not client.ready("scale", "2")
        code, text = client.code("scale", "2")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "max error 3" in text
        page = server.metrics()
        assert 'model_state{model="scale",state="failed",version="2"} 1.0' in page
        assert 'model_load_failures_total{model="scale",version="2"} 1.0' in page
        assert client.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready


def corrupted(folder: Path) -> None:
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def publish_corrupted(root: Path, publish: Any) -> None:
    """Publish elsewhere, damage, and move it in: it never stood here whole."""
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    number = max(int(each.name) for each in (root / "scale").iterdir() if each.name.isdigit()) + 1
    staged = elsewhere / str(number)
    shutil.copytree(root / "scale" / str(number - 1), staged)
    corrupted(staged)
    staged.rename(root / "scale" / str(number))


def test_a_corrupted_version_leaves_the_old_one_serving_and_names_the_file(
    serve: Any, root: Path, publish: Any
) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        publish_corrupted(root, publish)
        failed = server.wait_for("version failed", model="scale", version=2)
        assert "'model.onnx' differs from manifest.json: expected sha256" in failed["reason"]
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        assert (client.ready("scale", "1"), client.ready("scale", "2")) == (True, False)


def test_a_failed_version_is_not_tried_again_until_it_is_mended(serve: Any, root: Path, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        publish_corrupted(root, publish)
        server.wait_for("version failed", version=2)
        # Another model's load is a sign that the repository has been looked at since, and more than once.
        for name in ("sign", "sign_of_later"):
            publish(name, 1.0)
            server.wait_for("version ready", model=name)
        assert 'model_load_failures_total{model="scale",version="2"} 1.0' in server.metrics()
        shutil.copy(root / "scale/1/model.onnx", root / "scale/2/model.onnx")
        server.wait_for("version ready", model="scale", version=2)
        assert client.infer("scale", X)[1] == "2"


def test_a_restart_beside_a_broken_version_serves_the_one_before_it(serve: Any, root: Path, publish: Any) -> None:
    publish("scale", 2.0)
    publish("scale", 3.0, recorded=7.0)
    with serve() as server:
        answer, version = server.client().infer("scale", X)
        np.testing.assert_array_equal(answer, 2 * X)
        assert version == "1"


def test_deleting_the_new_version_rolls_back_under_load(serve: Any, root: Path, publish: Any) -> None:
    publish("scale", 1.0)
    publish("scale", 2.0)
    with serve() as server:
        with Callers(server.client(), "scale") as callers:
            callers.wait_for_answers("2")
            shutil.rmtree(root / "scale" / "2")
            callers.wait_for_answers("1")
        assert callers.failures == []
        assert set(callers.answers) == {("1", 1.0), ("2", 2.0)}


def test_deleting_a_model_ends_it(serve: Any, root: Path, publish: Any) -> None:
    publish("scale", 2.0)
    publish("other", 2.0)
    with serve() as server:
        client = server.client()
        client.infer("scale", X)
        shutil.rmtree(root / "scale")
        server.wait_for("version unloaded", model="scale")
        while (code := client.code("scale")[0]) is not grpc.StatusCode.NOT_FOUND:
            assert code is grpc.StatusCode.UNAVAILABLE
        assert 'model="scale"' not in server.metrics()
        client.infer("other", X)


def test_a_file_changed_in_place_is_loaded_beside_what_serves(serve: Any, root: Path, bare: Any) -> None:
    """Nobody should write into a served folder; those who do lose no call by it."""
    path = bare("scale", 1, 1.0)
    with serve() as server:
        with Callers(server.client(), "scale", 4) as callers:
            callers.wait_for_answers("1")
            elsewhere = bare("other", 1, 2.0)
            os.replace(elsewhere, path)
            server.wait_for("version ready", model="scale", version=1)
        assert callers.failures == []
        np.testing.assert_array_equal(server.client().infer("scale", X)[0], 2 * X)


def test_a_file_made_worse_in_place_leaves_what_serves(serve: Any, bare: Any) -> None:
    path = bare("scale", 1, 2.0)
    with serve() as server:
        client = server.client()
        path.write_bytes(path.read_bytes()[:40])
        server.wait_for("version failed", model="scale", version=1)
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        assert client.ready("scale", "1")


def test_a_half_written_version_waits_and_the_old_one_serves(serve: Any, root: Path, bare: Any) -> None:
    """Written slowly, in place, without a manifest: half of it, for several looks, and then the rest."""
    whole = bare("scale", 1, 2.0).read_bytes()
    with serve() as server:
        client = server.client()
        path = root / "scale" / "2" / "model.onnx"
        path.parent.mkdir()
        path.write_bytes(whole[: len(whole) // 2])
        server.wait_for("version failed", model="scale", version=2)
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        path.write_bytes(whole)
        server.wait_for("version ready", model="scale", version=2)
        assert client.infer("scale", X)[1] == "2"


def test_a_repository_that_cannot_be_read_for_a_while_changes_nothing(serve: Any, root: Path, publish: Any) -> None:
    publish("scale", 2.0)
    with serve() as server:
        client = server.client()
        root.rename(root.parent / "away")
        server.wait_for("repository unreadable; what serves goes on")
        np.testing.assert_array_equal(client.infer("scale", X)[0], 2 * X)
        (root.parent / "away").rename(root)
        publish("scale", 3.0)
        server.wait_for("version ready", version=2)
        np.testing.assert_array_equal(client.infer("scale", X)[0], 3 * X)


@pytest.mark.parametrize("config", ["version_policy { all {} }", "version_policy { specific { versions: [1, 2] } }"])
def test_a_policy_may_keep_several_versions(serve: Any, root: Path, publish: Any, config: str) -> None:
    for factor in (1.0, 2.0, 3.0):
        publish("scale", factor)
    (root / "scale" / "config.pbtxt").write_text(config)
    with serve() as server:
        client = server.client()
        for number in (1, 2):
            np.testing.assert_array_equal(client.infer("scale", X, str(number))[0], number * X)
        assert client.infer("scale", X)[1] == ("3" if "all" in config else "2")


def test_a_setting_that_changes_answers_and_is_not_supported_is_refused_by_its_field(
    serve: Any, root: Path, publish: Any
) -> None:
    publish("scale", 2.0)
    (root / "scale" / "config.pbtxt").write_text("sequence_batching { iterative_sequence: true }")
    with serve() as server:
        code, text = server.client().code("scale")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "sequence_batching.iterative_sequence" in text
