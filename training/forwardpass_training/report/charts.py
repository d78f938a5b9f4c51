"""Charts as SVG text. Colours are CSS variables of the page, so one drawing serves light and dark.

All have one size, chosen so that their letters stay readable on a phone and are not huge on a desktop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from forwardpass_training.metrics import Calibration

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40
LINE = 15
FEW = 25
LOG_SPAN = 20.0


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: its name, its CSS class, and its values at x = 1, 2, … or at `xs`."""

    name: str
    look: str
    ys: Sequence[float]
    xs: Sequence[float] | None = None

    def points(self) -> list[tuple[float, float]]:
        return list(zip(self.xs or range(1, len(self.ys) + 1), self.ys, strict=True))


@dataclass
class Frame:
    """Axes over a range of values, and what has been drawn between them so far."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value lies, in pixels of the drawing."""
        along = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        (low, high), value = self.y, y
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(y)
        up = (value - low) / ((high - low) or 1)
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def add(self, text: str) -> None:
        self.parts.append(text)

    def axes(self, x_title: str, *, whole_x: bool = False, whole_y: bool = False) -> None:
        """Grid lines and their values."""
        for value in _log_ticks(*self.y) if self.log else _ticks(*self.y, whole=whole_y):
            _, y = self.at(self.x[0], value)
            self.add(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.add(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
        for value in _ticks(*self.x, whole=whole_x):
            x, _ = self.at(value, self.y[1])
            self.add(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(value)}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.add(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>')

    def line(self, points: Sequence[tuple[float, float]], look: str) -> None:
        places = [self.at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self.add(f'<polyline class="line {look}" points="{path}"/>')
        if len(points) <= FEW:
            self.parts += [f'<circle class="dot {look}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places]

    def svg(self, says: str) -> str:
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(says)}">{"".join(self.parts)}</svg>'


def lines(series: Sequence[Series], *, x_title: str, says: str, y: tuple[float, float] | None = None) -> str:
    """Lines over a common axis, with a legend where there are several; logarithmic where they span decades."""
    xs = [x for each in series for x, _ in each.points()]
    ys = [value for each in series for value in each.ys]
    low, high = y or (min(ys), max(ys))
    log = y is None and low > 0 and high / low > LOG_SPAN
    if not y and not log:
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if low >= 0 > low - room else low - room), high + room
    frame = Frame((min(xs), max(xs)), (low, high), log)
    if frame.x[0] == frame.x[1]:  # one epoch: in the middle
        frame.x = (frame.x[0] - 1, frame.x[0] + 1)
    frame.axes(x_title, whole_x=all(each.xs is None for each in series))
    for each in series:
        frame.line(each.points(), each.look)
    if len(series) > 1:
        right, top = WIDTH - RIGHT, _legend_top(frame, series)
        for number, each in enumerate(reversed(series)):
            frame.add(
                f'<text class="name {each.look}" x="{right}" y="{top + 10 + LINE * number}" text-anchor="end">'
                f"{escape(each.name)}</text>"
            )
    return frame.svg(says)


def _legend_top(frame: Frame, series: Sequence[Series]) -> float:
    """Where the legend begins, in pixels: at the top, or at the bottom where lines that end high leave that free."""
    places = [frame.at(x, y) for each in series for x, y in each.points()]
    beside = [y for x, y in places if x > WIDTH / 2]
    needed = LINE * len(series) + 10
    bottom = HEIGHT - BOTTOM - needed
    return bottom if min(beside) < TOP + needed and max(beside) < bottom else TOP


def reliability(found: Calibration, spread: Sequence[tuple[float, float]], *, says: str) -> str:
    """Accuracy over confidence, bin by bin, against the diagonal; whiskers are the intervals, areas the rows.

    Args:
        found: the bins.
        spread: interval of each bin's accuracy.
        says: the same in words.
    """
    frame = Frame((0, 1), (0, 1))
    frame.axes("confidence")
    frame.add(
        '<line class="ideal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*frame.at(0, 0), *frame.at(1, 1))
    )
    most = max(found.rows.tolist())
    bins = zip(found.rows.tolist(), found.confidence.tolist(), found.accuracy.tolist(), spread, strict=True)
    for rows, confidence, accuracy, (low, high) in bins:
        if rows:
            (x, bottom), (_, top), (_, y) = (frame.at(confidence, value) for value in (low, high, accuracy))
            frame.add(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
            frame.add(
                f'<circle class="dot main" cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 6 * math.sqrt(rows / most):.1f}">'
                f"<title>{rows:,} rows, {confidence:.1%} sure, {accuracy:.1%} right</title></circle>"
            )
    return frame.svg(says)


def scatter(xs: Sequence[float], ys: Sequence[float], *, x_title: str, says: str) -> str:
    """Points against the diagonal on which both are equal."""
    low, high = min(*xs, *ys), max(*xs, *ys)
    room = (high - low) * 0.05 or 1.0
    frame = Frame((low - room, high + room), (low - room, high + room))
    frame.axes(x_title)
    frame.add(
        '<line class="ideal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(
            *frame.at(low, low), *frame.at(high, high)
        )
    )
    for x, y in zip(xs, ys, strict=True):
        frame.add('<circle class="cloud main" cx="{:.1f}" cy="{:.1f}" r="2.6"/>'.format(*frame.at(x, y)))
    return frame.svg(says)


def histogram(edges: Sequence[float], counts: Sequence[int], *, x_title: str, says: str) -> str:
    """Bars between edges; the last edge closes the last bar."""
    frame = Frame((edges[0], edges[-1]), (0, max(*counts, 1) * 1.06))
    frame.axes(x_title, whole_y=True)
    for (left, right), count in zip(pairwise(edges), counts, strict=True):
        (x1, y1), (x2, y2) = frame.at(left, count), frame.at(right, 0)
        frame.add(
            f'<rect class="bar main" x="{x1 + 0.75:.1f}" y="{y1:.1f}" width="{max(x2 - x1 - 1.5, 0.5):.1f}" '
            f'height="{y2 - y1:.1f}"><title>{_short(left)} to {_short(right)}: {count:,}</title></rect>'
        )
    return frame.svg(says)


def bars(names: Sequence[str], values: Sequence[float], *, says: str, unit: str = "", form: str = ",.0f") -> str:
    """Upright bars, one a name, their values above them where there is room."""
    frame = Frame((0, len(names)), (0, (max(values) or 1) * 1.1))
    crowded = len(names) > 12
    every = math.ceil(len(names) / 12)
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        (x1, y1), (x2, y2) = frame.at(number + 0.12, value), frame.at(number + 0.88, 0)
        middle = (x1 + x2) / 2
        frame.add(
            f'<rect class="bar main" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}">'
            f"<title>{escape(name)}: {value:{form}} {unit}</title></rect>"
        )
        if not crowded:
            frame.add(f'<text x="{middle:.1f}" y="{y1 - 4:.1f}" text-anchor="middle">{value:{form}}</text>')
        if number % every == 0:
            frame.add(
                f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(name[:10])}</text>'
            )
    frame.add(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(unit)}</text>')
    return frame.svg(says)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round values within the range, about five."""
    if not high > low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough))
    if whole:
        step = max(1.0, float(round(step)))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    return [factor * 10.0**n for n in decades for factor in factors if low <= factor * 10.0**n <= high]


def _short(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
