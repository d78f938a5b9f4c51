"""Tells gRPC's core to read the server's sockets on the thread that polls the queue, and on no thread of its own.

By default the core of grpcio 1.85 has a pool of threads (its "event engine") that read, and wake our loop by a futex:
1.3 of those and 0.9 `recvmsg` a call, where a loop that reads by itself needs 0.04 and 0.2. On one core the pool costs
an echo 56 µs a call instead of 42, and the drained rounds of `loop` another 25 (32 callers, one EPYC core).

It is an "experiment" by name only: it is how every gRPC server worked until 2024. `tests/contract` fails when a grpcio
does not know it any more; a core that does not know it says so in one line and serves as it does by default.
"""

from collections.abc import MutableMapping

VARIABLE = "GRPC_EXPERIMENTS"
CHOICE = "-event_engine_listener"


def choose(environment: MutableMapping[str, str]) -> None:
    """Make the choice, unless the environment has made its own. Before gRPC is imported: it reads this once."""
    environment.setdefault(VARIABLE, CHOICE)
