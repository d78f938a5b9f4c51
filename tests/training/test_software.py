"""What a run says about the software it was trained by."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from forwardpass_training import software


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that holds the file; this code believes that it runs from there."""
    if not shutil.which("git"):
        pytest.skip("no git")
    (tmp_path / "software.py").write_text("first")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "software.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(software, "__file__", str(tmp_path / "software.py"))
    return tmp_path


def test_versions_are_those_that_run() -> None:
    assert software.describe()["versions"]["torch"] == torch.__version__


def test_a_checkout_names_its_commit_and_whether_files_differ(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1", "--message", "tags are not asked")
    assert software.commit() == head
    (checkout / "software.py").write_text("second")
    assert software.commit() == f"{head}-dirty"


def test_an_installed_package_does_not_name_the_commit_of_its_user(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / ".venv"
    installed.mkdir()
    (checkout / "software.py").rename(installed / "software.py")
    monkeypatch.setattr(software, "__file__", str(installed / "software.py"))
    assert software.commit() is None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkout
    monkeypatch.setenv("PATH", "")
    assert software.commit() is None
