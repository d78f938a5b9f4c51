"""A model server calls nobody. ONNX Runtime would, and keeps what it is about to send in the home folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = "import forwardpass_server.runtime.providers, onnxruntime; onnxruntime.get_available_providers()"
# What CI services set: ONNX Runtime takes such machines for tests and is silent there in any case.
CI = {"CI", "BUILD_ID", "BUILD_NUMBER", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL", "GITLAB_CI", "CIRCLECI"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A person's environment, with a home folder of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in CI and not name.startswith("ORT_")}
    return {**kept, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_nothing_is_kept_in_the_home_folder(environment: dict[str, str], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LOAD], env=environment, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []


def test_it_is_off_before_the_library_is_loaded_and_may_be_turned_on(environment: dict[str, str]) -> None:
    # Before, since the library reads the variable once, when it is loaded.
    show = (
        "import os, sys, forwardpass_server.runtime; "
        "print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    )
    for given, seen in (({}, "1 False"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0 False")):
        command = [sys.executable, "-c", show]
        shown = subprocess.run(command, env=environment | given, check=True, timeout=60, capture_output=True, text=True)
        assert shown.stdout.strip() == seen
