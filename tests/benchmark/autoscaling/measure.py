"""What the simulation stands on, measured: what runs cost, what the loop costs a request, and what the metrics say.

    python tests/benchmark/autoscaling/measure.py [--realtime]

A ranker (256 numbers in, two hidden layers of 4096, one out; 74 MB of weights, which a run reads whole, so that 64 rows
cost little more than a few) on one core, asked at shares of what it can do. Prints JSON; two minutes.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import onnx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import machine  # noqa: E402 - the bench beside this folder
from models import Graph  # noqa: E402
from processes import SERVER_CORE, Bench, Priority, build_generators  # noqa: E402

from forwardpass_server.observe.saturation import WINDOW_S  # noqa: E402

SHAPE = (256,)
SLO_MS = 250
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5)


def ranker() -> onnx.ModelProto:
    """The model."""
    graph = Graph()
    x, width = "x", SHAPE[0]
    for outputs in (4096, 4096):
        x = graph.add("Relu", graph.dense(x, width, outputs))
        width = outputs
    return graph.model("ranker", SHAPE, graph.add("Sigmoid", graph.dense(x, width, 1)), 1)


def publish(root: Path) -> Path:
    """A repository of it, with its SLO; the model's file."""
    folder = root / "ranker" / "1"
    folder.mkdir(parents=True)
    (root / "ranker" / "config.pbtxt").write_text(
        f'parameters {{ key: "slo_p99_ms" value {{ string_value: "{SLO_MS}" }} }}\n'
    )
    onnx.save(ranker(), folder / "model.onnx")
    return folder / "model.onnx"


def curve(file: Path) -> list[tuple[int, float, float]]:
    """Rows, median and 99th percentile of a run in seconds, as the server's own warm-up finds them. In this process."""
    from forwardpass_server.runtime import providers, warmup
    from forwardpass_server.runtime.options import SessionOptions
    from forwardpass_server.runtime.session import Session
    from forwardpass_server.tensors.signature import Signature

    signature = Signature.from_onnx(file)
    session = Session(file, signature, providers.resolve("cpu"), SessionOptions(intra_op_threads=1))
    found = warmup.warm(session.run, signature, warmup.buckets(64)).points
    return [(point.rows, round(point.p50_s, 6), round(point.p99_s, 6)) for point in found]


class Page:
    """A server's metrics page."""

    def __init__(self, address: str) -> None:
        self._address = address

    def read(self) -> dict[str, float]:
        """Values by sample, labels included."""
        with urllib.request.urlopen(self._address, timeout=10) as page:
            lines = page.read().decode().splitlines()
        return {name: float(value) for name, value in (each.rsplit(" ", 1) for each in lines if each[0] != "#")}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--realtime", action="store_true", help="go before other jobs of this machine (root)")
    parser.add_argument("--curve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.curve:
        sys.stdout.write(json.dumps(curve(options.curve)))
        return
    priority = Priority.GROUP if options.realtime else Priority.NONE
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(build_generators(HERE.parents[2] / "build" / "loadgen"), priority)
        file = publish(Path(folder) / "models")
        command = bench.placed(SERVER_CORE, [sys.executable, __file__, "--curve", file])
        points = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        result = machine.facts() | {"realtime": options.realtime, "curve": points} | loaded(bench, Path(folder))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def loaded(bench: Bench, folder: Path) -> dict[str, Any]:
    """The server at shares of its capacity: what was offered, and what each metric makes of it."""
    log = folder / "server.log"
    command = bench.forwardpass(folder / "models", "--metrics-port=0")
    with bench.serving(command, log) as server:
        found = re.search(r"address=(http\S+)", log.read_text())
        assert found
        page = Page(found[1])
        rates = [bench.closed(server.port, "ranker", SHAPE, 64, 3.0)["rows_per_s"] for _ in range(2)]
        capacity = max(rates)
        rows = []
        for share in SHARES:
            before, began_s = page.read(), time.monotonic()
            answered = bench.open(server.port, "ranker", SHAPE, share * capacity, WINDOW_S + 1.5, SLO_MS)
            after, took_s = page.read(), time.monotonic() - began_s
            rows.append({"of_capacity": share, **_seen(before, after, took_s), "p99_ms": answered["accepted_p99_ms"]})
            time.sleep(2)
    return {"capacity_per_s": capacity, "loads": rows}


def _seen(before: dict[str, float], after: dict[str, float], took_s: float) -> dict[str, float]:
    def grew(name: str) -> float:
        key = next(each for each in after if each.startswith(name))
        return after[key] - before[key]

    answered = grew("infer_request_seconds_count")
    return {
        "saturation": round(after["saturation_ratio"], 3),
        "cpu_cores": round(grew("process_cpu_seconds_total") / took_s, 3),
        "loop_busy": round(grew("event_loop_busy_seconds_total") / took_s, 3),
        "instance_busy": round(grew("infer_busy_seconds_total") / took_s, 3),
        "mean_rows": round(grew("infer_rows_total") / max(grew("infer_batches_total"), 1), 1),
        "mean_wait_ms": round(1e3 * grew("infer_queue_seconds_sum") / max(answered, 1), 2),
        "shed": grew('infer_requests_total{model="ranker",outcome="shed"')
        + grew('infer_requests_total{model="ranker",outcome="expired"'),
    }


if __name__ == "__main__":
    main()
