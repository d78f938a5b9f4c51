"""What a run costs by its size: seconds for so many rows, from what warm-up measured."""

from bisect import bisect_left
from dataclasses import dataclass

UNMEASURED_RUN_S = 0.01
"""What a run is taken to cost where nothing was measured, in seconds."""


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

    def seconds(self, rows: int) -> float:
        """The median duration of a run of `rows`, in seconds: between two measured sizes on the straight line between
        them, above the last one in proportion to it, below the first one as long as the first."""
        if not self.points:
            return UNMEASURED_RUN_S
        at = bisect_left(self.points, rows, key=lambda point: point.rows)
        if at == len(self.points):
            last = self.points[-1]
            return last.p50_s * rows / max(last.rows, 1)
        right = self.points[at]
        if at == 0 or right.rows == rows:
            return right.p50_s
        left = self.points[at - 1]
        share = (rows - left.rows) / (right.rows - left.rows)
        return left.p50_s + (right.p50_s - left.p50_s) * share

    def clear_s(self, rows: int, max_rows: int) -> float:
        """How long one instance needs to run `rows` waiting rows in batches of at most `max_rows`, in seconds."""
        full, rest = divmod(rows, max(max_rows, 1))
        return full * self.seconds(max(max_rows, 1)) + (self.seconds(rest) if rest else 0.0)
