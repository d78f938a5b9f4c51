"""A repository that somebody wrote for Triton is served as it stands, and left as it was found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from compat import triton_repository
from conformance.process import ServerProcess

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


def ask(
    client: triton.InferenceServerClient, model: str, name: str, array: np.ndarray, version: str = ""
) -> np.ndarray:
    sent = triton.InferInput(name, array.shape, "BYTES" if array.dtype == object else "FP32")
    sent.set_data_from_numpy(array)
    (output,) = client.get_model_metadata(model).outputs
    return client.infer(model, [sent], version).as_numpy(output.name)


def test_a_triton_repository_is_served_as_it_stands(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    root = triton_repository.write(tmp_path / "repository")
    found = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    server = start(root, "--exit-on-error", "--strict-readiness")
    with triton.InferenceServerClient(server.target) as client:
        index = {
            (each.name, each.version): (each.state, each.reason) for each in client.get_model_repository_index().models
        }
        models = [("graded", "1"), ("halved", "1"), ("halved", "2"), ("pets", "1"), ("words", "1")]
        assert index == dict.fromkeys(models, ("READY", ""))
        for version, factor in (("1", 0.5), ("2", 0.25), ("", 0.25)):
            np.testing.assert_array_equal(ask(client, "halved", "x", X, version), X * factor)
        probability = np.exp(X) / np.exp(X).sum(1, keepdims=True)
        np.testing.assert_allclose(ask(client, "pets", "y", X), probability, rtol=1e-5)
        grade = np.exp(X / 4) / np.exp(X / 4).sum(1, keepdims=True)
        np.testing.assert_allclose(ask(client, "graded", "image", X), grade, rtol=1e-5)
        assert ask(client, "words", "text", np.array([b"a", b""], object)).tolist() == [b"a", b""]
        assert client.get_model_config("halved").config.version_policy.HasField("all")
        assert client.get_model_config("pets").config.instance_group[0].count == 2
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == found
    server.stop()
