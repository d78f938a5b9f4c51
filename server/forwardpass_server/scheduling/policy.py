"""Who runs next, who is dropped, who is refused: pure functions of the waiting requests and the time.

Work-conserving: an instance that asks gets what is waiting, at once; batches grow because the instance was busy, not
because a timer ran. (A delay is possible, per model, and off unless its configuration asks for one.)

Order is the order of arrival. `next_action` reads the waiting requests in the order the queue keeps them, so another
order (deadline, priority) is a matter of how `RequestQueue` inserts, and nothing here changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from forwardpass_server.errors import DeadlineExpired, TooLarge
from forwardpass_server.scheduling.cost import CostCurve
from forwardpass_server.scheduling.request import Request

MAX_PASSED = 64
"""How many requests of other shapes are looked past for batch-mates of the first: bounds the work of one take."""


class QueueFull(Exception):
    """No room now; the text is what fills the queue. `RequestQueue` turns it into `Overloaded`, with a retry time."""


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

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_delay_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("max_requests", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(slots=True)
class Action:
    """What to do with the first `seen` waiting requests.

    Attributes:
        batch: run these together, in this order; empty when there is nothing to run now.
        dropped: never run these; their caller left or their deadline passed.
        passed: these stay, in this order, at the head of the queue.
        wait_s: ask again after this long; inf when only a new request can change anything. 0 when there is a batch.
    """

    batch: list[Request] = field(default_factory=list)
    dropped: list[Request] = field(default_factory=list)
    passed: list[Request] = field(default_factory=list)
    wait_s: float = 0.0

    @property
    def seen(self) -> int:
        """How many requests from the head are accounted for."""
        return len(self.batch) + len(self.dropped) + len(self.passed)


def next_action(waiting: Iterable[Request], now: float, limits: Limits) -> Action:
    """What an idle instance does now.

    The first live request always runs next; those behind it join while they fit and their shapes agree. Joining stops
    at the first one that does not fit, so requests of one shape are never reordered.

    Args:
        waiting: the queue, head first.
        now: `time.monotonic()` seconds.
        limits: those of the version.
    """
    action = Action()
    batch, dropped, passed = action.batch, action.dropped, action.passed
    max_rows = limits.max_rows
    rows = 0
    key = None
    full = False
    for request in waiting:
        if request.responder.cancelled or request.deadline <= now:
            dropped.append(request)
        elif not batch:
            batch.append(request)
            rows = request.rows
            key = request.merge_key
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
            batch.append(request)
            rows += request.rows
        else:
            full = True
            break
    if not batch:
        action.wait_s = inf
    elif limits.max_delay_s and not full and rows < max_rows:
        due = min(request.timeline.queued_ns for request in batch) * 1e-9 + limits.max_delay_s
        # No delay is worth a deadline: who could not wait that long is run now.
        if now < due < min(request.deadline for request in batch):
            return Action(wait_s=due - now)
    return action


def admit(request: Request, now: float, waiting: int, waiting_bytes: int, limits: Limits) -> None:
    """Let a request into the queue, or say why not.

    Args:
        request: the newcomer.
        now: `time.monotonic()` seconds.
        waiting: requests in the queue.
        waiting_bytes: bytes of their input tensors.
        limits: those of the version.

    Raises:
        DeadlineExpired: nobody wants its answer any more.
        TooLarge: it would not fit into an empty queue.
        QueueFull: no room now.
    """
    if request.deadline <= now:
        raise DeadlineExpired(
            f"the deadline passed {(now - request.deadline) * 1e3:.0f} ms before the request could wait"
        )
    if request.nbytes > limits.max_bytes:
        raise TooLarge(
            f"{request.nbytes} bytes of input tensors are more than the whole queue may hold ({limits.max_bytes} bytes)"
        )
    if waiting >= limits.max_requests:
        raise QueueFull(f"{waiting} requests")
    if waiting_bytes + request.nbytes > limits.max_bytes:
        raise QueueFull(f"{waiting_bytes} of {limits.max_bytes} bytes")


def retry_after_s(waiting_rows: int, limits: Limits, cost: CostCurve, instances: int) -> float:
    """When a refused caller may try again, in seconds: when half of what waits has run, and not under a millisecond.

    Half, because callers who all come back when the queue is empty would find it full again, and idle before.
    """
    return max(cost.clear_s(waiting_rows, limits.max_rows) / (2 * instances), 1e-3)
