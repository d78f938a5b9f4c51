"""The table of case, expected and got; and how much was fuzzed."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

EXAMPLE_CHARACTERS_MAX = 100


class Case(NamedTuple):
    """A row of the conformance list."""

    number: str
    what: str
    expected: str

    @property
    def place(self) -> tuple[int, str, str]:
        """Where it stands in the list: by number, then what has none."""
        digits = re.match(r"\d+", self.number)
        return (int(digits[0]) if digits else 1 << 30, self.number, self.what)


class Row(NamedTuple):
    """What happened: outcomes seen by the tests of a case, and how those tests ended."""

    got: Counter[str]
    results: Counter[str]


class Fuzzing:
    """How many cases the fuzzer has run, for how long, and how many of its targets found something."""

    def __init__(self) -> None:
        self.cases = 0
        self._seconds = 0.0
        self._findings = 0

    def add(self, codes: Counter[str], seconds: float, *, failed: bool) -> None:
        """Count the cases of one target, by the code they ended with."""
        self.cases += codes.total()
        self._seconds += seconds
        self._findings += failed

    def __str__(self) -> str:
        return f"fuzzed: {self.cases} cases in {self._seconds / 60:.1f} minutes, {self._findings} findings"


def table(rows: Mapping[Case, Row]) -> str:
    """One line a case: how often each code came, and one message as an example."""
    lines = [("case", "what", "expected", "got", "tests")]
    for case, row in sorted(rows.items(), key=lambda item: item[0].place):
        codes: Counter[str] = Counter()
        for text, times in row.got.items():
            codes[text.partition(":")[0]] += times
        got = ", ".join(f"{code} ×{times}" for code, times in codes.most_common())
        example = next((text.partition(": ")[2] for text, _ in row.got.most_common() if ": " in text), "")
        if example:
            # repr keeps whatever a caller smuggled into a message from drawing on the terminal.
            got += f" {example!r:.{EXAMPLE_CHARACTERS_MAX}}"
        tests = ", ".join(f"{times} {result}" for result, times in sorted(row.results.items()))
        lines.append((case.number, case.what, case.expected, got or "-", tests))
    widths = [min(60, max(len(line[column]) for line in lines)) for column in range(4)]
    return "\n".join(
        " | ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]) for line in lines
    )
