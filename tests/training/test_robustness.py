"""Robustness of a real run, through ONNX Runtime: honest figures, written down, and of the artefact asked for."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console

from forwardpass_training import run
from forwardpass_training.attack import Target
from forwardpass_training.attack_settings import AttackSettings
from forwardpass_training.data.download import sha256_of
from forwardpass_training.errors import AttackFailed, BadSetting
from forwardpass_training.export import export
from forwardpass_training.exportable import Exportable
from forwardpass_training.gradient import differentiable
from forwardpass_training.robustness import GRADIENT_FILE, ROBUSTNESS_FILE, Robustness, assail, attack
from forwardpass_training.robustness_table import print_table
from forwardpass_training.verify import measure
from forwardpass_training.victims import OnnxFile

QUICK = AttackSettings(epsilons=(0.3, 0.1), rows=120, steps=5, restarts=1, queries=30)


@pytest.fixture(scope="module")
def found(digits_run: Path) -> Robustness:
    return attack(digits_run, settings=QUICK)


def test_an_ordinary_network_loses_everything_to_small_changes(found: Robustness) -> None:
    assert found.clean > 0.85
    assert found.epsilons == (0.1, 0.3)
    assert found.radii == (1.0, 4.0)  # of 16 levels of grey
    for accuracy in found.accuracy.values():
        assert len(accuracy) == 2
        assert all(worst <= value <= found.clean for worst, value in zip(found.worst, accuracy, strict=True))
    assert found.accuracy["pgd"][1] < 0.2
    assert found.worst[1] <= found.worst[0]


def test_the_interval_holds_the_figure(found: Robustness) -> None:
    for worst, (low, high) in zip(found.worst, found.intervals, strict=True):
        assert 0 <= low <= worst <= high <= 1
        assert high - low > 0.01  # 120 rows do not tell more


def test_what_was_attacked_is_written_down(digits_run: Path, found: Robustness) -> None:
    facts = json.loads((digits_run / ROBUSTNESS_FILE).read_text())
    assert facts["artefact"] == {"file": "model.onnx", "sha256": sha256_of(digits_run / "model.onnx")}
    assert facts["settings"]["epsilons"] == [0.1, 0.3]
    assert facts["worst"] == list(found.worst)
    assert facts["agreement"] == 1.0


def test_clean_accuracy_is_the_file_s_on_those_rows(digits_run: Path, found: Robustness) -> None:
    test = run.dataset(digits_run).test
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:120]
    answers = OnnxFile(digits_run / "model.onnx").run("probabilities", test.inputs[rows].numpy())
    assert found.clean == pytest.approx((answers.argmax(axis=1) == test.targets[rows].numpy()).mean())


def test_the_gradient_graph_is_autograd_s(digits_run: Path, found: Robustness) -> None:
    report = measure(digits_run / GRADIENT_FILE, differentiable(run.exportable(digits_run)))
    assert report.passed, report


def test_a_stranger_s_file_is_attacked_with_a_warning_that_the_gradients_are_a_guess(
    digits_run: Path, network: Callable[[str], Exportable], tmp_path: Path
) -> None:
    stranger = export(network("cnn"), tmp_path / "stranger.onnx")
    found = attack(digits_run, settings=replace(QUICK, attacks=("fgsm",), epsilons=(0.1,)), file=stranger)
    assert found.artefact["file"] == "stranger.onnx"
    assert found.agreement < 0.9
    console = Console(width=150, record=True, file=io.StringIO())
    print_table(found, console)
    assert "its gradients a guess" in console.export_text()


def test_the_table_has_a_line_for_each_epsilon_and_says_what_was_attacked(found: Robustness) -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    print_table(found, console)
    text = console.export_text()
    assert f"{found.worst[1]:.4f}" in text
    assert found.artefact["sha256"] in text
    assert "every attack" in text


def test_other_networks_are_refused(exported: Callable[[str], Any], digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AttackFailed, match=r"must take one input and answer 'probabilities'; it answers logits, h1, c1"
    ):
        attack(digits_run, settings=QUICK, file=exported("lstm").path)
    with pytest.raises(AttackFailed, match="ONNX Runtime refuses"):
        attack(digits_run, settings=QUICK, file=digits_run / "config.json")
    with pytest.raises(BadSetting, match="attack either the file"):
        attack(digits_run, settings=QUICK, file=tmp_path, server="127.0.0.1:1")


def test_a_server_that_is_not_there_is_named(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import forwardpass

    monkeypatch.setattr(forwardpass, "Client", lambda address: forwardpass.client.Client(address, deadline_s=0.5))
    with pytest.raises(AttackFailed, match=r"digits_cnn at 127\.0\.0\.1:1: "):
        attack(digits_run, settings=QUICK, server="127.0.0.1:1")


def test_wrong_rows_are_not_attacked_and_stay_wrong() -> None:
    """The target is right about half the rows, and nothing moves it."""
    right = np.arange(10) % 2
    asked: list[int] = []

    def answer(x: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return np.stack([1 - x[:, 0, 0], x[:, 0, 0]], axis=1).astype(np.float32)

    x = np.zeros((10, 2, 2), np.float32)
    x[:, 0, 0] = 0.9
    target = Target(answer=answer, gradient=lambda given, _: np.zeros_like(given))
    siege = assail(target, x, right, replace(QUICK, epsilons=(0.1,), attacks=("fgsm", "pgd")), high=1.0)
    assert siege.right.sum() == 5
    assert asked[0] == 10
    assert set(asked[1:]) == {5}
    assert siege.worst()[0].sum() == 5


def test_a_target_that_is_right_about_nothing_needs_no_attack() -> None:
    target = Target(answer=lambda x: np.tile([[0.9, 0.1]], (len(x), 1)), gradient=lambda given, _: given)
    siege = assail(target, np.zeros((3, 2, 2), np.uint8), np.ones(3, np.int64), QUICK, high=255)
    assert [rows.sum() for rows in siege.worst()] == [0, 0]


def test_a_row_fooled_in_a_small_ball_is_lost_in_the_larger_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack may fail with more room; the larger ball holds the smaller one nevertheless."""

    def clumsy(target: Target, x: np.ndarray, classes: np.ndarray, ball: Any, _: Any) -> np.ndarray:
        return x + np.uint8(20) if ball.epsilon < 0.2 else x

    monkeypatch.setattr(AttackSettings, "named", lambda self: {"clumsy": clumsy})
    target = Target(
        answer=lambda x: np.where(x[:, :1, 0] > 10, [[0.1, 0.9]], [[0.9, 0.1]]), gradient=lambda given, _: given
    )
    siege = assail(
        target,
        np.zeros((4, 2, 2), np.uint8),
        np.zeros(4, np.int64),
        replace(QUICK, epsilons=(0.1, 0.3)),
        high=255,
    )
    assert [rows.sum() for rows in siege.held["clumsy"]] == [0, 4]
    assert [rows.sum() for rows in siege.worst()] == [0, 0]


def test_the_gradient_graph_runs_without_torch(digits_run: Path, found: Robustness) -> None:
    session = onnxruntime.InferenceSession(digits_run / GRADIENT_FILE, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["image", "direction"]
    assert [value.name for value in session.get_outputs()] == ["scores", "gradient"]
