"""The manifests, as `kubectl kustomize` renders them: every overlay, and every component on the base alone."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

SOURCE = Path(__file__).resolve().parents[2]
K8S = SOURCE / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
OTHERS = ["base", "kserve", "namespace", "training"]

Objects = list[dict[str, Any]]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Objects]:
    """Objects by where they come from: `overlays/dev`, `components/tls`, `base`, …"""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here; Debian: the package kubectl of Kubernetes' or Google Cloud's repository")
    everything = {name: _render(K8S / name) for name in OTHERS}
    everything |= {f"overlays/{name}": _render(K8S / "overlays" / name) for name in OVERLAYS}
    for name in COMPONENTS:
        folder = tmp_path_factory.mktemp(name)
        relative = os.path.relpath(K8S.resolve(), folder.resolve())
        kustomization = {"resources": [f"{relative}/base"], "components": [f"{relative}/components/{name}"]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        everything[f"components/{name}"] = _render(folder)
    return everything


def _render(folder: Path) -> Objects:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, f"{folder.name}: {done.stderr}"
    return [document for document in yaml.safe_load_all(done.stdout) if document]
