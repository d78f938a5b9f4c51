"""The first runs of a version: every batch size that will be served, timed; and whether rows may share a run at all.

The figures come from made-up inputs, or from real ones where the version brought examples.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from forwardpass_server.errors import ForwardpassError
from forwardpass_server.runtime.samples import make_inputs
from forwardpass_server.scheduling.cost import Cost, CostCurve
from forwardpass_server.tensors.dtypes import BF16, FP16
from forwardpass_server.tensors.signature import Signature

ROUNDS = 3
"""Timings are taken in rounds, and the best round counts: other work on the machine only ever adds time."""
RUNS = 40
"""Timed runs a round and batch size, for models that are fast enough."""
ROUND_S = 0.01
"""A round of one batch size ends after this long, in seconds, however few runs it had."""
SLOW_S = 0.05
"""A batch size whose first run takes longer is not timed again: that run is its figure."""
INLINE_P99_S = 200e-6
"""A model may run on the loop thread if the 99th percentile of its smallest run is below this, in seconds,"""
INLINE_LARGEST_S = 1e-3
"""and the largest that one caller can ask for is below this;"""
INLINE_BATCH_S = 0.5e-3
"""its batches are then made of as many rows as run in this time. A small CNN (54 µs a row, 1.3 ms for 64) answered 16 %
more calls on the loop thread than on its own, and half as many in time when 0.9 of that was asked of it: calls aged
unread in the sockets while it ran, and then cost as much as if they had been in time."""
PROBE_ROWS = 5
"""Rows that `probe_batching` runs alone and together."""

Inputs: TypeAlias = Sequence[np.ndarray | None]


Run: TypeAlias = Callable[[Inputs, Sequence[int]], Sequence[np.ndarray]]
"""What can be warmed: the `run` of a session."""


def buckets(max_rows: int) -> tuple[int, ...]:
    """The batch sizes that are warmed and timed: 1, 2, 4, … and `max_rows`; 1 for a model that is not batched."""
    sizes = [1]
    while sizes[-1] * 2 < max_rows:
        sizes.append(sizes[-1] * 2)
    return (*sizes, max_rows) if max_rows > 1 else (1,)


def warm(
    run: Run,
    signature: Signature,
    sizes: Sequence[int],
    *,
    example: Inputs | None = None,
    seed: int = 0,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> CostCurve:
    """Run every batch size, and time it. Blocks for up to 30 ms a size, or one run of it if that is longer.

    Args:
        run: of the session that will serve.
        signature: its signature.
        sizes: rows, ascending; see `buckets`.
        example: one real request (inputs in the signature's order), repeated to the size of each batch; made-up values
            when None.
        seed: of the made-up values.
        clock_ns: a monotonic clock.

    Returns:
        The cost of each size; empty when the model refuses made-up values even at the smallest (it may want sizes or
        ranges that nobody can guess), so that nothing is known about it.

    Raises:
        ForwardpassError: the model cannot run its own example, or ran a small batch and cannot run a larger one.
    """
    rng = np.random.default_rng(seed)
    wanted = tuple(range(len(signature.outputs)))
    points = []
    for rows in sizes:
        inputs = make_inputs(signature, rows, rng) if example is None else repeat(example, signature, rows)
        try:
            points.append(_time(partial(run, inputs, wanted), rows, clock_ns))
        except ForwardpassError:
            if points or example is not None:
                raise
            return CostCurve()
    return CostCurve(tuple(points))


def inline_rows(curve: CostCurve, max_rows: int, *, control_flow: bool) -> int | None:
    """How many rows a run on the loop thread may have; None for a model that is to have a thread.

    A thread costs two hand-overs of the interpreter a batch, and on one core it brings nothing. So a model runs on the
    loop thread when one row costs less than that, and in batches that keep other calls waiting for no more than
    `INLINE_BATCH_S`; nothing in its graph may make the duration depend on the values.

    Args:
        curve: from warm-up.
        max_rows: of one run, as it would be on a thread.
        control_flow: see `control_flow.has_control_flow`.
    """
    points = curve.points
    if control_flow or not points or points[0].p99_s >= INLINE_P99_S or points[-1].p50_s >= INLINE_LARGEST_S:
        return None
    return max(point.rows for point in points if point.rows <= max(max_rows, 1) and point.p50_s < INLINE_BATCH_S)


def probe_batching(run: Run, signature: Signature, *, example: Inputs | None = None, seed: int = 0) -> str | None:
    """Run rows alone and together, and compare: may rows of different callers share a run?

    Args:
        run: of the session that will serve.
        signature: its signature; `max_batch_size` says that its shapes allow batches.
        example: real rows to use as they are, instead of made-up ones.
        seed: of the made-up values.

    Returns:
        None when they may; else why not, in one line, for the log and the model's metadata.
    """
    if not signature.max_batch_size:
        return "its inputs and outputs do not share a dynamic first dimension"
    together = make_inputs(signature, PROBE_ROWS, np.random.default_rng(seed)) if example is None else list(example)
    rows = next((len(array) for array in together if array is not None), 0)
    if example is not None and rows < 2:
        together, rows = repeat(together, signature, 2), 2
    wanted = tuple(range(len(signature.outputs)))
    try:
        merged = run(together, wanted)
        alone = [
            run([None if array is None else array[row : row + 1] for array in together], wanted) for row in range(rows)
        ]
    except ForwardpassError as error:
        return f"the trial of rows alone and together failed: {error}"
    for index, spec in enumerate(signature.outputs):
        whole = merged[index]
        parts = [answer[index] for answer in alone]
        if whole.ndim == 0 or len(whole) != rows or any(part.shape[:1] != (1,) for part in parts):
            return f"output '{spec.name}' does not have one row per row of the input"
        if any(part.shape[1:] != whole.shape[1:] for part in parts):
            return f"the shape of output '{spec.name}' depends on the other rows"
        for row, part in enumerate(parts):
            if not agree(whole[row : row + 1], part, spec.dtype in (FP16, BF16), bits=spec.dtype is BF16):
                return f"output '{spec.name}' of a row depends on the other rows in its batch"
    return None


def agree(a: np.ndarray, b: np.ndarray, coarse: bool, *, bits: bool = False) -> bool:
    """Whether two answers to the same row are the same but for the order of additions.

    Args:
        a, b: equal shape and dtype.
        coarse: half precision: 1 % instead of 0.1 %.
        bits: bfloat16 carried as uint16 bit patterns.
    """
    if bits:
        a, b = (np.left_shift(x.astype(np.uint32), 16).view(np.float32) for x in (a, b))
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    relative, absolute = (1e-2, 1e-3) if coarse else (1e-3, 1e-5)
    return bool(np.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True))


def repeat(example: Inputs, signature: Signature, rows: int) -> list[np.ndarray | None]:
    """The rows of an example over and over until there are `rows`; as it is for a model that is not batched."""
    if not signature.max_batch_size:
        return list(example)
    return [None if array is None else np.resize(array, (rows, *array.shape[1:])) for array in example]


def _time(run: Callable[[], object], rows: int, clock_ns: Callable[[], int]) -> Cost:
    """The duration of a run: the first is warm-up, unless it was so slow that it is the measurement."""
    start = clock_ns()
    run()
    first_s = (clock_ns() - start) * 1e-9
    if first_s >= SLOW_S:
        return Cost(rows, first_s, first_s)
    rounds = []
    for _ in range(ROUNDS):
        seconds: list[float] = []
        while len(seconds) < RUNS and sum(seconds) < ROUND_S:
            start = clock_ns()
            run()
            seconds.append((clock_ns() - start) * 1e-9)
        rounds.append(np.quantile(seconds, (0.5, 0.99)))
    p50_s, p99_s = np.min(rounds, axis=0)
    return Cost(rows, float(p50_s), float(p99_s))
