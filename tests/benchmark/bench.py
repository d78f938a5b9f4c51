"""The bench of issue 4: the server beside a bare echo and ONNX Runtime alone, in one run on two cores.

    python tests/benchmark/bench.py [--quick] [--realtime] [--record] [--only PART …]

Prints a table, then one JSON line. Everything is measured in turn, again and again; a ratio is the median of the ratios
of each turn, so that what slows the machine slows both sides. README.md of this folder says what the figures mean.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import machine
import models
import numpy as np
import overload
from processes import ROOT, Bench, Priority, Process, build_generators
from table import Figure, table

from forwardpass_proto import grpc_service_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often."""

    turns: int
    closed_s: float
    slow_closed_s: float
    """Of a closed loop with resnet18, which answers some thirty requests a second."""
    open_s: Mapping[str, float]
    callers: Sequence[int] = (1, 8, 32, 128)


QUICK = Plan(turns=3, closed_s=0.6, slow_closed_s=1.6, open_s={"resnet18": 3, "mnist_cnn": 2})
FULL = Plan(turns=7, closed_s=2, slow_closed_s=6, open_s={"resnet18": 12, "mnist_cnn": 4})


class Run:
    """The bench at work: a repository and a log folder for its servers, and the plan."""

    def __init__(self, bench: Bench, plan: Plan, folder: Path) -> None:
        self.bench, self.plan, self._folder, self._logs = bench, plan, folder, 0

    def for_long_runs(self) -> "Run":
        """The same for what keeps a core busy."""
        return Run(self.bench.for_long_runs(), self.plan, self._folder)

    def repository(self, *names: str) -> Path:
        """A repository of just these models."""
        root = self._folder / "-".join(names)
        if not root.exists():
            models.publish(root, names)
        return root

    def model(self, name: str) -> Path:
        """Where the ONNX file of a model is."""
        return self.repository(name) / name / "1" / "model.onnx"

    @contextmanager
    def server(self, *names: str, flags: Sequence[str] = (), cores: str = "0") -> Iterator[Process]:
        """Our server with these models."""
        command = self.bench.forwardpass(self.repository(*names), *flags)
        with self.bench.serving(command, self._log("server"), cores) as process:
            yield process

    @contextmanager
    def echo(self) -> Iterator[Process]:
        """The bare C++ echo."""
        with self.bench.serving(self.bench.echo(), self._log("echo")) as process:
            yield process

    @contextmanager
    def python_echoes(self) -> Iterator[dict[str, Process]]:
        """The bare echoes in Python: as servers are usually built, and as ours is."""
        commands = {"grpc.aio": self.bench.aio_echo(), "grpcio's completion queue": self.bench.queue_echo()}
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(self.bench.serving(command, self._log("python-echo")))
                for name, command in commands.items()
            }

    def _log(self, name: str) -> Path:
        self._logs += 1
        return self._folder / f"{self._logs}-{name}.log"

    def closed(self, process: Process, model: str, callers: int) -> dict[str, Any]:
        """One closed loop of a turn."""
        seconds = self.plan.slow_closed_s if model == "resnet18" else self.plan.closed_s
        return self.bench.closed(process.port, model, models.SHAPES[model], callers, seconds)


def beside_echo(run: Run, model: str, callers: Sequence[int]) -> list[Figure]:
    """What share of a bare echo's calls the server answers, and how much longer one caller waits."""
    figures = []
    with run.server(model) as server, run.echo() as echo:
        for count in callers:
            turns = [(run.closed(echo, model, count), run.closed(server, model, count)) for _ in range(run.plan.turns)]
            ours = [mine for _, mine in turns]
            bound = {("mlp", 32): 0.50, ("mlp", 8): 0.40, ("image_probe", 8): 0.5}.get((model, count))
            figures.append(
                Figure(
                    name=f"{model}, {count} caller{'s' * (count > 1)}",
                    value=median(mine["rows_per_s"] for mine in ours),
                    unit="calls/s",
                    ratio=median(mine["rows_per_s"] / base["rows_per_s"] for base, mine in turns),
                    of=f"the C++ echo ({median(base['rows_per_s'] for base, _ in turns):,.0f})",
                    at_least=bound,
                    more=latencies(ours),
                )
            )
            if count == 1:
                figures.append(
                    Figure(
                        name=f"{model}, 1 caller, p50",
                        value=median(mine["p50_ms"] for mine in ours),
                        unit="ms",
                        ratio=median(mine["p50_ms"] / base["p50_ms"] for base, mine in turns),
                        of="the C++ echo",
                        at_most=1.9 if model == "mlp" else None,
                    )
                )
    return figures


def python_echoes(run: Run) -> list[Figure]:
    """What Python leaves of the C++ echo before a server has done anything."""
    figures = []
    with run.echo() as echo, run.python_echoes() as bare:
        for count in (8, 32):
            turns = []
            for _ in range(run.plan.turns):
                asked = {name: run.closed(process, "mlp", count) for name, process in bare.items()}
                turns.append((run.closed(echo, "mlp", count), asked))
            figures += [
                Figure(
                    name=f"bare echo, {name}, {count} callers",
                    value=median(asked[name]["rows_per_s"] for _, asked in turns),
                    unit="calls/s",
                    ratio=median(asked[name]["rows_per_s"] / base["rows_per_s"] for base, asked in turns),
                    of="the C++ echo",
                    more=latencies([asked[name] for _, asked in turns]),
                )
                for name in bare
            ]
    return figures


def beside_ceiling(run: Run, model: str, callers: Sequence[int], batches: Sequence[int]) -> list[Figure]:
    """What share of ONNX Runtime alone the server's callers get: of its best batch size, and of single rows."""
    bounds = {("mnist_cnn", 32): 0.24, ("resnet18", 1): 0.97, ("resnet18", 8): 0.97}
    figures = []
    with run.server(model) as server, run.bench.in_process(run.model(model)) as alone:
        seconds = (run.plan.slow_closed_s if model == "resnet18" else run.plan.closed_s) / len(batches)
        for count in callers:
            turns = []
            for _ in range(run.plan.turns):
                ceilings = {rows: alone.rows_per_s(rows, seconds) for rows in batches if rows == 1 or count > 1}
                turns.append((ceilings, run.closed(server, model, count)))
            ours = [mine for _, mine in turns]
            figures.append(
                Figure(
                    name=f"{model}, {count} caller{'s' * (count > 1)}",
                    value=median(mine["rows_per_s"] for mine in ours),
                    unit="calls/s",
                    ratio=median(mine["rows_per_s"] / max(base.values()) for base, mine in turns),
                    of="ONNX Runtime alone"
                    + (", single rows" if count == 1 else ", best batch")
                    + f" ({median(max(base.values()) for base, _ in turns):,.4g})",
                    at_least=bounds.get((model, count)),
                    more=latencies(ours)
                    | {f"alone_b{rows}": median(b[rows] for b, _ in turns) for rows in turns[0][0]},
                )
            )
            if (model, count) == ("resnet18", 8):
                figures.append(
                    Figure(
                        name="resnet18, 8 callers, p99",
                        value=median(mine["p99_ms"] for mine in ours),
                        unit="ms",
                        ratio=median(mine["p99_ms"] * base[1] / 8000 for base, mine in turns),
                        of="8 single runs",
                        at_most=1.15,
                    )
                )
    return figures


def latencies(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median turn's latencies, and how busy the generator was: near 1 it is the wall, and not the server."""
    return {name: median(each[name] for each in found) for name in ("p50_ms", "p99_ms", "generator_cores")}


def mixed(run: Run) -> list[Figure]:
    """`mlp` flooded by 32 callers while one caller asks `resnet18`: what each keeps of what it has alone."""
    with run.server("mlp", "resnet18") as server, ThreadPoolExecutor(2) as both:
        alone = {"mlp": run.closed(server, "mlp", 32), "resnet18": run.closed(server, "resnet18", 1)}
        seconds = run.plan.slow_closed_s
        asked = {
            name: both.submit(run.bench.closed, server.port, name, models.SHAPES[name], callers, seconds)
            for name, callers in (("mlp", 32), ("resnet18", 1))
        }
        together = {name: future.result() for name, future in asked.items()}
    return [
        Figure(
            name=f"mixed: {name}",
            value=together[name]["rows_per_s"],
            unit="calls/s",
            ratio=together[name]["rows_per_s"] / alone[name]["rows_per_s"],
            of="itself alone",
            more=latencies([together[name]]),
        )
        for name in together
    ]


def two_processes(run: Run) -> list[Figure]:
    """`resnet18` on two processes and two cores beside one on one; the generator shares the second core."""
    with (
        run.server("resnet18", flags=["--processes=1"]) as single,
        run.server("resnet18", flags=["--processes=2"], cores="0,1") as double,
    ):
        run.closed(double, "resnet18", 8)  # until each of them has served
        turns = [
            tuple(run.closed(process, "resnet18", 8)["rows_per_s"] for process in (single, double))
            for _ in range(run.plan.turns)
        ]
    return [
        Figure(
            name="resnet18, two processes",
            value=median(two for _, two in turns),
            unit="calls/s",
            ratio=median(two / one for one, two in turns),
            of=f"one process ({median(one for one, _ in turns):.4g})",
            at_least=1.8,
        )
    ]


def start_up(run: Run) -> list[Figure]:
    """From the start of the process to its first answer, and what it holds then; and after 32 callers' load."""
    request = pb.ModelInferRequest(model_name="mlp")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 10])
    request.raw_input_contents.append(np.zeros(10, np.float32).tobytes())
    body = request.SerializeToString()
    waited, loaded, served = [], [], []
    for _ in range(run.plan.turns):
        with run.server("mlp") as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(body, wait_for_ready=True, timeout=10)
            waited.append(time.monotonic() - server.started_s)
            loaded.append(server.rss_mib())
            run.closed(server, "mlp", 32)
            served.append(server.rss_mib())
    return [
        Figure(name="start to first answer, mlp", value=median(waited), unit="s", at_most=1.0),
        Figure(
            name="memory after load, mlp",
            value=median(loaded),
            unit="MiB RSS",
            at_most=110,
            more={"after_32_callers_mib": median(served)},
        ),
    ]


def parts(run: Run) -> dict[str, Callable[[], list[Figure]]]:
    """Every part of the bench by its name, in order."""
    callers, slow = run.plan.callers, run.for_long_runs()
    return {
        "mlp": lambda: beside_echo(run, "mlp", callers),
        "python_echoes": lambda: python_echoes(run),
        "image_probe": lambda: beside_echo(run, "image_probe", (1, 8, 32) if run.plan is FULL else (8,)),
        "mnist_cnn": lambda: beside_ceiling(run, "mnist_cnn", callers, (1, 8, 32, 64)),
        "lstm_step": lambda: beside_ceiling(run, "lstm_step", callers if run.plan is FULL else (1, 32), (1, 8, 32, 64)),
        "resnet18": lambda: beside_ceiling(slow, "resnet18", callers if run.plan is FULL else (1, 8), (1, 8)),
        "overload": lambda: [
            *overload_of(slow, "resnet18", 8, 500, (0.5, 0.9, 2, 5, 10) if run.plan is FULL else (0.9, 2, 5, 10)),
            *overload_of(slow, "mnist_cnn", 32, 100, (0.5, 0.9, 1.5, 2, 5, 10) if run.plan is FULL else (0.9, 2, 10)),
        ],
        "mixed": lambda: mixed(slow),
        "processes": lambda: two_processes(slow),
        "start_up": lambda: start_up(run),
    }


def overload_of(
    run: Run, model: str, callers: int, deadline_ms: float, times_capacity: Sequence[float]
) -> list[Figure]:
    """Arrivals that do not wait, each with a deadline, at multiples of what `callers` callers get in a closed loop."""
    with run.server(model) as server:
        capacity = run.closed(server, model, callers)["rows_per_s"]

        def offer(times: float, seconds: float) -> dict[str, Any]:
            shape = models.SHAPES[model]
            return run.bench.open(server.port, model, shape, times * capacity, seconds, deadline_ms)

        found = {times: offer(times, run.plan.open_s[model]) for times in times_capacity}
        offer(max(times_capacity), 1)
        after = offer(0.5, 1)
    return overload.figures(model, deadline_ms, capacity, found, after)


def main() -> int:
    """Run it; 1 only when a part could not be measured: a missed bound is a result and not a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes in place of 15")
    parser.add_argument("--realtime", action="store_true", help="before all other jobs of the machine (root)")
    parser.add_argument("--record", action="store_true", help="keep the result in tests/benchmark/results")
    parser.add_argument("--only", nargs="+", metavar="PART", help="just these parts")
    parser.add_argument("--loadgen", type=Path, default=ROOT / "build" / "loadgen", help="where the generators are")
    args = parser.parse_args()
    priority = Priority.REALTIME if args.realtime else Priority.NONE
    bench = Bench(build_generators(args.loadgen), priority)
    facts = machine.facts()
    began, figures, failed = time.monotonic(), list[Figure](), dict[str, str]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forwardpass-bench-")))
        wanted = parts(Run(bench, QUICK if args.quick else FULL, folder))
        if unknown := set(args.only or ()) - set(wanted):
            parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(wanted)}")
        for name in args.only or wanted:
            try:
                measured = wanted[name]()
            except RuntimeError as error:
                failed[name] = str(error)
                sys.stderr.write(f"{name}: {error}\n")
                continue
            figures += measured
            sys.stderr.write(f"{name}: {len(measured)} figures, {time.monotonic() - began:.0f} s\n")
    result = {
        **facts,
        "command": " ".join(["bench.py", *sys.argv[1:]]),
        "realtime": args.realtime,
        "seconds": round(time.monotonic() - began),
        "figures": [figure.to_json() for figure in figures],
        "failed": failed,
    }
    sys.stdout.write(f"{table(figures)}\n{json.dumps(result)}\n")
    if args.record:
        sys.stdout.write(f"recorded in {machine.record(result)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
