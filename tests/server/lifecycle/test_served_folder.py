"""A repository that is itself one model or one version."""

from pathlib import Path
from typing import Any

import pytest

from forwardpass_server.lifecycle.repository import RepositoryUnreadable
from forwardpass_server.lifecycle.served_folder import look


def names(root: Path, name: str | None = "wine") -> dict[str, list[int]]:
    return {model: [*folder.versions] for model, folder in look(root, name).models.items()}


def test_a_root_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    for name in ("wine", None):
        with pytest.raises(RepositoryUnreadable):
            look(tmp_path / "none", name)


def test_a_version_is_served_under_the_given_name(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 4")
    (tmp_path / "labels.txt").write_text("red\nwhite\n")
    found = look(tmp_path, "wine")
    assert found.problems == ()
    folder = found.models["wine"]
    assert (folder.config, folder.labels) == (tmp_path / "config.pbtxt", tmp_path / "labels.txt")
    assert [*folder.versions] == [1]
    assert folder.versions[1].path == folder.versions[1].model_folder == tmp_path
    assert folder.versions[1].model_file() == tmp_path / "model.onnx"


def test_a_model_in_a_folder_of_its_own_with_weights_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    (tmp_path / "model.onnx/model.onnx").write_bytes(b"x")
    assert names(tmp_path) == {"wine": [1]}


def test_versions_are_served_under_the_given_name(tmp_path: Path) -> None:
    for number in (1, 12):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "model.onnx").write_bytes(b"x")
    (tmp_path / "model.onnx").write_bytes(b"left over")
    assert names(tmp_path) == {"wine": [1, 12]}
    assert look(tmp_path, "wine").models["wine"].versions[12].model_folder == tmp_path


def test_a_repository_keeps_its_own_names(repo: Any) -> None:
    repo.published("red")
    repo.published("white")
    assert names(repo.root) == names(repo.root, None) == {"red": [1], "white": [1]}


def test_an_empty_root_becomes_what_is_put_into_it(tmp_path: Path) -> None:
    assert names(tmp_path) == {}
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert names(tmp_path) == {"wine": [1]}


def test_a_published_version_that_is_mounted_alone_is_still_proved(repo: Any) -> None:
    version = repo.published("red")
    found = look(version.path, "wine").models["wine"].versions[1]
    assert found.manifest is not None
    assert found.manifest.model == "red"
    (version.path / "manifest.json").write_text("{")
    broken = look(version.path, "wine")
    assert broken.models["wine"].versions[1].problem
    assert [problem.version for problem in broken.problems] == [1]
