"""Two replicas are restarted in turn, under load, and no call fails: behind nginx, behind haproxy, by our own client.

The three ask at the same time, 200 calls a second each, over connections that they keep. Each learns in its own way
that a replica leaves, while that one still serves: our client by watching its health, haproxy because its checks find
the port closed, nginx because it opens connections anew after a second. None of the three repeats a call that failed.
The next replica goes when the one before it answers all three again, which is what `minReadySeconds` waits for in
Kubernetes. `make rolling` restarts 20 times; the ordinary tests, twice.
"""

from __future__ import annotations

import collections
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass import Client, ForwardpassError

WAYS = ("nginx", "haproxy", "round_robin")
RESTARTS = int(os.environ.get("FORWARDPASS_RESTARTS", "2"))
CALLS_PER_S = 200
CALLERS = 4
DEADLINE_S = 10.0
# The drain is longer than what any of the three needs to notice it.
FLAGS = ("--drain-s=2", "--grace-s=10", "--repository-poll-secs=2")
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    upstream replicas {{
        server 127.0.0.1:{first} fail_timeout=1s;
        server 127.0.0.1:{second} fail_timeout=1s;
        keepalive 8;
        keepalive_time 1s;
    }}
    server {{
        listen 127.0.0.1:{port} http2;
        location / {{ grpc_pass grpc://replicas; grpc_connect_timeout 1s; grpc_next_upstream error; }}
    }}
}}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    option redispatch 1
    retries 3
    retry-on conn-failure
frontend calls
    bind 127.0.0.1:{port} proto h2
    default_backend replicas
backend replicas
    balance roundrobin
    default-server check inter 200ms fall 1 rise 1
    server first 127.0.0.1:{first} proto h2
    server second 127.0.0.1:{second} proto h2
"""


@dataclass
class Tally:
    """What the callers of one way saw."""

    answered: int = 0
    failed: collections.Counter[str] = field(default_factory=collections.Counter)
    worst_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, failure: str | None, took_s: float) -> None:
        with self.lock:
            self.worst_s = max(self.worst_s, took_s)
            if failure is None:
                self.answered += 1
            else:
                self.failed[failure] += 1


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[[str, Sequence[int]], int]]:
    """Starts nginx or haproxy in front of two ports, on a port of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, replicas: Sequence[int]) -> int:
        program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip(f"no {name} here; Debian: apt-get install {'nginx-light' if name == 'nginx' else name}")
        port = free_port()
        file = tmp_path / f"{name}.conf"
        template = NGINX if name == "nginx" else HAPROXY
        file.write_text(template.format(folder=tmp_path, port=port, first=replicas[0], second=replicas[1]))
        arguments = ["-p", str(tmp_path), "-c", str(file)] if name == "nginx" else ["-f", str(file), "-db"]
        started.append(subprocess.Popen([program, *arguments], stderr=subprocess.DEVNULL))
        wait_for_port(port, started[-1])
        return port

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return


def through_proxy(port: int, model: str) -> tuple[Callable[[float], str | None], Callable[[], None]]:
    """One call by stock grpcio, which repeats only what no server has seen; and how to end."""
    from forwardpass_proto import grpc_service_pb2 as pb

    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    unary = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        lambda message: message.SerializeToString(),
        pb.ModelInferResponse.FromString,
    )

    def ask(value: float) -> str | None:
        request = pb.ModelInferRequest(model_name=model)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
        request.raw_input_contents.append(np.full(3, value, np.float32).tobytes())
        try:
            answer = unary(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return wrong(np.frombuffer(answer.raw_output_contents[0], np.float32), value)

    return ask, channel.close


def by_round_robin(ports: Sequence[int], model: str) -> tuple[Callable[[float], str | None], Callable[[], None]]:
    """One call by our client, which spreads calls by itself; without its retries."""
    client = Client(",".join(f"127.0.0.1:{port}" for port in ports), retry=None, deadline_s=DEADLINE_S)

    def ask(value: float) -> str | None:
        try:
            answer = client.infer(model, {"x": np.full((1, 3), value, np.float32)})
        except ForwardpassError as error:
            return f"{type(error).__name__}: {error}"
        return wrong(answer["y"], value)

    return ask, client.close


def wrong(answer: np.ndarray, value: float) -> str | None:
    return None if (answer == 2 * value).all() else f"wrong answer {answer} to {value}"


def load(ask: Callable[[float], str | None], tally: Tally, stop: threading.Event) -> list[threading.Thread]:
    """Callers that together offer `CALLS_PER_S`, each at its own beat, whatever the answers take."""
    began = time.monotonic()

    def caller(number: int) -> None:
        for turn in itertools.count():
            due = began + (turn * CALLERS + number) / CALLS_PER_S
            if stop.wait(max(due - time.monotonic(), 0)):
                return
            asked = time.monotonic()
            failure = ask(float(turn % 1000))
            tally.add(failure, time.monotonic() - asked)

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(CALLERS)]
    for each in threads:
        each.start()
    return threads


@pytest.mark.timeout(120 + 30 * RESTARTS)
def test_rolling_restarts_fail_no_call(
    serve: Any, publish: Any, proxy: Callable[[str, Sequence[int]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    for way in WAYS:  # a model each, so that a replica's metrics tell who reaches it
        publish(way, 2.0)
    ports = [free_port(), free_port()]
    replicas = [serve(f"--grpc-port={port}", *FLAGS) for port in ports]
    for replica in replicas:
        replica.wait_for("serving")
    ways = {
        "nginx": through_proxy(proxy("nginx", ports), "nginx"),
        "haproxy": through_proxy(proxy("haproxy", ports), "haproxy"),
        "round_robin": by_round_robin(ports, "round_robin"),
    }
    tallies = {name: Tally() for name in ways}
    stop, threads = threading.Event(), []
    statuses = []
    began = time.monotonic()
    try:
        for name, (ask, _) in ways.items():
            threads += load(ask, tallies[name], stop)
        for turn in range(RESTARTS):
            index = turn % 2
            replicas[index].terminate()
            statuses.append(replicas[index].wait())
            replicas[index] = serve(f"--grpc-port={ports[index]}", *FLAGS)
            replicas[index].wait_for("serving")
            while not reached(replicas[index]) >= set(WAYS):
                time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for _, close in ways.values():
            close()
    seconds = time.monotonic() - began
    with capsys.disabled():
        said = [f"{RESTARTS} restarts in {seconds:.0f} s, {CALLS_PER_S} calls/s offered each way, no retries"]
        for name, tally in tallies.items():
            failed, worst_ms = sum(tally.failed.values()), tally.worst_s * 1e3
            said.append(f"  {name:<12}{tally.answered:>7} answered {failed:>4} failed   slowest {worst_ms:>5.0f} ms")
        sys.stdout.write("\n" + "\n".join(said) + "\n")
    assert statuses == [0] * RESTARTS
    for name, tally in tallies.items():
        assert not tally.failed, f"{name}: {dict(tally.failed.most_common(5))}"
        assert tally.answered > 50 * RESTARTS, name


def reached(replica: Any) -> set[str]:
    """The models that this replica has answered for."""
    answered = re.compile(r'infer_requests_total\{(?=[^}]*outcome="ok")[^}]*model="(\w+)"[^}]*\} [1-9]')
    return set(answered.findall(replica.metrics()))
