"""Which metric to scale replicas by: the HorizontalPodAutoscaler played against a bursty trace, by each of several.

    make autoscale                                          # from the recorded measurement; some minutes
    python tests/benchmark/autoscaling/measure.py --realtime > tests/benchmark/results/autoscaling-measured.json

Writes tables to standard output and to `results/autoscaling-….md`, and pictures to `results/autoscaling-….svg`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from arrivals import Trace, rates
from fleet import Metrics, Model
from simulate import Contender, Outcome, simulate

from forwardpass_server.scheduling.cost import Cost, CostCurve
from forwardpass_server.scheduling.policy import Limits

RESULTS = Path(__file__).parents[1] / "results"
MEASURED = RESULTS / "autoscaling-measured.json"
SLO_S = 0.25
TRACES = {
    "bursty": Trace(seconds=1500, base_per_s=600, rush=3.0, rush_rise_s=60),
    "flash": Trace(seconds=300, base_per_s=600, rush=4.0, rush_rise_s=15, seed=1),
}
"""`flash` is four times as many callers within 15 s, sooner than any replica can start: what is lost, and how long."""


def saturation(metrics: Metrics) -> float:
    """Ours."""
    return metrics.saturation


def cpu(metrics: Metrics) -> float:
    """Share of the core that a replica asks for."""
    return metrics.cpu


def in_flight(metrics: Metrics) -> float:
    """Requests under way."""
    return metrics.in_flight


CONTENDERS = (
    Contender(name="saturation_ratio, 0.6", metric=saturation, target=0.6),
    Contender(name="CPU, 70 %", metric=cpu, target=0.7),
    Contender(name="CPU, 90 %", metric=cpu, target=0.9),
    Contender(name="in flight, 16", metric=in_flight, target=16),
)


def model(measured: dict[str, Any]) -> Model:
    """What was measured, as the fleet takes it: its replicas can do what the real one could."""
    curve = CostCurve(tuple(Cost(rows, p50_s, p99_s) for rows, p50_s, p99_s in measured["curve"]))
    full = next(each for each in measured["loads"] if each["of_capacity"] == 1.0)
    capacity = measured["capacity_per_s"]
    limits = Limits(max_rows=curve.useful_rows(64), max_latency_s=SLO_S)
    largest = next(point for point in curve.points if point.rows == limits.max_rows)
    request_s = max(1 / capacity - largest.p50_s / largest.rows, 0.0)
    return Model(curve=curve, limits=limits, loop_s=full["loop_busy"] / capacity, request_s=request_s)


def table(outcomes: Sequence[Outcome]) -> str:
    """In Markdown."""
    rows = [
        "| scaled by, target | in time | worst minute | p99, ms | replica-minutes | most | changes | flaps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {each.name} | {each.in_time:.3%} | {each.worst_minute:.2%} | {each.p99_s * 1e3:.0f} "
        f"| {each.replica_minutes:.0f} | {each.peak} | {each.changes} | {each.flaps} |"
        for each in outcomes
    ]
    return "\n".join(rows)


def linearity(measured: dict[str, Any]) -> str:
    """What the metrics of a real server say at shares of its capacity, in Markdown."""
    rows = [
        "| offered / capacity | saturation_ratio | CPU, cores | instance busy | rows a run | mean wait, ms | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {each['of_capacity']:g} | {each['saturation']:.2f} | {each['cpu_cores']:.2f} | {each['instance_busy']:.2f} "
        f"| {each['mean_rows']:g} | {each['mean_wait_ms']:g} | {each['shed']:.0f} |"
        for each in measured["loads"]
    ]
    return "\n".join(rows)


def draw(outcomes: Sequence[Outcome], trace: Trace, path: Path) -> None:
    """Requests a second, replicas, and the share in time, over the minutes."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "forwardpass"
    from matplotlib import pyplot as plt

    figure, (load, replicas, in_time) = plt.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    minutes = [second / 60 for second in range(trace.seconds)]
    load.plot(minutes, rates(trace), color="0.4", linewidth=0.8)
    load.set_ylabel("requests/s")
    for outcome in outcomes:
        replicas.step(minutes, outcome.replicas, label=outcome.name, where="post")
        at = [minute + 0.5 for minute in range(len(outcome.in_time_by_minute))]
        in_time.plot(at, [100 * share for share in outcome.in_time_by_minute], marker=".")
    replicas.set_ylabel("replicas")
    replicas.legend(fontsize=8)
    in_time.axhline(99, color="0.4", linestyle="--", linewidth=0.8)
    in_time.set_ylim(min(95, *(100 * each.worst_minute for each in outcomes)) - 1, 100.5)
    in_time.set_ylabel(f"% within {SLO_S * 1e3:.0f} ms")
    in_time.set_xlabel("minutes")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def play(name: str, measured: dict[str, Any], out: Path) -> tuple[str, Outcome]:
    """Every contender against one trace; what to print, and how ours did."""
    trace, served = TRACES[name], model(measured)
    with ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(simulate, each, served, trace) for each in CONTENDERS]
        outcomes = [future.result() for future in futures]
    text = (
        f"{sum(outcomes[0].sent_by_minute):,} requests in {trace.seconds // 60} minutes; a replica can answer "
        f"{measured['capacity_per_s']:.0f} a second and takes {served.start_s:.0f} s to start; SLO "
        f"{SLO_S * 1e3:.0f} ms for 99 %. Measured on {measured['cores']} cores of {measured['cpu']}, "
        f"{measured['date'][:10]}, commit {measured['commit']}.\n\n"
        f"{table(outcomes)}\n\nThe same metrics on a real server, one core, "
        f"{measured['capacity_per_s']:.0f} requests a second at most:\n\n{linearity(measured)}\n"
    )
    (out / f"autoscaling-{name}.md").write_text(text)
    draw(outcomes, trace, out / f"autoscaling-{name}.svg")
    return text, outcomes[0]


def main() -> int:
    """Simulate, and write it down; 1 when our metric did not hold the SLO of the bursty trace, or flapped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("traces", nargs="*", default=[*TRACES], choices=[*TRACES, []], help="which; all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for autoscaling-….md and .svg")
    options = parser.parse_args()
    measured = json.loads(MEASURED.read_text())
    held = True
    for name in options.traces:
        text, ours = play(name, measured, options.out)
        kept = ours.in_time >= 0.99 and ours.flaps == 0
        held = held and (kept or name != "bursty")
        verdict = "SLO held, no flap" if kept else f"{ours.in_time:.2%} in time, {ours.flaps} flaps"
        sys.stdout.write(f"{name}\n\n{text}\n{name}, {ours.name}: {verdict}\n\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
