"""The HorizontalPodAutoscaler of Kubernetes (autoscaling/v2), as its documentation states the algorithm.

    desired = ceil(replicas that report · mean of their metric / target), unless within 10 % of the target

Newcomers that report nothing yet count as 0 while scaling up and as at the target while scaling down; the largest wish
of the last `stabilisation` seconds holds against scaling down; and a policy bounds each step. What is simplified: one
metric, one policy for each direction.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SYNC_S = 15.0
"""How often it decides (--horizontal-pod-autoscaler-sync-period)."""
TOLERANCE = 0.1
"""--horizontal-pod-autoscaler-tolerance."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How it may scale; the same numbers as in the manifests."""

    target: float
    """Mean over the replicas."""
    min_replicas: int = 2
    max_replicas: int = 20
    up_percent: int = 100
    up_pods: int = 4
    """A step up: at most the larger of these two, each `SYNC_S` seconds."""
    down_percent: int = 10
    down_period_s: float = 60.0
    """A step down, and how far apart they are."""
    down_stabilisation_s: float = 300.0


@dataclass
class Autoscaler:
    """One, deciding every `SYNC_S` seconds."""

    behaviour: Behaviour
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)
    _downs: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now_s: float, replicas: int, reported: Sequence[float]) -> int:
        """How many replicas there shall be.

        Args:
            now_s: the time.
            replicas: that there are, ready or not.
            reported: the metric of those that have reported one; at most `replicas`.
        """
        rules = self.behaviour
        wish = min(max(_wish(replicas, reported, rules.target), rules.min_replicas), rules.max_replicas)
        wishes = self._wishes
        wishes.append((now_s, wish))
        while wishes[0][0] < now_s - rules.down_stabilisation_s:
            wishes.popleft()
        if wish > replicas:
            return min(wish, replicas + max(math.ceil(replicas * rules.up_percent / 100), rules.up_pods))
        held = min(max(each for _, each in wishes), replicas)
        if held == replicas:
            return replicas
        downs = self._downs
        while downs and downs[0][0] <= now_s - rules.down_period_s:
            downs.popleft()
        began = replicas + sum(count for _, count in downs)
        lowest = math.floor(began * (1 - rules.down_percent / 100))
        allowed = min(max(held, lowest), replicas)
        if allowed < replicas:
            downs.append((now_s, replicas - allowed))
        return allowed


def _wish(replicas: int, reported: Sequence[float], target: float) -> int:
    if not reported:
        return replicas
    ratio = sum(reported) / len(reported) / target
    missing = replicas - len(reported)
    if not missing:
        return replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * replicas)
    filled = [*reported, *[target if ratio < 1 else 0.0] * missing]
    careful = sum(filled) / len(filled) / target
    if abs(careful - 1) <= TOLERANCE or (ratio < 1) != (careful < 1):
        return replicas
    wish = math.ceil(careful * len(filled))
    return replicas if (careful < 1 and wish > replicas) or (careful > 1 and wish < replicas) else wish
