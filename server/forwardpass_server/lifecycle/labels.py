"""The names of a model's classes, for callers who ask for `classification`.

Looked for in this order: the file that config.pbtxt names for the output (`label_filename`); the list that travels in
the ONNX file (metadata `forwardpass.labels`); `labels.txt` in the model's folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle.repository import LABELS_FILE
from forwardpass_server.lifecycle.verify import open_inside
from forwardpass_server.tensors.signature import Signature

METADATA = "forwardpass.labels"
"""Key of the ONNX file's metadata: a JSON list of texts."""

FILE_BYTES_MAX = 16 << 20


def read(
    model: Path, root: Path, config: pb.ModelConfig | None, metadata: Mapping[str, str], signature: Signature
) -> dict[str, tuple[str, ...]]:
    """The labels of each output that has some; the label of class n stands at n.

    Args:
        model: its folder.
        root: of the repository; a file outside is not read.
        config: what config.pbtxt says.
        metadata: of the ONNX file.
        signature: as served.

    Raises:
        LoadFailed: a file that config.pbtxt names, or `labels.txt`, cannot be read.
    """
    named = {output.name: output.label_filename for output in config.output} if config is not None else {}
    of_model = _in_metadata(metadata)
    if not of_model and (model / LABELS_FILE).exists():
        of_model = _in_file(model / LABELS_FILE, root)
    labels = {
        spec.name: _in_file(model / named[spec.name], root) if named.get(spec.name) else of_model
        for spec in signature.outputs
    }
    return {output: names for output, names in labels.items() if names}


def _in_metadata(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """None where the metadata, which anybody may have written, are not what we write there."""
    try:
        names = json.loads(metadata.get(METADATA, "[]"))
    except ValueError:
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _in_file(path: Path, root: Path) -> tuple[str, ...]:
    """One label a line."""
    try:
        with open_inside(root, path) as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise LoadFailed(f"{path.name} is larger than {FILE_BYTES_MAX} bytes")
        return tuple(content.decode().splitlines())
    except (OSError, ValueError) as exc:
        raise LoadFailed(f"labels in {path.name} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
