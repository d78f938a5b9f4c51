"""A CSV file of numbers as a data set. A row is held out by what it says, and stays so when rows are added."""

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split, digest
from forwardpass_training.data.download import sha256_of
from forwardpass_training.data.store import DataStore
from forwardpass_training.errors import BadSetting, DataError


@dataclass(frozen=True, kw_only=True)
class TableData(DataConfig):
    """A CSV file with a line of names. Every column but the target is a number and goes in, in the file's order."""

    path: Path
    """The file, UTF-8."""
    target: str
    """Name of the column to predict."""
    target_is: Literal["class", "binary", "number"] = "class"
    """What the target is: one of some words, one of two, or a number. Classes are in the order of the alphabet."""
    test_share: float = 0.2
    """Share of the rows held out."""

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise BadSetting(f"data.test_share is {self.test_share}; it must lie between 0 and 1")

    def load(self, store: DataStore) -> Dataset:  # noqa: ARG002  the file is the user's
        """Inputs [rows, columns] float32; targets [rows] int64, or [rows, 1] float32 where binary or a number.

        Raises:
            DataError: the file is not there, or a line of it cannot be used; the text says which.
        """
        rows, answers = self._read()
        labels: tuple[str, ...] = () if self.target_is == "number" else tuple(sorted(set(answers)))
        if self.target_is == "binary" and len(labels) != 2:
            raise DataError(f"{self.path}: the column {self.target!r} has {len(labels)} values; binary takes two")
        inputs, targets = torch.tensor(rows, dtype=torch.float32), self._targets(answers, labels)
        lines = [f"{row}{answer}".encode() for row, answer in zip(rows, answers, strict=True)]
        held_out = torch.tensor([is_held_out(line, self.test_share) for line in lines])
        train, test = Split(inputs[~held_out], targets[~held_out]), Split(inputs[held_out], targets[held_out])
        provenance = Provenance(
            f"CSV file, {inputs.shape[1]} columns and the target {self.target!r}",
            {"train": len(train), "test": len(test)},
            digest(train, test),
            {self.path.name: sha256_of(self.path)},
        )
        return Dataset(train, test, provenance, labels=labels)

    def _targets(self, answers: Sequence[str], labels: Sequence[str]) -> Tensor:
        if self.target_is == "number":
            values = [_number(answer, f"{self.path}: target") for answer in answers]
            return torch.tensor(values, dtype=torch.float32).unsqueeze(1)
        classes = torch.tensor([labels.index(answer) for answer in answers])
        return classes.float().unsqueeze(1) if self.target_is == "binary" else classes

    def _read(self) -> tuple[list[list[float]], list[str]]:
        """The numbers and the target of every line."""
        rows, answers = [], []
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                lines = csv.reader(file)
                names = [name.strip() for name in next(lines, [])]
                if self.target not in names or len(names) < 2:
                    raise DataError(
                        f"{self.path} has the columns {', '.join(names) or '(none)'}; --data.target names one of "
                        "several, and the others go in"
                    )
                column = names.index(self.target)
                for values in filter(None, lines):
                    place = f"{self.path}, line {lines.line_num}"
                    if len(values) != len(names):
                        raise DataError(f"{place} has {len(values)} values; the first line names {len(names)}")
                    answers.append(values.pop(column).strip())
                    rows.append([_number(value, place) for value in values])
        except (OSError, UnicodeDecodeError, csv.Error) as exc:
            raise DataError(f"cannot read {self.path}: {exc}") from exc
        return rows, answers


def is_held_out(content: bytes, share: float) -> bool:
    """Whether a row or image belongs to the held-out split: a coin that its own content tosses."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) < share * 2**64


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError as exc:
        raise DataError(f"{place}: {text!r} is not a number") from exc
    if not math.isfinite(value):
        raise DataError(f"{place}: {text!r} is not a finite number; leave the line out or fill it in")
    return value
