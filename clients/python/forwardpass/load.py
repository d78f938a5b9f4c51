"""A closed-loop load generator: so many callers, each sending its next call when the last one has ended.

It measures what such callers see. It does not measure a server under calls that arrive whether or not it keeps up
(open loop): when the server stalls, these callers stall with it.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from forwardpass.aio import AsyncClient
from forwardpass.dtypes import by_wire
from forwardpass.errors import ForwardpassError, Overloaded
from forwardpass.results import ModelMetadata

PAUSE_AFTER_FAILURE_S = 0.1
"""What a caller waits after a failed call, unless the server named a time; without it, refusals would spin."""


@dataclass(slots=True)
class Load:
    """What was seen."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    """Of the calls that succeeded."""
    failures: Counter[str] = field(default_factory=Counter)
    """By status code, or by error where nothing was sent."""
    first_failure: str = ""

    @property
    def rate(self) -> float:
        """Calls that succeeded, per second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def percentile_s(self, percent: float) -> float:
        """Latency that `percent` of the calls did not exceed, in seconds; NaN when none succeeded."""
        ordered = sorted(self.latencies_s)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


async def run(
    client: AsyncClient,
    model: str,
    inputs: Mapping[str, npt.ArrayLike],
    *,
    version: str = "",
    concurrency: int,
    seconds: float,
    deadline_s: float,
) -> Load:
    """Call for `seconds`; calls then in flight are awaited, and count. Ends within `seconds + deadline_s`."""
    load = Load()
    started = time.monotonic()
    end = started + seconds

    async def caller() -> None:
        while (sent := time.monotonic()) < end:
            try:
                await client.infer(model, inputs, version=version, deadline_s=deadline_s)
                load.latencies_s.append(time.monotonic() - sent)
            except ForwardpassError as error:
                load.failures[error.code or type(error).__name__] += 1
                load.first_failure = load.first_failure or str(error)
                pause_s = error.retry_after_s if isinstance(error, Overloaded) else None
                left_s = max(0.0, end - time.monotonic())
                await asyncio.sleep(min(left_s, PAUSE_AFTER_FAILURE_S if pause_s is None else pause_s))

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    load.seconds = time.monotonic() - started
    return load


def random_inputs(metadata: ModelMetadata, rows: int) -> dict[str, npt.ArrayLike]:
    """Something that the model should take: floats of 0 to 1, random UINT8, zeros and empty strings elsewhere.

    Args:
        metadata: of the model.
        rows: for the first dimension where it is open; other open dimensions get 1.
    """
    random = np.random.default_rng(0)
    inputs: dict[str, npt.ArrayLike] = {}
    for tensor in metadata.inputs:
        shape = tuple((rows if axis == 0 else 1) if dim < 0 else dim for axis, dim in enumerate(tensor.shape))
        if tensor.datatype.startswith(("FP", "BF")):
            inputs[tensor.name] = random.random(shape, np.float32)
        elif tensor.datatype == "UINT8":
            inputs[tensor.name] = random.integers(0, 256, shape, np.uint8)
        elif tensor.datatype == "BYTES":
            inputs[tensor.name] = np.full(shape, "", dtype=object)
        else:
            inputs[tensor.name] = np.zeros(shape, by_wire(tensor.datatype).numpy)
    return inputs


def text(load: Load, *, rows: int) -> str:
    """A report in four lines."""
    done = len(load.latencies_s)
    lines = [
        f"completed  {done} calls in {load.seconds:.2f} s: {load.rate:.1f} calls/s, {load.rate * rows:.1f} rows/s",
        "latency    "
        + "   ".join(f"p{percent} {load.percentile_s(percent) * 1000:.2f} ms" for percent in (50, 90, 99))
        + f"   max {load.percentile_s(100) * 1000:.2f} ms",
        "failures   " + (", ".join(f"{code} {count}" for code, count in load.failures.most_common()) or "none"),
    ]
    return "\n".join(lines + ([f"the first  {load.first_failure}"] if load.first_failure else []))
