"""Run folders: made once, found again, and refused with a way out."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from forwardpass_training.errors import RunFolderError
from forwardpass_training.folder import RunFolder, find_run
from forwardpass_training.recipes import linear_regression

NOW = datetime(2026, 11, 22, 3, 4, 5, tzinfo=UTC)


def test_a_folder_is_named_by_recipe_and_time_and_never_shared(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path / "runs", linear_regression(), NOW) for _ in range(3)]
    names = [folder.path.name for folder in folders]
    stem = "linear_regression-20261122T030405Z"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]
    assert RunFolder.open(folders[2].path).config() == linear_regression()


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="--runs-dir"):
        RunFolder.create(tmp_path / "file" / "runs", linear_regression(), NOW)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="--runs-dir"):
        RunFolder.create(tmp_path / "runs", linear_regression(), NOW)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunFolderError, match="is not a run folder"):
            RunFolder.open(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "RunConfig"}'])
def test_a_damaged_config_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    folder = RunFolder.create(tmp_path, linear_regression(), NOW)
    (folder.path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"config\.json"):
        folder.config()


def test_a_run_that_did_not_finish_says_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="resume"):
        RunFolder.create(tmp_path, linear_regression(), NOW).read_json("metrics.json")


def test_a_recipes_name_means_its_newest_run(tmp_path: Path) -> None:
    old, new, unfinished = (RunFolder.create(tmp_path, linear_regression(), NOW) for _ in range(3))
    RunFolder.create(tmp_path, replace(linear_regression(), name="linear"), NOW).write_json("metrics.json", {})
    for age_s, folder in enumerate((unfinished, new, old)):
        os.utime(folder.path / "config.json", (1_000_000 - age_s, 1_000_000 - age_s))
    for folder in (old, new):
        folder.write_json("metrics.json", {})
    assert find_run("linear_regression", tmp_path) == new.path
    assert find_run("linear_regression", tmp_path, finished=False) == unfinished.path
    assert find_run(str(old.path), tmp_path) == old.path
    with pytest.raises(RunFolderError, match="no finished run"):
        find_run("mnist_cnn", tmp_path)
    with pytest.raises(RunFolderError, match="no finished run"):
        find_run("*", tmp_path)
