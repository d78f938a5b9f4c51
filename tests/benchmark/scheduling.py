"""What scheduling costs beside the model: a batch of 8 one-row requests to a 10-10-1 network, step by step.

    python tests/benchmark/scheduling.py

Prints the CPU time of one thread, the best of many rounds; and what stacking large rows costs into fresh memory and
into a kept buffer.
"""

import sys
import tempfile
import time
import timeit
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry, Counter, Histogram

from forwardpass_server.observe import histogram
from forwardpass_server.observe.histogram import LATENCY_BOUNDS_S
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.runtime.providers import resolve
from forwardpass_server.runtime.session import Session
from forwardpass_server.scheduling.batch import split, stack
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.policy import Limits, next_action
from forwardpass_server.scheduling.queue import RequestQueue
from forwardpass_server.scheduling.request import Array, Inputs, Request
from forwardpass_server.scheduling.runner import Runner
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.tensors.signature import Signature

ROWS = 8


class Caller:
    """Takes any answer for nothing."""

    cancelled = False

    def succeed(self, outputs: Sequence[Array], request: Request) -> None: ...

    def fail(self, error: Exception) -> None:
        raise error


def microseconds(work: Callable[[], object], number: int = 500, rounds: int = 60) -> float:
    return min(timeit.repeat(work, number=number, repeat=rounds, timer=time.thread_time)) / number * 1e6


def mlp(path: Path) -> Session:
    rng = np.random.default_rng(0)
    weights = {"w1": (10, 10), "b1": (10,), "w2": (10, 1), "b2": (1,)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
            helper.make_node("Sigmoid", ["z"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(rng.normal(size=shape).astype("f4"), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)
    return Session(path, Signature.from_onnx(path), resolve("cpu"))


def requests() -> list[Request]:
    message = np.random.default_rng(1).standard_normal(10, dtype=np.float32).tobytes()
    caller = Caller()
    made = [
        Request(
            (np.ndarray((1, 10), np.float32, message),),
            rows=1,
            nbytes=40,
            outputs=(0,),
            responder=caller,
            timeline=Timeline(1),
        )
        for _ in range(ROWS)
    ]
    for request in made:
        request.timeline.queued_ns = 2
    return made


def small(session: Session) -> dict[str, float]:
    batch = requests()
    answer = [np.zeros((ROWS, 1), np.float32)]
    stacked = np.zeros((ROWS, 10), np.float32)
    limits, waiting, statistics = Limits(), deque(batch), VersionStatistics()
    queue = RequestQueue("mlp", limits)

    def no_model(inputs: Inputs, outputs: Sequence[int]) -> list[Array]:
        return answer

    def pass_queue() -> None:
        for request in batch:
            queue.submit(request)
        queue.take_nowait()
        queue.finished(ROWS)

    loop = InlineLoop()
    empty = Scheduler("empty", [no_model], session.signature, limits=limits, inline=loop)
    whole = Scheduler("mlp", [session.run], session.signature, limits=limits, inline=loop)

    def through(scheduler: Scheduler) -> Callable[[], None]:
        def go() -> None:
            for request in batch:
                scheduler.submit(request)
            loop.run_ready()

        return go

    runner = Runner(no_model, statistics)
    return {
        "policy.next_action": microseconds(lambda: next_action(waiting, 1.0, limits)),
        "queue: submit x 8, take, finished": microseconds(pass_queue),
        "batch: stack": microseconds(lambda: stack(batch)),
        "session.run": microseconds(lambda: session.run((stacked,), (0,))),
        "batch: split": microseconds(lambda: split(answer, (0,), batch, ROWS)),
        "batch: split, two outputs": microseconds(lambda: split([*answer, *answer], (0, 1), batch, ROWS)),
        "statistics: ran": microseconds(lambda: statistics.ran(batch, ROWS, 3, 4, 5)),
        "statistics: answered": microseconds(lambda: statistics.answered(batch, ROWS)),
        "runner, all of it but the model": microseconds(lambda: runner.run(batch)),
        "inline, submit to answered, without the model": microseconds(through(empty)),
        "inline, submit to answered": microseconds(through(whole)),
    }


def counting() -> dict[str, float]:
    registry = CollectorRegistry()
    histograms = [Histogram(name, name, ["m"], registry=registry).labels("m") for name in ("queue", "run", "all")]
    counters = [Counter(name, name, ["m"], registry=registry).labels("m") for name in ("ok", "batches", "rows")]

    def by_prometheus_client() -> None:
        for _ in range(ROWS):
            for each in histograms:
                each.observe(0.003)
        for counter in counters:
            counter.inc()

    ours = histogram.Histogram(LATENCY_BOUNDS_S, histogram.NS)
    values = [3_000_000] * ROWS
    spread = [1_000_000, 3_000_000] * (ROWS // 2)

    def one_by_one() -> None:
        for value in values:
            ours.observe(value)

    return {
        "prometheus_client: 3 histograms x 8, 3 counters": microseconds(by_prometheus_client),
        "histogram.observe x 8": microseconds(one_by_one),
        "histogram.observe_all of 8 in one bucket": microseconds(lambda: ours.observe_all(values)),
        "histogram.observe_all of 8 in two buckets": microseconds(lambda: ours.observe_all(spread)),
    }


def large() -> dict[str, float]:
    figures = {}
    for rows, nbytes in ((8, 8 << 10), (8, 32 << 10), (8, 128 << 10), (8, 600_000), (64, 600_000)):
        arrays = [np.ones((1, nbytes), np.uint8) for _ in range(rows)]
        kept = np.empty((rows, nbytes), np.uint8)
        number = max(1, 20_000_000 // (rows * nbytes))
        name = f"{rows} rows of {nbytes} bytes"
        figures[f"{name}: fresh"] = microseconds(partial(np.concatenate, arrays), number, 15)
        figures[f"{name}: kept"] = microseconds(partial(np.concatenate, arrays, out=kept), number, 15)
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = small(mlp(Path(folder) / "mlp.onnx")) | counting() | large()
    for name, value in figures.items():
        sys.stdout.write(f"{name:55s} {value:10.2f} µs\n")


if __name__ == "__main__":
    main()
