"""A figure of the bench, and how it is shown: two lines each, what was measured and what was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measurement, and where issue 4 sets one, its bound.

    `judged` is what the bound is about: the ratio where there is one, else the value.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
    of: str = ""
    """What the ratio divides by, measured in the same run."""
    at_least: float | None = None
    at_most: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> float:
        return self.value if self.ratio is None else self.ratio

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        if self.at_least is not None:
            return self.judged >= self.at_least
        if self.at_most is not None:
            return self.judged <= self.at_most
        return None

    def to_json(self) -> dict[str, Any]:
        """Everything, with the verdict; what is empty is left out."""
        given = {name: value for name, value in asdict(self).items() if value not in (None, "", {})}
        return {name: _rounded(value) for name, value in given.items()} | (
            {} if self.met is None else {"met": self.met}
        )

    def __str__(self) -> str:
        value = f"{_number(self.value)} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:8.3f} of {self.of}"
        more = "  ".join(f"{name} {_number(number)}" for name, number in self.more.items())
        first = f"{self.name:<42}{value:>20}{ratio}"
        second = " · ".join(text for text in (self._asked(), more) if text)
        return f"{first}\n    {second}" if second else first

    def _asked(self) -> str:
        if self.met is None:
            return ""
        sign, bound = ("<=", self.at_most) if self.at_least is None else (">=", self.at_least)
        return f"{'met' if self.met else 'MISSED'}: asked for {sign} {bound:g}"


def table(figures: Sequence[Figure]) -> str:
    """All of them, and at the end how many bounds are met."""
    judged = [figure.met for figure in figures if figure.met is not None]
    return "\n".join([*map(str, figures), f"{sum(judged)} of {len(judged)} bounds met"])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items()}
    return value
