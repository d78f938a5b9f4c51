"""The whole product in a minute: train four models, publish them, serve them, ask them, and show one table.

    make demo      does it in a temporary folder, stops the server, and exits 0
    make serve     keeps the models in ./models and the server in the foreground until Ctrl-C

Every step is an ordinary command, printed before it runs, so that it can be repeated by hand.
"""

import argparse
import contextlib
import json
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from forwardpass import Client
from forwardpass.errors import TryAgain
from forwardpass_training.data import DataStore
from forwardpass_training.recipes import find

RECIPES = {
    "linear_regression": "r2",
    "logistic_regression": "accuracy",
    "mlp_classifier": "accuracy",
    "digits_cnn": "accuracy",
}
CALLS = 200
START_S = 60

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True)
class Ports:
    """Where the server listens, on 127.0.0.1."""

    grpc: int
    metrics: int


def command(program: str, *arguments: str | Path) -> list[str]:
    """One of the three commands of this package, run from the interpreter that runs this."""
    module = {"forwardpass-train": "forwardpass_training", "forwardpass-server": "forwardpass_server"}[program]
    console.print(f"[bold]$ {shlex.join([program, *map(str, arguments)])}[/bold]", soft_wrap=True)
    return [sys.executable, "-m", module, *map(str, arguments)]


def train_and_publish(recipe: str, runs: Path, repository: Path) -> None:
    # one thread: networks this small gain nothing from a second, and lose much on a busy machine
    subprocess.run(command("forwardpass-train", "run", recipe, "--runs-dir", runs, "--threads", "1"), check=True)
    subprocess.run(
        command("forwardpass-train", "publish", recipe, "--runs-dir", runs, "--repository", repository), check=True
    )


@contextlib.contextmanager
def serving(repository: Path, ports: Ports) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, ready; stopped by SIGTERM at the end, when it must exit with 0."""
    flags = ("--model-repository", repository, "--grpc-port", str(ports.grpc), "--metrics-port", str(ports.metrics))
    with subprocess.Popen(command("forwardpass-server", *flags)) as server:
        try:
            with Client(f"127.0.0.1:{ports.grpc}") as client:
                deadline = time.monotonic() + START_S
                ready = False
                while not ready:
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"the server did not become ready within {START_S} s; its log stands above")
                    with contextlib.suppress(TryAgain):
                        client.wait_until_ready(deadline_s=1)
                        ready = True
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
    if server.returncode:
        raise SystemExit(f"the server ended with exit code {server.returncode}")


def ask(client: Client, recipe: str, runs: Path) -> tuple[str, ...]:
    """One row of the table: what was measured in training, and what the server says now."""
    run = max(runs.glob(f"{recipe}-*"))
    metric = RECIPES[recipe]
    held_out = json.loads((run / "metrics.json").read_text())["held_out"][metric]
    parity = json.loads((run / "parity.json").read_text())

    data = find(recipe)().data.load(DataStore.from_environment())
    name = client.metadata(recipe).inputs[0].name
    example = {name: data.test.inputs[:1].numpy()}
    answer = next(iter(client.infer(recipe, example).values()))[0]
    milliseconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        client.infer(recipe, example)
        milliseconds.append((time.perf_counter() - start) * 1000)
    return (
        recipe,
        f"{metric} {held_out:.4f}",
        f"{parity['max_abs_error']:.1e}",
        *beside_truth(answer, data.test.targets[0].numpy(), data.labels),
        f"{statistics.median(milliseconds):.2f} ms",
    )


def beside_truth(answer: Any, truth: Any, labels: tuple[str, ...]) -> tuple[str, str]:
    """An answer and the truth, as a person would write them."""
    if len(answer) > 1:
        best = int(np.argmax(answer))
        return f"{labels[best]} ({answer[best]:.1%})", labels[int(truth)]
    return f"{float(answer[0]):.3f}", f"{np.ravel(truth)[0]:.3g}"


def show(ports: Ports, runs: Path) -> None:
    table = Table(title="What is served", title_style="bold")
    for heading in ("model", "held-out metric", "parity error", "answer", "truth"):
        table.add_column(heading, no_wrap=True)
    table.add_column(f"p50 of {CALLS} calls", justify="right", no_wrap=True)
    with Client(f"127.0.0.1:{ports.grpc}") as client:
        for recipe in RECIPES:
            table.add_row(*ask(client, recipe, runs))
    console.print(table)

    url = f"http://127.0.0.1:{ports.metrics}/metrics"
    console.print(f"[bold]$ curl {url}[/bold]  (three of its lines)")
    with urllib.request.urlopen(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    for line in [line for line in lines if line.startswith("infer_requests_total") and 'outcome="ok"' in line][:3]:
        console.print(line, soft_wrap=True)


def try_next(ports: Ports) -> None:
    console.print(
        f"""
Serving on 127.0.0.1:{ports.grpc}; metrics on http://127.0.0.1:{ports.metrics}/metrics. Try in another terminal:

  .venv/bin/forwardpass models
  .venv/bin/forwardpass predict linear_regression x=[[3.0]]
  .venv/bin/forwardpass predict mlp_classifier x=[[1,1,1,1,1,1,0,0,0,0]]
  .venv/bin/forwardpass load mlp_classifier

Ctrl-C stops the server.""",
        markup=False,
    )


def free_ports() -> Ports:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return Ports(one.getsockname()[1], two.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="keep the server in the foreground")
    parser.add_argument("--models", type=Path, default=Path("models"), help="with --serve: where the models are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="forwardpass-demo-") as scratch:
        runs = Path(scratch) / "runs"
        repository = arguments.models if arguments.serve else Path(scratch) / "models"
        for recipe in RECIPES:
            if not (repository / recipe).is_dir():
                train_and_publish(recipe, runs, repository)
        ports = Ports(8001, 8002) if arguments.serve else free_ports()
        with serving(repository, ports) as server:
            if not arguments.serve:
                show(ports, runs)
                return
            try_next(ports)
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()


if __name__ == "__main__":
    main()
