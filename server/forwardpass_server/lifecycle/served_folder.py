"""A repository that holds one model, because it is one: what KServe mounts at /mnt/models.

    <root>/model.onnx                    one version, number 1, of the model `name`
    <root>/<version>/model.onnx          the versions of the model `name`
    <root>/<model>/<version>/model.onnx  an ordinary repository; it has its own names

The name comes from outside (`--model-name`), as the folder's own says nothing. What the root is is seen anew at each
look, so a folder that is still empty at the start becomes what is put into it.
"""

import dataclasses
import os
from pathlib import Path

from forwardpass_server.lifecycle.repository import (
    MODEL_FILE,
    Problem,
    RepositoryUnreadable,
    Scan,
    read_model,
    read_version,
    scan,
    version_number,
)

ONLY_VERSION = 1


def look(root: Path, name: str | None) -> Scan:
    """Look at the whole repository, as `repository.scan`, or at the one model that it is.

    Args:
        root: of the repository.
        name: what to call the model, if the root is one; None: it is a repository.

    Raises:
        RepositoryUnreadable: the root cannot be listed.
    """
    if name is None:
        return scan(root)
    try:
        entries = os.listdir(root)
        if any(version_number(entry) for entry in entries):
            return _model(root, name)
        if MODEL_FILE in entries:
            return _version(root, name)
    except OSError as exc:
        raise RepositoryUnreadable(f"model repository {root} cannot be read: {exc.strerror or exc}") from exc
    return scan(root)


def _model(root: Path, name: str) -> Scan:
    problems: list[Problem] = []
    return Scan(models={name: read_model(name, root, problems)}, problems=tuple(problems))


def _version(root: Path, name: str) -> Scan:
    """The root as model and version at once; its config.pbtxt and labels lie beside model.onnx."""
    version = dataclasses.replace(read_version(name, ONLY_VERSION, root), home=root)
    model = dataclasses.replace(read_model(name, root, []), versions={ONLY_VERSION: version})
    problem = [Problem(path=root, model=name, version=ONLY_VERSION, reason=version.problem)] if version.problem else []
    return Scan(models={name: model}, problems=tuple(problem))
