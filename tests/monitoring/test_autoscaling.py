"""The autoscaling simulation: its parts behave as what they play, and its rule is the one in the manifests."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/benchmark/autoscaling"))

from arrivals import Trace, arrivals, rates  # noqa: E402 - beside the simulation
from fleet import Fleet, Model  # noqa: E402
from hpa import Autoscaler, Behaviour  # noqa: E402
from simulate import Contender, simulate  # noqa: E402

from forwardpass_server.scheduling.cost import Cost, CostCurve  # noqa: E402
from forwardpass_server.scheduling.policy import Limits  # noqa: E402

# 80 ms, and 8 ms a row: 11 a second one by one, 108 a second by 64.
CURVE = CostCurve(tuple(Cost(rows, 0.080 + 0.008 * rows, 1.0) for rows in (1, 2, 4, 8, 16, 32, 64)))
MODEL = Model(curve=CURVE, limits=Limits(max_rows=64, max_latency_s=2.0), loop_s=0.0001)
CAPACITY = 64 / 0.592


def scaler(**changes: Any) -> Autoscaler:
    return Autoscaler(Behaviour(**{"target": 0.6, **changes}))


def test_replicas_follow_the_mean_and_a_tenth_is_tolerated() -> None:
    assert scaler().decide(0, 4, [0.9] * 4) == 6
    assert scaler().decide(0, 4, [0.65] * 4) == 4
    assert scaler().decide(0, 4, [0.67] * 4) == 5
    assert scaler().decide(0, 4, []) == 4, "nothing known, nothing done"


def test_newcomers_that_do_not_report_are_not_asked_for_again() -> None:
    assert scaler().decide(0, 8, [1.2] * 4) == 8, "four are on their way, and will be enough"
    assert scaler().decide(0, 5, [1.2] * 4) == 8
    careful = scaler(down_percent=100, down_stabilisation_s=0)
    assert careful.decide(0, 8, [0.1] * 4) == 5, "taken to be as busy as they should be; without that it would be 2"


def test_a_step_up_is_bounded_and_a_step_down_waits() -> None:
    assert scaler().decide(0, 2, [30.0] * 2) == 6
    assert scaler(max_replicas=5).decide(0, 2, [30.0] * 2) == 5
    down = scaler()
    assert down.decide(0, 10, [0.6] * 10) == 10
    seen = [down.decide(float(at), 10, [0.06] * 10) for at in range(15, 301, 15)]
    assert set(seen) == {10}, "the wish of five minutes ago still holds"
    replicas, had = 10, []
    for at in range(315, 615, 15):
        replicas = down.decide(float(at), replicas, [0.06] * replicas)
        had.append(replicas)
    assert had[0] == 9
    assert had[3] == 9, "a tenth a minute"
    assert had[-1] == 5
    assert scaler().decide(0, 2, [0.0, 0.0]) == 2, "never below the minimum"


def test_arrivals_are_as_many_as_their_rate_says_and_bursty() -> None:
    trace = Trace(seconds=600, base_per_s=100)
    found = arrivals(trace)
    assert len(found) == pytest.approx(rates(trace).sum(), rel=0.05)
    assert (np.diff(found) >= 0).all()
    counts = np.bincount(found.astype(int), minlength=600)[:600]
    spread = ((counts - rates(trace)) ** 2).mean() / rates(trace).mean()
    assert spread > 2, "more uneven than by chance alone, which would be 1"


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.5])
def test_saturation_is_what_is_asked_and_cpu_is_not(share: float) -> None:
    fleet = Fleet(MODEL, 1, 40)
    rng = np.random.default_rng(0)
    for second in range(1, 41):
        coming = np.sort(second - 1 + rng.random(rng.poisson(share * CAPACITY)))
        fleet.advance(float(second), coming)
        fleet.sample()
    (seen,) = fleet.scrape()
    assert seen.saturation == pytest.approx(share, rel=0.15)
    assert seen.cpu > 0.9, "an instance that batches is busy long before it is full"


def test_the_rule_holds_the_slo_through_a_rush_and_does_not_flap() -> None:
    trace = Trace(seconds=300, base_per_s=70, rush=2.5, rush_rise_s=30)
    ours = simulate(Contender(name="ours", metric=lambda seen: seen.saturation, target=0.6), MODEL, trace)
    assert ours.in_time >= 0.99
    assert ours.flaps == 0
    assert ours.peak > 2
    by_cpu = simulate(Contender(name="cpu", metric=lambda seen: seen.cpu, target=0.7), MODEL, trace)
    assert by_cpu.replica_minutes > 2 * ours.replica_minutes


def test_the_manifests_have_the_rule_that_was_simulated() -> None:
    (found,) = [
        each
        for file in (ROOT / "k8s/components/autoscaling-hpa").glob("*.yaml")
        for each in yaml.safe_load_all(file.read_text())
        if each["kind"] == "HorizontalPodAutoscaler"
    ]
    rules = Behaviour(target=0.6)
    (metric,) = found["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "saturation_ratio"
    assert float(metric["pods"]["target"]["averageValue"].removesuffix("m")) / 1000 == rules.target
    up, down = found["spec"]["behavior"]["scaleUp"], found["spec"]["behavior"]["scaleDown"]
    assert up.get("stabilizationWindowSeconds", 0) == 0
    assert {(each["type"], each["value"], each["periodSeconds"]) for each in up["policies"]} == {
        ("Percent", rules.up_percent, 15),
        ("Pods", rules.up_pods, 15),
    }
    assert up.get("selectPolicy", "Max") == "Max"
    assert down["stabilizationWindowSeconds"] == rules.down_stabilisation_s
    assert [(each["type"], each["value"], each["periodSeconds"]) for each in down["policies"]] == [
        ("Percent", rules.down_percent, rules.down_period_s)
    ]
