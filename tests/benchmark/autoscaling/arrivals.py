"""When requests arrive: a day squeezed into forty minutes, with a rush, with bursts, and with callers who fan out."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Trace:
    """How many requests a second, and how unevenly.

    Args:
        seconds: its length.
        base_per_s: the mean without rush and bursts; the tide moves it up and down by half.
        rush: by how much the rush multiplies it, for a fifth of the time, reached within `rush_rise_s` seconds.
        burst: by how much a burst multiplies it, for 5 to 15 seconds, about once in `burst_every_s`.
        fan_out: requests come in groups of so many in the mean, each within a few milliseconds.
    """

    seconds: int = 2400
    base_per_s: float = 250.0
    rush: float = 2.5
    rush_rise_s: float = 90.0
    burst: float = 1.8
    burst_every_s: float = 60.0
    fan_out: float = 3.0
    seed: int = 0


def rates(trace: Trace) -> np.ndarray:
    """Requests a second, for each second; without the chance that is in `arrivals`."""
    rng = np.random.default_rng(trace.seed)
    at = np.arange(trace.seconds, dtype=float)
    tide = 1 + 0.5 * np.sin(2 * np.pi * at / trace.seconds)
    begins, ends = 0.35 * trace.seconds, 0.55 * trace.seconds
    rush = np.clip(np.minimum(at - begins, ends - at) / trace.rush_rise_s, 0, 1)
    burst = np.ones(trace.seconds)
    second = rng.exponential(trace.burst_every_s)
    while second < trace.seconds:
        lasts = rng.uniform(5, 15)
        burst[int(second) : int(second + lasts)] = trace.burst
        second += lasts + rng.exponential(trace.burst_every_s)
    return np.asarray(trace.base_per_s * tide * (1 + (trace.rush - 1) * rush) * burst)


def arrivals(trace: Trace) -> np.ndarray:
    """Seconds from the beginning at which requests arrive, ascending."""
    rng = np.random.default_rng(trace.seed + 1)
    groups = rng.poisson(rates(trace) / trace.fan_out)
    began = np.repeat(np.arange(trace.seconds, dtype=float), groups) + rng.random(int(groups.sum()))
    sizes = rng.geometric(1 / trace.fan_out, size=len(began))
    found = np.repeat(began, sizes) + rng.exponential(0.003, size=int(sizes.sum()))
    return np.sort(found)
