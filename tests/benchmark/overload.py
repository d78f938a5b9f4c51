"""What a server does with more than it can answer: goodput, and how refusals are said."""

from collections.abc import Mapping
from typing import Any

from table import Figure

GOODPUT = {
    ("resnet18", 2): 0.95,
    ("resnet18", 5): 0.95,
    ("resnet18", 10): 0.85,
    ("mnist_cnn", 0.9): 0.95,
}
"""Issue 4's bounds: of the best at any rate; at 0.9 times capacity, of what was offered."""

MAX_LAG_S = 0.5


def figures(
    model: str,
    deadline_ms: float,
    capacity: float,
    found: Mapping[float, Mapping[str, Any]],
    after: Mapping[str, Any],
) -> list[Figure]:
    """The figures of an open loop at multiples of `capacity`, and of half of it right `after` an overload.

    Args:
        capacity: rows a second in a closed loop.
        found: what `open_loop` printed, by the multiple offered.
    """
    best = max(each["in_time_per_s"] for each in found.values())
    shown = [
        Figure(
            name=f"{model}, {deadline_ms:g} ms, {times:g} x capacity",
            value=each["in_time_per_s"],
            unit="in time/s",
            ratio=each["in_time_per_s"] / (best if times > 1 else each["offered_per_s"]),
            of="the best at any rate" if times > 1 else "what was offered",
            at_least=GOODPUT.get((model, times)),
            more={
                "offered_per_s": each["offered_per_s"],
                "of_capacity": each["in_time_per_s"] / capacity,
                "accepted_p99_ms": each["accepted_p99_ms"],
                "refused_p50_ms": each["refused_p50_ms"],
                "generator_lag_s": each["generator_lag_s"],
                **each["codes"],
            },
        )
        for times, each in found.items()
    ]
    # A generator that is itself late shows its own lateness, since latency counts from when a call was due.
    over = [each for times, each in found.items() if times > 1 and each["generator_lag_s"] <= MAX_LAG_S]
    refusals = [each["refused_p50_ms"] for each in over if each["refused_p50_ms"] >= 0]
    wrong = sum(each["codes"].get(code, 0) for each in found.values() for code in ("CANCELLED", "UNAVAILABLE"))
    left = sum(count for code, count in after["codes"].items() if code != "OK")
    name = f"{model} overloaded"
    return [
        *shown,
        # Without a refusal there is nothing to judge: calls that cannot be answered were left to expire.
        *(
            [Figure(name=f"{name}: slowest median refusal", value=max(refusals), unit="ms", at_most=5)]
            if refusals
            else []
        ),
        Figure(name=f"{name}: CANCELLED or UNAVAILABLE", value=wrong, unit="calls", at_most=0),
        Figure(
            name=f"{name}: slowest p99 of the accepted",
            value=max(each["accepted_p99_ms"] for each in over),
            unit="ms",
            at_most=deadline_ms,
        ),
        Figure(
            name=f"{name}: refused in the second after, at 0.5 x",
            value=left,
            unit="calls",
            at_most=0,
            more={"offered_per_s": after["offered_per_s"]},
        ),
    ]
