"""How far two arrays are apart, and whether that is too far."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Between an array and what was expected of it.

    Args:
        max_abs_error: max |got − expected|; None when the two cannot be subtracted (shapes, NaN).
        max_rel_error: max |got − expected| / |expected| over |expected| > atol: nearer to 0 only the other one speaks.
        tolerance_used: the largest share of its tolerance that an element uses, above 1 failing; None without one.
        failure: why it is too large, with values; None when it is not.
    """

    max_abs_error: float | None = None
    max_rel_error: float | None = None
    tolerance_used: float | None = None
    failure: str | None = None


def difference(got: Array, expected: Array, *, atol: float, rtol: float) -> Difference:
    """Compare element by element: `|got − expected| <= atol + rtol · |expected|`.

    Equal elements pass, infinities too; NaN never does. Integers and booleans must be equal, dtypes and shapes as well.
    """
    if got.dtype != expected.dtype or got.shape != expected.shape:
        failure = f"got {got.dtype} {list(got.shape)}, expected {expected.dtype} {list(expected.shape)}"
        return Difference(failure=failure)
    if got.size == 0:
        return Difference(max_abs_error=0.0, max_rel_error=0.0, tolerance_used=0.0)
    if not np.issubdtype(expected.dtype, np.floating):
        atol = rtol = 0.0
    g, e = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where(g == e, 0.0, np.abs(g - e))
    magnitude = np.where(np.isfinite(e), np.abs(e), 0.0)
    allowed = atol + rtol * magnitude
    relative = np.divide(error, magnitude, out=np.zeros_like(error), where=magnitude > atol)
    used = np.divide(error, allowed, out=np.zeros_like(error), where=allowed > 0)
    measurable = bool(np.isfinite(error).all())
    return Difference(
        max_abs_error=float(error.max()) if measurable else None,
        max_rel_error=float(relative.max()) if measurable else None,
        tolerance_used=float(used.max()) if measurable and (allowed > 0).all() else None,
        failure=_failure(g, e, error, allowed),
    )


def _failure(g: Array, e: Array, error: Array, allowed: Array) -> str | None:
    beyond = ~(error <= allowed)  # and not `>`, which lets NaN pass
    if not beyond.any():
        return None
    excess = np.where(beyond, np.nan_to_num(error, nan=np.inf, posinf=np.inf) - allowed, -np.inf)
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    place = "".join(f"[{index}]" for index in worst)
    return (
        f"got {g[worst]:.9g}, expected {e[worst]:.9g} at {place}: the error {error[worst]:.3g} exceeds the tolerance "
        f"{allowed[worst]:.3g}, as {np.count_nonzero(beyond)} of {beyond.size} values do"
    )
