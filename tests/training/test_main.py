"""The command line: what it prints, and how it says that something is wrong."""

from pathlib import Path

import pytest

from forwardpass_training.__main__ import FAILED, MISSED_GATE, MISUSED, OK, main
from forwardpass_training.progress import is_told
from forwardpass_training.recipes import RECIPES

Captured = pytest.CaptureFixture[str]
TINY = ["--epochs", "2", "--threads", "1", "--device", "cpu", "--data.train-rows", "100"]


def test_list_names_every_recipe_and_its_bound(capsys: Captured) -> None:
    assert main(["list"]) == OK
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES)
    assert "nats_per_character <= 1.53" in said


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == OK
    assert "publish RUN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["publsh"], "no command 'publsh'; did you mean publish?"),
        (["?"], "there are list, run"),
        (["run"], "run needs the name of a recipe first"),
        (["list", "all"], "list takes no arguments, got all"),
    ],
)
def test_wrong_usage_exits_2_and_says_the_right_one(arguments: list[str], words: str, capsys: Captured) -> None:
    assert main(arguments) == MISUSED
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "mnist"], "no recipe 'mnist'; did you mean mnist_cnn"),
        (["run", "zzz"], "no recipe 'zzz'; there are linear_regression"),
        (["run", "linear_regression", "--epochs", "0"], "epochs is 0"),
        (["run", "linear_regression", "--threads", "0"], "threads is 0"),
        (["evaluate", "nothing"], "'nothing' is not a run folder"),
        (["export", "nothing"], "'nothing' is not a run folder"),
        (["verify", "nothing"], "'nothing' is not a run folder"),
        (["publish", "nothing", "--repository", "models"], "'nothing' is not a run folder"),
        (["resume", "."], "is not a run folder: it has no config.json"),
    ],
)
def test_an_error_is_one_message_and_exit_1(
    arguments: list[str], words: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == FAILED
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_an_unknown_flag_exits_2_with_the_nearest(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "linear_regression", "--epochz", "3"])
    assert caught.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_a_diverging_run_exits_1_with_the_rate(capsys: Captured, tmp_path: Path) -> None:
    arguments = ["run", "linear_regression", "--learning-rate", "1e9", "--quiet", "--runs-dir", str(tmp_path)]
    assert main([*arguments, "--threads", "1"]) == FAILED
    assert "learning rate 1e+09" in capsys.readouterr().err


def test_a_run_from_training_to_evaluation(capsys: Captured, tmp_path: Path) -> None:
    runs_dir = ["--runs-dir", str(tmp_path)]
    assert main(["run", "linear_regression", "--threads", "1", "--device", "cpu", *runs_dir]) == OK
    captured = capsys.readouterr()
    assert "reached: distance_to_least_squares <= 0.01" in captured.out
    assert f"run folder  {tmp_path}" in captured.out
    assert "epoch 200/200" in captured.err
    assert main(["evaluate", "linear_regression", "--threads", "1", *runs_dir]) == OK
    assert capsys.readouterr().out.splitlines() == captured.out.splitlines()[:-1]


def test_a_missed_bound_exits_3_and_the_run_is_kept(capsys: Captured, tmp_path: Path) -> None:
    assert main(["run", "mlp_classifier", *TINY, "--quiet", "--runs-dir", str(tmp_path)]) == MISSED_GATE
    captured = capsys.readouterr()
    assert "MISSED: accuracy >= 0.97" in captured.out
    assert captured.err == ""
    assert main(["evaluate", "mlp_classifier", "--threads", "1", "--runs-dir", str(tmp_path)]) == MISSED_GATE
    (path,) = tmp_path.iterdir()
    assert main(["resume", str(path), "--epochs", "3", "--threads", "1"]) == MISSED_GATE
    assert "epoch 3/3" in capsys.readouterr().err


def test_lines_are_told_evenly_and_the_last_always() -> None:
    assert [epoch for epoch in range(1, 6) if is_told(epoch, 5)] == [1, 2, 3, 4, 5]
    told = [epoch for epoch in range(1, 207) if is_told(epoch, 206)]
    assert told[-1] == 206
    assert len(told) <= 25
