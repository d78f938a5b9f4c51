"""The scheduler of a version that keeps sequences; stands where a `scheduler.Scheduler` stands, and has one inside.

    submit ─▶ sequence (line, slot) ─▶ Scheduler (queue, policy, batch, run) ─▶ state kept ─▶ the next in line

The one thing to know: of each sequence at most one request is in the scheduler inside, so whatever that does with
requests (merge them, order them, drop them, run a failed batch again in halves) cannot mix up a sequence.

Threads: requests come and callers leave on the loop thread; answers come where the model runs; a thread of this
version's own watches the clock, and has the loop end what was idle for too long. One lock guards the sequences; under
it nobody is called.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, abc, deque
from collections.abc import Callable
from functools import partial
from math import inf

from forwardpass_server.errors import (
    CallCancelled,
    DeadlineExpired,
    ForwardpassError,
    InvalidRequest,
    Overloaded,
    Stopping,
    TooLarge,
)
from forwardpass_server.observe.sequences import SequenceCounts
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.scheduling.lifeline import Lifeline
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.request import Array, Request
from forwardpass_server.scheduling.runner import GIVING_UP_S
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.scheduling.sequence import (
    Ended,
    Member,
    Next,
    NotStarted,
    Position,
    Sequence,
    SequenceId,
    Sequences,
)
from forwardpass_server.scheduling.stateful import StatefulModel

log = logging.getLogger(__name__)

RETRY_AFTER_S = 0.05
"""When a refused caller may try again: a slot is free when its client ends a sequence, which nobody can foresee."""

TENDED_S = 1.0
"""A loop that was asked to tend and has not after this long, in seconds, is asked again; it may have ended since."""


class Withdrawn(Exception):
    """A sequence cannot start in this version any more: lease again what serves in its place. No caller sees it."""


class SequenceScheduler:
    """Schedules one version that keeps sequences.

    Args:
        model: its name, for callers.
        stateful: what runs.
        scheduler: takes one request of each sequence; runs `stateful.run`.
        sequences: with as many slots as `stateful` has states for.
        on_loop: runs something soon on the loop thread; raises RuntimeError when the loop has ended. Any thread.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        model: str,
        stateful: StatefulModel,
        scheduler: Scheduler,
        sequences: Sequences[Rider],
        *,
        on_loop: Callable[[Callable[[], None]], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = scheduler.name
        self._model = model
        self._stateful = stateful
        self._scheduler = scheduler
        self._sequences = sequences
        self._on_loop = on_loop
        self._clock_ns = clock_ns
        self._bytes = 0  # of the input tensors of requests in lines
        self._first_deadline = inf  # of theirs
        self._refused: Counter[str] = Counter()
        self._withdrawn = False
        self._end_all_at = inf
        self._on_empty: Callable[[], None] | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._due_changed = threading.Condition(self._lock)
        self._tended = threading.Condition(self._lock)
        self._empty = threading.Condition(self._lock)
        self._wakes_at = inf
        self._thread = threading.Thread(target=self._watch, name=f"{self.name}-sequences", daemon=True)
        self._thread.start()

    @property
    def statistics(self) -> VersionStatistics:
        """The version's account."""
        return self._scheduler.statistics

    @property
    def limits(self) -> Limits:
        """How it schedules."""
        return self._scheduler.limits

    @property
    def depth(self) -> int:
        """Requests that wait: in the lines of their sequences, or to be batched."""
        return self._sequences.waiting + self._scheduler.depth

    @property
    def queue_bytes(self) -> int:
        """Bytes of their input tensors."""
        return self._bytes + self._scheduler.queue_bytes

    @property
    def inflight(self) -> int:
        """Requests admitted and not yet answered."""
        return self._sequences.waiting + self._scheduler.inflight

    @property
    def instances(self) -> int:
        """Threads, or the loop, that run it."""
        return self._scheduler.instances

    @property
    def seconds_per_row(self) -> float:
        """See `Scheduler.seconds_per_row`."""
        return self._scheduler.seconds_per_row

    @property
    def slo_s(self) -> float:
        """See `Scheduler.slo_s`."""
        return self._scheduler.slo_s

    @property
    def sequence_counts(self) -> SequenceCounts:
        """For the metrics page. Any thread."""
        with self._lock:
            sequences = self._sequences
            return SequenceCounts(
                slots=sequences.slots,
                active=sequences.active,
                waiting=sequences.slotless,
                started=sequences.started,
                ended={why.value: sequences.ended[why] for why in Ended},
                refused={reason: self._refused[reason] for reason in ("no_id", "not_started", "no_room", "rows")},
            )

    @property
    def idle_s(self) -> float:
        """How long a sequence may be idle, in seconds."""
        return self._sequences.idle_s

    @property
    def slots(self) -> int:
        """Sequences that may be active at a time."""
        return self._sequences.slots

    def keeps(self, sequence_id: SequenceId) -> bool:
        """Whether a sequence of that id goes on here. Any thread."""
        with self._lock:
            sequence = self._sequences.get(sequence_id)
            return sequence is not None and sequence.open

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn in its sequence. Loop thread; never blocks.

        Raises:
            InvalidRequest: no sequence, or none that was started; more than one row.
            Overloaded, TooLarge: no room to wait; counted, and the responder will not be called.
            Withdrawn: it would start a sequence here, and must start it elsewhere.
        """
        try:
            member = self._member(request)
            with self._lock:
                then = self._admit(member)
        except ForwardpassError as error:
            self.statistics.refused(error, request.timeline.received_ns)
            raise
        self._carry_out(then)
        request.responder.on_cancel(member.left)

    def withdraw(self, limit_s: float, on_empty: Callable[[], None] | None = None) -> None:
        """Start no further sequence, and end those that are left after a time. Any thread; again to shorten it.

        Args:
            limit_s: how long sequences may go on, in seconds.
            on_empty: called once, on any thread, when none is left.
        """
        with self._lock:
            self._withdrawn = True
            self._on_empty = on_empty or self._on_empty
            self._end_all_at = min(self._end_all_at, self._now() + limit_s)
            self._due_changed.notify()
        self._carry_out(Next[Rider]())

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing runs; True when it came to that within `timeout_s` seconds."""
        until = time.monotonic() + timeout_s
        with self._lock:
            if not self._empty.wait_for(lambda: not self._sequences.waiting, timeout_s):
                return False
        return self._scheduler.drain(max(until - time.monotonic(), 0.0))

    def close(self, timeout_s: float = 5.0) -> bool:
        """End all sequences, fail those who wait, wait for what runs, end the threads. Not on the loop thread.

        Returns:
            False when a run did not even end when it was told to; see `Scheduler.close`.
        """
        with self._lock:
            self._withdrawn = True
            self._closed = True
            then = self._account(self._sequences.end_all(Ended.UNLOADED))
            self._due_changed.notify()
            self._tended.notify()
        self._carry_out(then)
        self._thread.join()
        return self._scheduler.close(timeout_s)

    # ---- what members tell

    def finished(self, member: Rider, *, stepped: bool, left: bool = False) -> None:
        """A request has its answer. Any thread."""
        self._carry_out(self._after(member, stepped=stepped, left=left))

    def left_in_line(self, member: Rider) -> bool:
        """The caller of a request left; whether that was waiting in a line. Loop thread."""
        with self._lock:
            then = self._sequences.leave(member)
            if then is None:
                return False
            self._bytes -= member.request.nbytes
            then = self._account(then)
        late = member.request.deadline - self._now() <= GIVING_UP_S
        waited_ms = (self._clock_ns() - member.queued_ns) * 1e-6
        self._fail(
            member,
            DeadlineExpired(f"the deadline passed after {waited_ms:.0f} ms of waiting for {self._what(member)}")
            if late
            else CallCancelled(f"the caller left after {waited_ms:.0f} ms of waiting for {self._what(member)}"),
        )
        self._carry_out(then)
        return True

    # ---- the rest

    def _member(self, request: Request) -> Rider:
        """The request as a member of its sequence, if it can be one."""
        position = request.position
        if position is None:
            self._refused["no_id"] += 1
            raise InvalidRequest(
                f"inference request to model '{self._model}' must specify a non-zero or non-empty correlation ID: "
                "the model keeps sequences, and a request names its own by the parameter 'sequence_id'"
            )
        if request.rows != 1:
            self._refused["rows"] += 1
            raise InvalidRequest(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of sequence "
                f"batcher, got {request.rows} rows: the server batches sequences itself"
            )
        now_ns = self._clock_ns()
        patience_s = min(request.timeout_s, self.limits.max_latency_s)
        request.deadline = min(request.deadline, now_ns * 1e-9 + patience_s)
        return Rider(self, request, position, self._stateful.controls_of(position), now_ns)

    def _admit(self, member: Rider) -> Next[Rider]:
        """Let a member into its sequence, if it may come in. Under the lock."""
        if self._withdrawn and member.position.starts:
            raise Withdrawn(self.name)
        self._check_room(member)
        try:
            then = self._sequences.admit(member)
        except NotStarted as error:
            self._refused["not_started"] += 1
            raise InvalidRequest(self._not_started(member.position.id, error.ended)) from None
        self._hang(member.sequence, member.request.lifeline)
        if member not in then.run:
            member.waits = True
            self._bytes += member.request.nbytes
            self._first_deadline = min(self._first_deadline, member.request.deadline)
        return self._account(then)

    def _check_room(self, member: Rider) -> None:
        """Refuse a member whom no line may hold. Under the lock.

        Those who have a slot are counted apart from those who wait for one, since it is they who will free it.
        """
        limits, sequences = self.limits, self._sequences
        nbytes = member.request.nbytes
        if nbytes > limits.max_bytes:
            raise TooLarge(
                f"{nbytes} bytes of input tensors are more than the whole queue may hold ({limits.max_bytes} bytes)"
            )
        sequence = sequences.get(member.position.id)
        has_slot = sequence is not None and sequence.slot is not None
        waiting = sequences.waiting - sequences.backlogged + self._scheduler.depth if has_slot else sequences.backlogged
        if waiting >= limits.max_requests:
            whose = "" if has_slot else f" of sequences that wait for one of {sequences.slots} slots"
            full = f"{waiting} requests{whose}"
        elif self.queue_bytes + nbytes > limits.max_bytes:
            full = f"{self.queue_bytes} of {limits.max_bytes} bytes"
        else:
            return
        self._refused["no_room"] += 1
        raise Overloaded(
            f"queue of '{self.name}' is full ({full}); retry after {RETRY_AFTER_S * 1e3:.0f} ms",
            retry_after_s=RETRY_AFTER_S,
        )

    def _hang(self, sequence: Sequence[Rider], lifeline: Lifeline | None) -> None:
        """Let a sequence hang on the stream that its latest request came by. Under the lock."""
        if sequence.lifeline is lifeline:
            return
        key = (id(self), sequence.id)
        if sequence.lifeline is not None:
            sequence.lifeline.unbind(key)
        if lifeline is not None:
            lifeline.bind(key, partial(self.lost, sequence.id))
        sequence.lifeline = lifeline

    def restarted_elsewhere(self, sequence_id: SequenceId) -> None:
        """A sequence of that id was started in another version: the one here is over. Loop thread."""
        self._end(sequence_id, Ended.RESTARTED)

    def lost(self, sequence_id: SequenceId) -> None:
        """The stream that the requests of a sequence came by broke. Loop thread."""
        self._end(sequence_id, Ended.LEFT)

    def _end(self, sequence_id: SequenceId, why: Ended) -> None:
        with self._lock:
            then = self._account(self._sequences.end(sequence_id, why))
        self._carry_out(then)

    def _after(self, member: Rider, *, stepped: bool, left: bool) -> Next[Rider]:
        with self._lock:
            return self._account(self._sequences.finished(member, self._now(), stepped=stepped, left=left))

    def _account(self, then: Next[Rider]) -> Next[Rider]:
        """Keep the books of what a change of the sequences made of their requests. Under the lock."""
        for member in (*then.run, *(member for member, _ in then.failed)):
            if member.waits:
                member.waits = False
                self._bytes -= member.request.nbytes
        for sequence in then.gone:
            self._hang(sequence, None)
        if not self._sequences.waiting:
            self._first_deadline = inf
            self._empty.notify_all()
        if self._due() < self._wakes_at:
            self._due_changed.notify()
        return then

    def _carry_out(self, then: Next[Rider]) -> None:
        """Do what a change asks for: fail those who cannot run any more, and run the next. Any thread, without lock."""
        ahead = deque([then])
        while ahead:
            then = ahead.popleft()
            for member, why in then.failed:
                self._fail(member, self._over(member, why))
            for member in then.run:
                if error := self._run(member):
                    ahead.append(self._after(member, stepped=False, left=isinstance(error, DeadlineExpired)))
        if self._withdrawn:
            self._tell_if_empty()

    def _run(self, member: Rider) -> Exception | None:
        """Give a request to the scheduler inside; why that refuses it, having said so to its caller."""
        request = member.request
        try:
            self._scheduler.submit(member.step(self._stateful))
        except ForwardpassError as error:
            member.answer(error)
            return error
        request.timeline.queued_ns = member.queued_ns  # and not when it left the line
        return None

    def _fail(self, member: Rider, error: Exception) -> None:
        """Answer a request that never ran, and count it."""
        self.statistics.refused(error, member.request.timeline.received_ns)
        member.answer(error)

    def _tell_if_empty(self) -> None:
        with self._lock:
            if len(self._sequences) or self._on_empty is None:
                return
            on_empty, self._on_empty = self._on_empty, None
        on_empty()

    def _watch(self) -> None:
        """Have things tended when they are due. The thread of this version."""
        while True:
            with self._lock:
                if self._closed:
                    return
                wait_s = self._due() - self._now()
                if wait_s > 0:
                    self._wakes_at = self._due()
                    # NOTE: a Condition takes no infinite timeout; None is its word for that.
                    self._due_changed.wait(None if wait_s == inf else min(wait_s, threading.TIMEOUT_MAX))
                    self._wakes_at = -inf  # awake: nobody needs to wake it
                    continue
            try:
                self._on_loop(self.tend)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                self.tend()
            with self._lock:
                if not self._closed and self._due() <= self._now():
                    self._tended.wait(TENDED_S)

    def tend(self) -> None:
        """End what was idle for too long, and answer who waited for too long. Loop thread, since the next may run."""
        with self._lock:
            now = self._now()
            then = Next[Rider]()
            if self._end_all_at <= now:
                self._end_all_at = inf
                then.add(self._sequences.end_all(Ended.UNLOADED))
            then.add(self._sequences.expire(now))
            self._account(then)
            late: list[Rider] = []
            if self._first_deadline <= now:
                waiting = [member.request.deadline for member in self._sequences.lines()]
                late = [member for member in self._sequences.lines() if member.request.deadline <= now]
                self._first_deadline = min((deadline for deadline in waiting if deadline > now), default=inf)
            self._tended.notify_all()
        self._carry_out(then)
        for member in late:
            self.left_in_line(member)

    def _due(self) -> float:
        """When there is something to `tend`. Under the lock."""
        return min(self._sequences.next_due, self._first_deadline, self._end_all_at)

    def _now(self) -> float:
        return self._clock_ns() * 1e-9

    def _not_started(self, sequence_id: SequenceId, ended: Ended | None) -> str:
        # NOTE: clients look for these words of Triton's, to start a sequence anew.
        text = (
            f"inference request for sequence {sequence_id} to model '{self._model}' must specify the START flag on the "
            "first request of the sequence"
        )
        return f"{text}; the last one of that id is over: {self._why(ended)}" if ended is not None else text

    def _over(self, member: Rider, why: Ended) -> Exception:
        """What to tell a request that waited in a sequence that is over."""
        text = f"sequence {member.position.id} of model '{self._model}' is over: {self._why(why)}"
        return Stopping(text) if why is Ended.UNLOADED else InvalidRequest(f"{text}; start it again")

    def _why(self, ended: Ended) -> str:
        match ended:
            case Ended.END:
                return "its last request was answered"
            case Ended.IDLE:
                return f"it was idle for more than {self._sequences.idle_s:g} s (max_sequence_idle_microseconds)"
            case Ended.LEFT:
                return "a caller left before its answer, or the stream broke, so that nobody knows what it counts"
            case Ended.RESTARTED:
                return "another was started"
            case Ended.FAILED:
                return "the request that was to start it failed"
            case Ended.UNLOADED:
                return "its version was unloaded"

    def _what(self, member: Rider) -> str:
        if member.sequence.slot is None:
            return f"one of the {self._sequences.slots} slots of '{self._model}'"
        return "the requests before it in its sequence"


class Rider(Member):
    """A request in its sequence, and the one who takes its answer inside: a `request.Responder`."""

    __slots__ = ("_controls", "_left", "_on_left", "_scheduler", "queued_ns", "request", "waits")

    def __init__(
        self,
        scheduler: SequenceScheduler,
        request: Request,
        position: Position,
        controls: list[Array],
        queued_ns: int,
    ) -> None:
        super().__init__(position)
        self._scheduler = scheduler
        self._controls = controls
        self._left = False
        self._on_left: Callable[[], None] | None = None
        self.request = request
        self.queued_ns = queued_ns
        self.waits = False
        """It is in a line. Under the scheduler's lock."""

    def step(self, stateful: StatefulModel) -> Request:
        """What the scheduler inside is asked."""
        request, slot = self.request, self.sequence.slot
        assert slot is not None, self.position
        return Request(
            stateful.inputs_of(request.inputs, self._controls, slot.read(self.position), slot.write),
            rows=request.rows,
            nbytes=request.nbytes,
            outputs=request.outputs,
            responder=self,
            timeline=request.timeline,
            deadline=request.deadline,
            priority=request.priority,
        )

    def left(self) -> None:
        """The caller has left. Loop thread."""
        self._left = True
        if not self._scheduler.left_in_line(self) and self._on_left is not None:
            self._on_left()

    def answer(self, error: Exception) -> None:
        """Say why there is no answer."""
        try:
            self.request.responder.fail(error)
        except Exception:
            log.exception("a responder failed to fail; its caller waits for its deadline")

    @property
    def cancelled(self) -> bool:
        return self.request.responder.cancelled

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """As `request.Responder.on_cancel`, but on any thread: the caller was asked once, on the loop thread."""
        self._on_left = callback
        if self._left:
            callback()

    def succeed(self, outputs: abc.Sequence[Array], _request: Request) -> None:
        self.request.responder.succeed(outputs, self.request)
        self._scheduler.finished(self, stepped=True)

    def fail(self, error: Exception) -> None:
        self.answer(error)
        self._scheduler.finished(self, stepped=False, left=isinstance(error, CallCancelled | DeadlineExpired))
