"""Answers as text for people, and as JSON for programs. Pure."""

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from forwardpass.results import InferResult, ModelMetadata, ModelStatus

MOST_ROWS = 10
MOST_CLASSES = 5
BAR_WIDTH = 30


def table(rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def index(models: Sequence[ModelStatus]) -> str:
    """The repository, one version a line."""
    if not models:
        return "the repository is empty"
    head = ("MODEL", "VERSION", "STATE", "REASON")
    return table([head, *((row.name, row.version, row.state, row.reason) for row in models)])


def signature(metadata: ModelMetadata) -> str:
    """One model: what it takes, gives, and carries."""
    rows = [("model", metadata.name), ("platform", metadata.platform), ("versions", ", ".join(metadata.versions))]
    rows += [("input", str(tensor)) for tensor in metadata.inputs]
    rows += [("output", str(tensor)) for tensor in metadata.outputs]
    rows += sorted(metadata.properties.items())
    return table(rows)


def result(answer: InferResult, labels: Sequence[str], bar: str = "█") -> str:
    """Every output; class probabilities as bars, the likeliest first.

    Args:
        answer: of one call.
        labels: class names, used where their number is that of the output's last dimension.
        bar: one cell of a bar.
    """
    blocks = [f"{answer.model_name}, version {answer.model_version}"]
    for name, array in answer.items():
        blocks.append(f"{name} {list(array.shape)}")
        if is_distribution(array):
            blocks.append(_distributions(array, labels, bar))
        else:
            text = np.array2string(array, threshold=60, precision=6, suppress_small=True, formatter={"object": _words})
            blocks.append("\n".join(f"  {line}" for line in text.splitlines()))
    return "\n".join(blocks)


def is_distribution(array: npt.NDArray[Any]) -> bool:
    """Whether every row along the last axis is a probability distribution over two classes or more."""
    if array.dtype.kind != "f" or array.ndim == 0 or array.shape[-1] < 2 or array.size == 0:
        return False
    rows = array.astype(np.float64)
    return bool(np.all(rows >= 0) and np.all(np.abs(rows.sum(axis=-1) - 1) < 1e-2))


def _distributions(array: npt.NDArray[Any], labels: Sequence[str], bar: str) -> str:
    classes = array.shape[-1]
    names = list(labels) if len(labels) == classes else [str(number) for number in range(classes)]
    rows = array.reshape(-1, classes)
    lines = []
    for number, row in enumerate(rows[:MOST_ROWS]):
        if len(rows) > 1:
            lines.append(f"  row {number}")
        best = np.argsort(-row, kind="stable")[:MOST_CLASSES]
        width = max(len(names[int(kind)]) for kind in best)
        lines += [
            f"  {names[int(kind)]:{width}}  {row[kind]:.4f}  {bar * round(float(row[kind]) * BAR_WIDTH)}".rstrip()
            for kind in best
        ]
    if len(rows) > MOST_ROWS:
        lines.append(f"  and {len(rows) - MOST_ROWS} more rows; --json has them all")
    return "\n".join(lines)


def result_as_json(answer: InferResult, labels: Sequence[str]) -> dict[str, Any]:
    """All of an answer in JSON's own types; numbers that JSON lacks are "NaN", "Infinity" and "-Infinity"."""
    return {
        "model": answer.model_name,
        "version": answer.model_version,
        "id": answer.id,
        "outputs": {
            name: {"shape": list(array.shape), "data": _plain(array.tolist())} for name, array in answer.items()
        },
        "labels": list(labels),
        "parameters": {key: _plain(value) for key, value in answer.parameters.items()},
    }


def _words(item: Any) -> str:
    return repr(item.decode(errors="backslashreplace")) if isinstance(item, bytes) else str(item)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value
