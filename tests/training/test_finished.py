"""The commands on finished runs, as a person types them."""

from dataclasses import replace
from pathlib import Path

import pytest

from forwardpass_server.lifecycle.repository import read_version, scan
from forwardpass_training import run
from forwardpass_training.__main__ import FAILED, MISSED_GATE, OK, main
from forwardpass_training.attack_settings import AttackSettings
from forwardpass_training.errors import ParityFailed, PublishFailed
from forwardpass_training.explain import MAX_BATCH_SIZE, Explanation, expectation, explain, publish_explanation
from forwardpass_training.gradient import scored
from forwardpass_training.robustness import Robustness, attack
from forwardpass_training.verify import measure

QUICK = AttackSettings(attacks=("fgsm",), epsilons=(0.3,), rows=60)
QUICK_ATTACK = ["--attacks", "fgsm", "--epsilons", "0.3", "--rows", "60"]
STEPS = 8


@pytest.fixture(scope="module")
def explanation(digits_run: Path) -> Explanation:
    """Made once: tracing it costs seconds, whatever the size of the network."""
    return explain(digits_run, steps=STEPS)


@pytest.fixture(scope="module")
def robustness(digits_run: Path) -> Robustness:
    """Likewise."""
    return attack(digits_run, settings=QUICK)


def test_optimise_prints_the_table_and_publishes_what_passes(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publishing = ["--publish", "int8_weights", "--repository", str(tmp_path)]
    assert main(["optimise", str(digits_run), "--variants", "int8_weights", *publishing]) == OK
    out, err = capsys.readouterr()
    assert "digits_cnn: variants" in out
    assert "│int8_weights" in out
    assert f"digits_cnn_int8_weights version 1: {tmp_path}" in out
    assert "int8_weights: weights in int8, arithmetic in float32" in err
    assert list(scan(tmp_path).models) == ["digits_cnn_int8_weights"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--publish", "fp16"], "publishing takes both --publish VARIANT and --repository DIR"),
        (["--repository", "models"], "publishing takes both"),
        (
            ["--variants", "fp16", "--publish", "folded", "--repository", "m"],
            "--publish folded is not among --variants",
        ),
        (["--variants", "int3"], "no variant int3; there are fp32"),
    ],
)
def test_optimise_refuses_what_cannot_be_before_it_works(
    digits_run: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["optimise", str(digits_run), *flags]) == FAILED
    assert said in capsys.readouterr().err


def test_attack_prints_the_curve_and_holds_it_against_the_bound(
    digits_run: Path, robustness: Robustness, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(run_folder: Path, *, settings: AttackSettings, **_: object) -> Robustness:
        assert (run_folder, settings) == (digits_run, QUICK)
        return robustness

    monkeypatch.setattr("forwardpass_training.robustness.attack", found)
    assert main(["attack", str(digits_run), *QUICK_ATTACK, "--at-least", "0.9"]) == MISSED_GATE
    out = capsys.readouterr().out
    assert "digits_cnn: accuracy under attack" in out
    assert "MISSED: 0.9 at epsilon 0.3" in out
    assert (digits_run / "robustness.png").read_bytes().startswith(b"\x89PNG")


def test_a_bound_that_is_met_ends_well(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", str(digits_run), *QUICK_ATTACK, "--at-least", "0", "--quiet"]) == OK
    captured = capsys.readouterr()
    assert "reached: 0 at epsilon 0.3" in captured.out
    assert captured.err == ""


def test_explain_says_how_complete_it_is_and_publishes_bounded_and_proved(
    digits_run: Path,
    explanation: Explanation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(run_folder: Path, *, steps: int) -> Explanation:
        assert (run_folder, steps) == (digits_run, STEPS)
        return explanation

    monkeypatch.setattr("forwardpass_training.explain.explain", made)
    assert main(["explain", str(digits_run), "--steps", str(STEPS), "--repository", str(tmp_path)]) == OK
    out = capsys.readouterr().out
    assert "completeness error of 64 held-out rows at 8 steps" in out
    assert f"digits_cnn_explain version 1: {tmp_path}" in out
    config = (tmp_path / "digits_cnn_explain" / "config.pbtxt").read_text()
    assert f"max_batch_size: {MAX_BATCH_SIZE}\n" in config
    manifest = read_version("digits_cnn_explain", 1, tmp_path / "digits_cnn_explain" / "1").manifest
    assert manifest is not None
    assert manifest.provenance["explains"] == "digits_cnn"
    assert manifest.metrics["completeness_error_median"] > 0
    for golden in manifest.golden:
        assert golden.tolerance("probabilities").atol == 1e-4
        assert golden.tolerance("saliency").atol < golden.tolerance("integrated_gradients").atol < 1


def test_an_operator_s_configuration_is_kept(digits_run: Path, explanation: Explanation, tmp_path: Path) -> None:
    config = tmp_path / "mine_explain" / "config.pbtxt"
    config.parent.mkdir()
    config.write_text("max_batch_size: 16\n")
    assert publish_explanation(digits_run, explanation, tmp_path, model="mine").model == "mine_explain"
    assert config.read_text() == "max_batch_size: 16\n"


def test_an_explanation_that_is_not_the_network_s_is_not_published(
    digits_run: Path, explanation: Explanation, tmp_path: Path
) -> None:
    other = run.exportable(digits_run)
    network, _ = scored(other)
    for parameter in network.parameters():
        parameter.data.mul_(1.01)
    report = measure(explanation.file, expectation(other, steps=STEPS))
    with pytest.raises(ParityFailed):
        publish_explanation(digits_run, replace(explanation, parity=report), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_model_may_have_leaves_no_folder(
    digits_run: Path, explanation: Explanation, tmp_path: Path
) -> None:
    with pytest.raises(PublishFailed, match="no model name"):
        publish_explanation(digits_run, explanation, tmp_path, model="../mine")
    assert list(tmp_path.iterdir()) == []
