"""Charts: the legend stands where no line ends."""

import re

import pytest

from forwardpass_training.report.charts import BOTTOM, HEIGHT, TOP, Series, lines


def legend(*ends: float) -> list[float]:
    """Where the names of lines stand that fall from 1 to `ends`, in pixels from the top."""
    series = [Series(name=f"to {end}", look="main", ys=(1.0, end), xs=(0.0, 0.3)) for end in ends]
    drawn = lines(series, x_title="epsilon", says="", y=(0.0, 1.0))
    return [float(y) for y in re.findall(r'<text class="name main" x="[\d.]+" y="([\d.]+)"', drawn)]


def test_lines_that_fall_leave_the_top_to_the_legend() -> None:
    assert all(TOP < y < HEIGHT / 2 for y in legend(0.0, 0.1))


def test_lines_that_stay_high_leave_the_bottom() -> None:
    ys = legend(0.9, 0.92, 0.96)
    assert all(HEIGHT / 2 < y < HEIGHT - BOTTOM for y in ys)
    assert ys == sorted(ys)
    assert len(set(ys)) == 3


def test_where_lines_are_everywhere_the_legend_stays_above() -> None:
    assert legend(0.95, 0.02)[0] == pytest.approx(TOP + 10)


def test_one_line_needs_no_legend() -> None:
    assert legend(0.5) == []
