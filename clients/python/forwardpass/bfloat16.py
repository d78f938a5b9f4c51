"""bfloat16, which numpy lacks: the high two bytes of a float32. Both directions, bit patterns as uint16."""

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 3.3895313892515355e38
"""The largest finite value, 0x7F7F."""


def from_float32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; NaN stays NaN, and what is too large becomes an infinity."""
    bits = np.asarray(values, order="C").view(np.uint32)
    # Adding just under half a unit, plus the unit's own last bit, carries exactly when rounding to even says so.
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet_nan = ((bits >> 16) | 0x0040).astype(np.uint16)  # a NaN whose low bits alone were set must not become Inf
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def to_float32(patterns: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Exact: every bfloat16 is a float32."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)
