"""Who runs next, who is dropped, who is refused: pure functions of the waiting requests, the cost of runs and the time.

Work-conserving: an instance that asks gets what is waiting, at once; batches grow because the instance was busy, not
because a timer ran. (A delay is possible, per model, and off unless its configuration asks for one.)

Order is priority, then the earliest deadline, then arrival. A batch grows while it raises the rows a second, while the
earliest deadline in it still holds, and while shapes agree. What cannot finish in time is told so when it comes, not
when it is too late: an answer after its deadline costs a run and pleases nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from forwardpass_server.errors import DeadlineExpired, TooLarge
from forwardpass_server.scheduling.cost import ServedCost
from forwardpass_server.scheduling.queue_policy import QueuePolicies
from forwardpass_server.scheduling.request import Rank, Request

PATIENCE_S = 30.0
"""A request without a deadline is ordered as if it had this one after its arrival, in seconds: never starved, never
dropped, never refused for it."""
MAX_PASSED = 64
"""How many requests of other shapes are looked past for batch-mates of the first: bounds the work of one take."""
WAIT_MARGIN = 1.25
"""The expected wait is taken this many times as long when a request is admitted: a wait is a sum of runs, each of which
may take longer, while one refused too many costs nothing as long as the queue does not run dry."""


class QueueFull(Exception):
    """No room now; the text says what is full. `RequestQueue` turns it into `Overloaded`, with a retry time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How one version may be scheduled."""

    max_rows: int = 64
    """Rows of one run; 0 runs every request alone (a model that is not batched)."""
    max_requests: int = 1024
    """Requests that may wait."""
    max_bytes: int = 256 * 2**20
    """Bytes of input tensors that may wait."""
    max_delay_s: float = 0.0
    """How long a batch that is not full may wait for mates, in seconds; 0 takes at once."""
    enough_rows: int = 0
    """Rows with which a batch waits no longer; 0: only when it is full."""
    max_latency_s: float = inf
    """How long a request may take from its arrival, in seconds: the deadline of those with none, or a later one."""
    shortest_run_s: float = 0.0
    """No run is shorter, in seconds: a deadline nearer than this cannot be met. 0 where that depends on the values."""
    priorities: int = 0
    """Priorities go from 1, the first, to this; 0 when all are alike."""
    default_priority: int = 0
    """Of requests that state none, or one that does not exist."""
    policies: QueuePolicies = field(default_factory=QueuePolicies)
    """How long requests may wait, and how many, by priority."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_delay_s", "enough_rows", "shortest_run_s", "priorities", "default_priority"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("max_requests", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.max_latency_s > 0:
            raise ValueError(f"max_latency_s is {self.max_latency_s}; it must be above 0")
        if self.default_priority > self.priorities:
            raise ValueError(f"default_priority is {self.default_priority}; there are {self.priorities} priorities")


@dataclass(slots=True)
class Action:
    """What to do with the first `seen` waiting requests.

    Attributes:
        batch: run these together, in this order; empty when there is nothing to run now.
        rows: of the batch.
        dropped: never run these; their caller left or their deadline passed, or certainly will.
        passed: these stay, in this order, at the head of the queue.
        wait_s: ask again after this long; inf when only a new request can change anything. 0 when there is a batch.
    """

    batch: list[Request] = field(default_factory=list)
    rows: int = 0
    dropped: list[Request] = field(default_factory=list)
    passed: list[Request] = field(default_factory=list)
    wait_s: float = 0.0

    @property
    def seen(self) -> int:
        """How many requests from the head are accounted for."""
        return len(self.batch) + len(self.dropped) + len(self.passed)


def rank(request: Request, now: float, limits: Limits) -> Rank:
    """Where a request stands: smaller runs first, equal ones in the order of their arrival.

    Args:
        request: the newcomer.
        now: `time.monotonic()` seconds, its arrival.
        limits: those of the version.
    """
    due = now + PATIENCE_S
    return (priority_of(request, limits), False, due if due < request.deadline else request.deadline)


def priority_of(request: Request, limits: Limits) -> int:
    """Its own, where there is such a one."""
    return request.priority if 0 < request.priority <= limits.priorities else limits.default_priority


def give_time(request: Request, now: float, limits: Limits) -> None:
    """Set until when a request may wait, and shorten its deadline, by what it asks for and what it may.

    Where the version's policy has a timeout, a request's own one counts only if the policy lets it, and only if it is
    shorter; it is then, as the policy's, about the wait. Elsewhere it is a deadline, counted from the arrival.

    Args:
        request: the newcomer.
        now: `time.monotonic()` seconds, its arrival.
        limits: those of the version.
    """
    policy = limits.policies.of(priority_of(request, limits))
    if policy.timeout_s == inf:
        request.deadline = min(request.deadline, now + request.timeout_s)
    else:
        asked_s = request.timeout_s if policy.callers_may_shorten else inf
        request.wait_until = now + min(policy.timeout_s, asked_s)


def delayed(waiting: Sequence[Request], now: float, limits: Limits) -> list[Request]:
    """Those who have waited too long and whose policy lets them run after all others of their priority.

    Args:
        waiting: the queue.
        now: `time.monotonic()` seconds.
        limits: those of the version.
    """
    return [
        request
        for request in waiting
        if request.wait_until <= now and not request.rank[1] and limits.policies.of(request.rank[0]).delays
    ]


def next_action(waiting: Sequence[Request], now: float, limits: Limits, cost: ServedCost) -> Action:
    """What an idle instance does now.

    The first request that can still be answered in time runs next; those behind it join while they fit and their
    shapes agree. Joining stops at the first one that does not fit, so requests of one shape are never reordered.

    A request that would probably, not certainly, be late is run if nobody waits behind it, and dropped otherwise: its
    run would make the next one late as well.

    Args:
        waiting: the queue in the order of `rank`.
        now: `time.monotonic()` seconds.
        limits: those of the version.
        cost: what its runs cost.
    """
    action = Action()
    batch, dropped, passed = action.batch, action.dropped, action.passed
    max_rows = limits.max_rows
    shortest_s = limits.shortest_run_s
    rows = 0
    key = None
    full = False
    left_s = inf  # until the earliest deadline in the batch
    longest_s = cost.seconds(max_rows)
    for number, request in enumerate(waiting, 1):
        own_left_s = request.deadline - now
        if own_left_s <= shortest_s or request.wait_until <= now or request.responder.cancelled:
            dropped.append(request)
        elif not batch:
            if own_left_s < longest_s and own_left_s < cost.seconds(request.rows) and number < len(waiting):
                dropped.append(request)
                continue
            batch.append(request)
            rows = request.rows
            key = request.merge_key
            left_s = own_left_s
            # Nobody joins an empty request: its share of the outputs could not be told from the others'.
            if rows == 0 or rows >= max_rows:
                full = True
                break
        elif request.merge_key != key or request.rows == 0:
            passed.append(request)
            if len(passed) == MAX_PASSED:
                full = True
                break
        elif rows + request.rows <= max_rows:
            left_s = min(left_s, own_left_s)
            if left_s < longest_s and cost.seconds(rows + request.rows) > left_s:
                full = True
                break
            batch.append(request)
            rows += request.rows
        else:
            full = True
            break
    action.rows = rows
    if not batch:
        action.wait_s = inf
    elif limits.max_delay_s and not full and rows < (limits.enough_rows or max_rows):
        due = min(request.timeline.queued_ns for request in batch) * 1e-9 + limits.max_delay_s
        # No delay is worth a deadline: who could not wait that long and run is run now.
        if now < due < min(request.deadline for request in batch) - cost.seconds(rows):
            return Action(wait_s=due - now)
    return action


@dataclass(frozen=True, slots=True)
class Load:
    """What stands before a newcomer.

    Attributes:
        requests: that wait, all of them.
        alike: those of them that have the newcomer's priority.
        nbytes: of their input tensors.
        rows_ahead: rows of those that will run before it.
        behind: those that wait and will run after it, in their order.
        busy_s: until an instance is free, as expected, in seconds.
        instances: that run.
    """

    requests: int
    nbytes: int
    rows_ahead: int = 0
    behind: Sequence[Request] = ()
    busy_s: float = 0.0
    instances: int = 1
    alike: int = 0


def admit(rows: int, nbytes: int, deadline: float, now: float, load: Load, limits: Limits, cost: ServedCost) -> None:
    """Let a request into the queue, or say why not.

    Args:
        rows, nbytes: of the newcomer's inputs.
        deadline: when its answer is worth nothing any more, in `time.monotonic()` seconds.
        now: the time, likewise.
        load: what stands before it.
        limits: those of the version.
        cost: what its runs cost.

    Raises:
        DeadlineExpired: nobody wants its answer any more, or it could not come in time even now.
        TooLarge: it would not fit into an empty queue.
        QueueFull: no room now; or it, or one that waits, would be late by the time of its turn.
    """
    left_s = deadline - now
    if left_s <= limits.shortest_run_s:
        raise DeadlineExpired(_too_late(left_s, limits.shortest_run_s))
    if nbytes > limits.max_bytes:
        raise TooLarge(
            f"{nbytes} bytes of input tensors are more than the whole queue may hold ({limits.max_bytes} bytes)"
        )
    if load.requests >= limits.max_requests:
        raise QueueFull(f"is full ({load.requests} requests)")
    if load.nbytes + nbytes > limits.max_bytes:
        raise QueueFull(f"is full ({load.nbytes} of {limits.max_bytes} bytes)")
    if not cost.known or not (load.requests or load.busy_s):
        return
    if left_s < inf:
        done_s = finish_s(rows, load.rows_ahead, load, limits, cost)
        if done_s > left_s:
            raise QueueFull(
                f"({load.requests} requests) leaves no time: the answer would come in {done_s * 1e3:.0f} ms, and the "
                f"deadline is in {left_s * 1e3:.0f} ms"
            )
    ahead = load.rows_ahead + rows
    for other in load.behind:
        # Whoever was admitted is not pushed past its deadline by one in a greater hurry.
        other_left_s = other.deadline - now
        if other_left_s < inf and finish_s(other.rows, ahead, load, limits, cost) > other_left_s:
            raise QueueFull(f"({load.requests} requests) has promised its time to others")
        ahead += other.rows


def check_priority(request: Request, load: Load, limits: Limits) -> None:
    """Let a ranked request in by the policy of its priority, or say why not.

    Raises:
        QueueFull: as many of its priority wait as may.
    """
    most = limits.policies.of(request.rank[0]).max_requests
    if most is not None and load.alike >= most:
        raise QueueFull(f"is full for priority {request.rank[0]} ({load.alike} requests)")


def finish_s(rows: int, rows_ahead: int, load: Load, limits: Limits, cost: ServedCost) -> float:
    """How long until a request is answered, in seconds: runs in progress, full batches before its own, its own.

    Args:
        rows: of the request.
        rows_ahead: that run before it or with it.
        load: the instances.
        limits, cost: of the version.
    """
    batch_rows = max(limits.max_rows, 1)
    batches, beside = divmod(rows_ahead, batch_rows)
    wait_s = load.busy_s + batches * cost.seconds(batch_rows) / load.instances
    return wait_s * WAIT_MARGIN + cost.seconds(max(min(beside + rows, batch_rows), rows))


def seconds_per_row(limits: Limits, cost: ServedCost) -> float:
    """What a row costs an instance that has enough to do, in seconds; 0 while nothing was measured.

    In the largest batch allowed; or, where a latency is promised, in the largest one that keeps it: a request that
    comes just after such a batch was taken waits for it, and then for its own.
    """
    rows = max(limits.max_rows, 1)
    while rows > 1 and 2 * cost.seconds(rows) > limits.max_latency_s:
        rows //= 2
    return cost.seconds(rows) / rows


def retry_after_s(waiting_rows: int, limits: Limits, cost: ServedCost, instances: int) -> float:
    """When a refused caller may try again, in seconds: when half of what waits has run, and not under a millisecond.

    Half, because callers who all come back when the queue is empty would find it full again, and idle before.
    """
    batch_rows = max(limits.max_rows, 1)
    full, rest = divmod(waiting_rows, batch_rows)
    clear_s = full * cost.seconds(batch_rows) + (cost.seconds(rest) if rest else 0.0)
    return max(clear_s / (2 * instances), 1e-3)


def _too_late(left_s: float, shortest_s: float) -> str:
    if left_s <= 0:
        return f"the deadline passed {-left_s * 1e3:.0f} ms before the request could wait"
    return f"the deadline is in {left_s * 1e3:.3g} ms, and one run of the model takes {shortest_s * 1e3:.3g} ms"
