"""What a run costs by its size: measured at warm-up (`CostCurve`), corrected by every run since (`ServedCost`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

USEFUL_SHARE = 0.9
"""A larger batch must bring the rows a second above this share of the best size's, or it only makes callers wait.

ResNet-18 on one core gains 9 % from batches of 8 (27.4 and 29.8 images a second): its requests run one by one. A small
CNN gains 150 % by 32 rows, and 7 % from 32 to 64: it runs 32."""

LEARNING_RATE = 0.2
"""Share of its deviation by which one run corrects the estimate for its size: five runs see most of a change."""
OUTLIER_RATIO = 2.0
"""A run counts as at most this many times the estimate, and as at least its inverse: one stall teaches little."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The measured time of one batch size.

    Attributes:
        rows: rows of the run.
        p50_s, p99_s: median and 99th percentile of its duration, in seconds.
    """

    rows: int
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Measured batch sizes, ascending by rows; empty when nothing could be measured."""

    points: tuple[Cost, ...] = ()

    def __post_init__(self) -> None:
        sizes = [point.rows for point in self.points]
        assert sizes == sorted(set(sizes)), sizes

    def useful_rows(self, max_rows: int) -> int:
        """The smallest batch that is worth its size: `USEFUL_SHARE` of the rows a second of the best one.

        Args:
            max_rows: the largest batch allowed, and the answer where nothing was measured.
        """
        sizes = [point for point in self.points if 0 < point.rows <= max_rows]
        if not sizes:
            return max_rows
        best = max(point.rows / point.p50_s for point in sizes)
        return next(point.rows for point in sizes if point.rows / point.p50_s >= USEFUL_SHARE * best)


class ServedCost:
    """How long an instance is occupied by a run of so many rows: the curve at first, then what was observed.

    Occupied means from taking a batch to having answered it, so that stacking, encoding and a busy machine are in it. A
    size without a figure lies on the straight line between its neighbours. Not for several threads at once.

    Args:
        curve: from warm-up; when empty, nothing is known until the first run.
    """

    def __init__(self, curve: CostCurve) -> None:
        self._rows = [point.rows for point in curve.points]
        self._seconds = [point.p50_s for point in curve.points]

    @property
    def known(self) -> bool:
        """Whether anything was measured yet; `seconds` is 0 for every size until then."""
        return bool(self._rows)

    def seconds(self, rows: int) -> float:
        """The expected occupation by a run of `rows`, in seconds: above the largest size known in proportion to it,
        below the smallest one as long as it."""
        at = bisect_left(self._rows, rows)
        if at < len(self._rows):
            right_s = self._seconds[at]
            if at == 0 or self._rows[at] == rows:
                return right_s
            return _between(self._rows, self._seconds, at, rows)
        return self._seconds[-1] * rows / max(self._rows[-1], 1) if self._rows else 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """A run of `rows` occupied its instance for so long: correct the sizes on both sides of it, and only those."""
        at = bisect_left(self._rows, rows)
        if at == len(self._rows):  # larger than any size known, or the very first
            self._rows.append(rows)
            self._seconds.append(seconds)
            return
        expected_s = self.seconds(rows) or seconds or 1e-9
        ratio = min(max(seconds / expected_s, 1 / OUTLIER_RATIO), OUTLIER_RATIO)
        correction = 1 + LEARNING_RATE * (ratio - 1)
        self._seconds[at] *= correction
        if at and self._rows[at] != rows:
            self._seconds[at - 1] *= correction


def _between(rows: Sequence[int], seconds: Sequence[float], at: int, wanted: int) -> float:
    """The time of a size between the known ones at `at - 1` and `at`."""
    share = (wanted - rows[at - 1]) / (rows[at] - rows[at - 1])
    return seconds[at - 1] + (seconds[at] - seconds[at - 1]) * share
