"""One checked request on its way through the queue, and the one who waits for its answer."""

from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Protocol, TypeAlias

import numpy as np

from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.scheduling.lifeline import Lifeline
from forwardpass_server.scheduling.sequence import Position

Array: TypeAlias = np.ndarray
Inputs: TypeAlias = Sequence[Array | None]
"""The inputs of a model in the order of its signature; None for an optional one that was not given."""


Rank: TypeAlias = tuple[int, bool, float]
"""Priority, whether it waited too long and was put behind the others of it, and what its deadline counts as."""


class Responder(Protocol):
    """Takes the answer of one request. Exactly one of `succeed` and `fail` is called, once, on any thread.

    `fail` is also called for a caller who has left (`CallCancelled`), so whatever the request holds is let go there.
    An exception out of `succeed` counts as "not answered": `fail` follows with that exception.
    """

    @property
    def cancelled(self) -> bool:
        """The caller has left; read often, on any thread, so it must be cheap."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if the caller leaves before its answer; at once if it has left. Loop thread."""

    def succeed(self, outputs: Sequence[Array], request: "Request") -> None:
        """The outputs that were asked for, in the order of `request.outputs`. The arrays belong to the responder and
        are never written to again, but several requests may hold views of one buffer: do not write into them."""

    def fail(self, error: Exception) -> None:
        """Why there is no answer; an error of `forwardpass_server.errors`, or a bug of ours."""


class Request:
    """A request that passed `Signature.check`.

    Attributes:
        inputs: arrays by index of the signature's inputs, first axis = rows for a batched model.
        rows: rows it adds to a batch; 0 for an empty one, 1 for a model that is not batched.
        nbytes: bytes of its input tensors, which count against the queue's limit.
        outputs: indices of the signature's outputs that the caller wants, in its order.
        deadline: `time.monotonic()` seconds after which nobody wants the answer; inf for never.
        priority: as the caller gave it, 0 when it did not.
        timeout_s: as the caller gave it, in seconds; inf when it did not.
        wait_until: `time.monotonic()` seconds until when it may wait for its run; set by the queue.
        responder: who gets the answer.
        timeline: its stamps.
        position: where it stands in its sequence; None for one of its own.
        lifeline: of the stream that it came by; None for a unary one.
        merge_key: requests may share a run only if theirs are equal; set by the scheduler.
        rank: where it stands in the queue, set there; smaller runs first.
    """

    __slots__ = (
        "deadline",
        "inputs",
        "lifeline",
        "merge_key",
        "nbytes",
        "outputs",
        "position",
        "priority",
        "rank",
        "responder",
        "rows",
        "timeline",
        "timeout_s",
        "wait_until",
    )

    def __init__(
        self,
        inputs: Inputs,
        *,
        rows: int,
        nbytes: int,
        outputs: tuple[int, ...],
        responder: Responder,
        timeline: Timeline,
        deadline: float = inf,
        priority: int = 0,
        timeout_s: float = inf,
        position: Position | None = None,
        lifeline: Lifeline | None = None,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.nbytes = nbytes
        self.outputs = outputs
        self.deadline = deadline
        self.priority = priority
        self.responder = responder
        self.timeline = timeline
        self.position = position
        self.lifeline = lifeline
        self.merge_key: Hashable = None
        self.rank: Rank = (0, False, inf)
        self.timeout_s = timeout_s
        self.wait_until = inf
