"""A CSV file as data: what it becomes, what stays held out, and which line is wrong."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from forwardpass_training.data import Dataset, DataStore, TableData
from forwardpass_training.errors import BadSetting, DataError

STORE = DataStore(Path("never"))


def write(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(count: int, first: int = 0) -> list[str]:
    return [
        f"{number},{'odd' if number % 2 else 'even'},{number * number / 4}" for number in range(first, first + count)
    ]


def loaded(path: Path, **fields: object) -> Dataset:
    return TableData(path=path, target="parity", **fields).load(STORE)  # type: ignore[arg-type]


def held_out(dataset: Dataset) -> set[float]:
    return {float(row[0]) for row in dataset.test.inputs}


def test_columns_keep_their_order_and_classes_that_of_the_alphabet(tmp_path: Path) -> None:
    dataset = loaded(write(tmp_path / "rows.csv", ["n, parity ,quarter", *rows(200)]))
    assert dataset.labels == ("even", "odd")
    everything = torch.cat([dataset.train.inputs, dataset.test.inputs])
    targets = torch.cat([dataset.train.targets, dataset.test.targets])
    assert everything.shape == (200, 2)
    torch.testing.assert_close(everything[:, 1], everything[:, 0].square() / 4)
    assert torch.equal(targets, everything[:, 0].long() % 2)
    assert len(dataset.test) == pytest.approx(40, abs=20)
    assert dataset.provenance.counts == {"train": len(dataset.train), "test": len(dataset.test)}
    assert list(dataset.provenance.files) == ["rows.csv"]


def test_a_row_stays_where_it_is_when_others_come_and_go(tmp_path: Path) -> None:
    few = loaded(write(tmp_path / "few.csv", ["n,parity,quarter", *rows(100)]))
    more = loaded(write(tmp_path / "more.csv", ["n,parity,quarter", *reversed(rows(300))]))
    assert held_out(few) == {number for number in held_out(more) if number < 100}


def test_targets_have_the_form_of_their_task(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", ["n,parity,quarter", *rows(50)])
    binary = loaded(path, target_is="binary").train.targets
    assert (binary.dtype, binary.shape[1]) == (torch.float32, 1)
    assert set(binary.flatten().tolist()) == {0.0, 1.0}
    number = TableData(
        path=write(tmp_path / "numbers.csv", ["a,y", *(f"{n},{n / 3}" for n in range(50))]),
        target="y",
        target_is="number",
    )
    dataset = number.load(STORE)
    torch.testing.assert_close(dataset.train.targets, dataset.train.inputs / 3)
    assert dataset.labels == ()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], r"has the columns \(none\)"),
        (["a,b", "1,2"], "has the columns a, b; --data.target"),
        (["parity", "odd"], "has the columns parity; --data.target"),
        (["n,parity", "1,odd,3"], "line 2 has 3 values; the first line names 2"),
        (["n,parity", "1,odd", "x,even"], "line 3: 'x' is not a number"),
        (["n,parity", "1,odd", ",even"], "line 3: '' is not a number"),
        (["n,parity", "nan,odd"], "line 2: 'nan' is not a finite number"),
        (["n,parity", "1e999,odd"], "line 2: '1e999' is not a finite number"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        loaded(write(tmp_path / "rows.csv", lines))


def test_other_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.csv"):
        loaded(tmp_path / "gone.csv")
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*image\.csv"):
        loaded(tmp_path / "image.csv")
    three = write(tmp_path / "three.csv", ["n,parity", "1,odd", "2,even", "0,none"])
    with pytest.raises(DataError, match="has 3 values; binary takes two"):
        loaded(three, target_is="binary")
    with pytest.raises(BadSetting, match="test_share is 1"):
        loaded(three, test_share=1.0)
