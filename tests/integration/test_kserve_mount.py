"""What KServe mounts is served with the flags of our runtime: one version, one model, or a whole repository."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

RUNTIME = Path(__file__).resolve().parents[2] / "k8s" / "kserve" / "clusterservingruntime.yaml"
ROWS = np.full((2, 3), 5.0, np.float32)


@pytest.mark.parametrize(
    ("mounted", "name"),
    [("scale/1", "wine"), ("scale", "wine"), (".", "scale")],
    ids=["version", "model", "repository"],
)
def test_a_mounted_folder_is_served(serve: Any, publish: Any, root: Path, mounted: str, name: str) -> None:
    publish("scale", 2.0)
    (container,) = yaml.safe_load(RUNTIME.read_text())["spec"]["containers"]
    flags = [
        flag.replace("/mnt/models", str(root / mounted)).replace("{{.Name}}", "wine") for flag in container["args"]
    ]
    assert f"--model-repository={root / mounted}" in flags
    with serve(*flags, "--host=127.0.0.1", "--require-manifest") as server:
        answer, version = server.client().infer(name, ROWS)
    np.testing.assert_array_equal(answer, 2 * ROWS)
    assert version == "1"
