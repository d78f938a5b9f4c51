"""What training makes of a finished run, on a real server: a variant, an explanation and an attack, by the protocol."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from forwardpass import Client
from forwardpass.cli import main
from forwardpass.errors import InvalidRequest
from forwardpass_training import run
from forwardpass_training.attack_settings import AttackSettings
from forwardpass_training.data import DataStore
from forwardpass_training.explain import MAX_BATCH_SIZE, explain, publish_explanation
from forwardpass_training.optimise import optimise, publish_variant
from forwardpass_training.publish import publish
from forwardpass_training.recipes import digits_cnn
from forwardpass_training.robustness import attack
from forwardpass_training.run import Surroundings
from forwardpass_training.variant_gates import VariantGates

pytestmark = pytest.mark.timeout(600)  # the run below is trained, exported three times and measured
VARIANT = "int8_static"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A short run of digits_cnn, and a repository with the network, its explanation and an int8 form of it."""
    surroundings = Surroundings(store=DataStore.from_environment({}), device="cpu", threads=1)
    folder = run.start(replace(digits_cnn(), epochs=3), tmp_path_factory.mktemp("runs"), surroundings).path
    models = tmp_path_factory.mktemp("models")
    publish(folder, models, force=True)
    publish_explanation(folder, explain(folder, steps=8), models)
    found = optimise(folder, variants=(VARIANT,), gates=VariantGates(max_quality_loss=1.0))
    publish_variant(folder, found, VARIANT, models)
    return folder, models


@pytest.fixture
def served(published: tuple[Path, Path], root: Path, serve: Callable[..., Any]) -> tuple[Path, str]:
    """The run folder, and the address of a server of all three."""
    folder, models = published
    shutil.copytree(models, root, dirs_exist_ok=True)
    process = serve("--require-manifest")
    return folder, process.wait_for("serving")["address"]


def test_all_three_are_served_proved_batched_and_asked(served: tuple[Path, str]) -> None:
    folder, address = served
    images = run.dataset(folder).test.inputs[:8].numpy()
    with Client(address) as client:
        assert {status.name: status.state for status in client.models()} == {
            "digits_cnn": "READY",
            "digits_cnn_explain": "READY",
            f"digits_cnn_{VARIANT}": "READY",
        }
        own = client.infer("digits_cnn", {"image": images})["probabilities"]
        small = client.infer(f"digits_cnn_{VARIANT}", {"image": images})["probabilities"]
        assert client.metadata(f"digits_cnn_{VARIANT}").properties["forwardpass.variant"] == VARIANT
        alone = [client.infer(f"digits_cnn_{VARIANT}", {"image": image[None]})["probabilities"] for image in images]
    assert 0 < np.abs(small - own).max() < 0.3
    np.testing.assert_array_equal(np.concatenate(alone), small)


def test_explanations_are_bounded_to_small_batches(served: tuple[Path, str]) -> None:
    folder, address = served
    images = run.dataset(folder).test.inputs[: MAX_BATCH_SIZE + 1].numpy()
    with Client(address) as client:
        result = client.infer("digits_cnn_explain", {"image": images[:MAX_BATCH_SIZE]})
        with pytest.raises(InvalidRequest, match=f"takes at most {MAX_BATCH_SIZE}"):
            client.infer("digits_cnn_explain", {"image": images})
        own = client.infer("digits_cnn", {"image": images[:MAX_BATCH_SIZE]})
    np.testing.assert_allclose(result["probabilities"], own["probabilities"], atol=1e-5)
    assert result["integrated_gradients"].shape == (MAX_BATCH_SIZE, 8, 8)


def test_the_command_line_explains_a_picture(
    served: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, address = served
    Image.fromarray(run.dataset(folder).test.inputs[0].numpy()).save(tmp_path / "digit.png")
    picture = f"image=@{tmp_path / 'digit.png'}"
    assert main(["explain", "digits_cnn", picture, "--out", str(tmp_path / "why.png"), "--url", address]) == 0
    out, err = capsys.readouterr()
    assert "digits_cnn_explain, version 1" in out
    assert "completeness error" in out
    assert err == ""
    with Image.open(tmp_path / "why.png") as drawn:
        assert drawn.width > 800


def test_the_server_is_attacked_as_any_caller_could(served: tuple[Path, str]) -> None:
    folder, address = served
    settings = AttackSettings(epsilons=(0.3,), attacks=("pgd", "square"), rows=80, steps=5, restarts=1, queries=20)
    of_file = attack(folder, settings=settings, file=folder / "variants" / f"{VARIANT}.onnx")
    through_server = attack(folder, settings=settings, server=address, model=f"digits_cnn_{VARIANT}")
    assert through_server.artefact == {"server": address, "model": f"digits_cnn_{VARIANT}", "versions": "1"}
    assert through_server.accuracy == of_file.accuracy
    assert through_server.worst[0] < 0.3
    assert json.loads((folder / "robustness.json").read_text())["artefact"] == through_server.artefact
