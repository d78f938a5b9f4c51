"""Requests of an ensemble: each runs through the models that are its steps, tensor by tensor, inside the server.

A step is submitted to its own model's scheduler as soon as the tensors it needs are there, so steps that do not need
each other run at once, and steps of many callers share batches. Arrays are handed on as they are: nothing is encoded,
and nothing is copied that the step's own batching does not copy.

Threads: steps are started on the loop thread, as every request is; a step that ends elsewhere hops there first. So an
ensemble's own bookkeeping needs no lock, but for the count that `drain` waits for.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Protocol

from forwardpass_server.errors import CallCancelled, CallerError, ForwardpassError, NotReady, Overloaded, Stopping
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.scheduling.request import Array, Request
from forwardpass_server.tensors.heads import Head, InputHead
from forwardpass_server.tensors.plan import Plan, plan
from forwardpass_server.tensors.recent import Recent
from forwardpass_server.tensors.signature import Signature

log = logging.getLogger(__name__)

PLANS = 64
RETRY_AFTER_S = 0.05
"""When a caller may try again who met an ensemble with too many requests under way; how long they take is its steps'
business."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One model in an ensemble.

    Args:
        number: its place in the configuration, from 1.
        model: its name.
        version: as a request would write it; "" for the latest.
        inputs: pairs of the model's input and the ensemble's tensor that is given to it.
        outputs: pairs of the model's output and the ensemble's tensor that it becomes.
    """

    number: int
    model: str
    version: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"step {self.number} ('{self.model}')"


class Submits(Protocol):
    """A scheduler as a step sees it."""

    def submit(self, request: Request) -> None:
        """See `scheduler.Scheduler.submit`."""


class Version(Protocol):
    """The version of a step; a `lifecycle.loaded.LoadedVersion`."""

    @property
    def signature(self) -> Signature: ...
    @property
    def scheduler(self) -> Submits: ...
    @property
    def serial(self) -> int: ...


class Lent(Protocol):
    """A lease of it; a `lifecycle.leases.Lease`."""

    @property
    def version(self) -> Version: ...
    def release(self) -> None: ...


Lend = Callable[[str, str], Lent]
"""Model and version as a request writes it → a lease. Raises NotFound or NotReady. Loop thread."""

OnLoop = Callable[[Callable[[], None]], None]
"""Runs something soon on the loop thread. Raises RuntimeError when the loop has ended. Any thread."""


class EnsembleScheduler:
    """Schedules one version of an ensemble; stands where a `scheduler.Scheduler` stands for a model.

    Args:
        name: of the ensemble, for messages.
        steps: such that each comes after those whose tensors it needs.
        signature: of the ensemble.
        lend: leases the models of the steps.
        on_loop: hops to the loop thread.
        max_requests: that may be under way.
        statistics: the version's account; a new one when None.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[Step],
        signature: Signature,
        *,
        lend: Lend,
        on_loop: OnLoop,
        max_requests: int,
        statistics: VersionStatistics | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.steps = tuple(steps)
        self.signature = signature
        self.statistics = statistics or VersionStatistics(clock_ns)
        self.lend = lend
        self.on_loop = on_loop
        self.clock_ns = clock_ns
        self.plans: Recent[tuple[object, ...], Plan] = Recent(PLANS)
        """What the signatures of the steps made of shapes seen before."""
        self._max_requests = max_requests
        self._closed = False
        self._inflight = 0
        self._changed = threading.Condition()

    @property
    def depth(self) -> int:
        """Requests that wait: none do here, all at the steps."""
        return 0

    @property
    def queue_bytes(self) -> int:
        """Bytes of input tensors that wait: likewise."""
        return 0

    @property
    def inflight(self) -> int:
        """Requests admitted and not yet answered."""
        return self._inflight

    @property
    def instances(self) -> int:
        """Runs in progress at a time: none are here, all are at the steps."""
        return 0

    @property
    def seconds_per_row(self) -> float:
        """What a row costs an instance: likewise."""
        return 0.0

    @property
    def slo_s(self) -> float:
        """The latency that it promises, in seconds; it promises none."""
        return inf

    def submit(self, request: Request) -> None:
        """Start a request. Loop thread; never blocks.

        Raises:
            Overloaded, NotReady: refused, counted, and the responder will not be called. A step that refuses is told to
            the responder.
        """
        with self._changed:
            refusal: ForwardpassError | None = None
            if self._closed:
                refusal = NotReady(f"ensemble '{self.name}' is being unloaded")
            elif self._inflight >= self._max_requests:
                refusal = Overloaded(
                    f"ensemble '{self.name}' has {self._inflight} requests under way, its limit",
                    retry_after_s=RETRY_AFTER_S,
                )
            else:
                self._inflight += 1
        if refusal is not None:
            self.statistics.refused(refusal, request.timeline.received_ns)
            raise refusal
        # Waiting is done in the steps, each by its own policy; the caller's patience is for all of them together.
        request.deadline = min(request.deadline, request.timeline.received_ns * 1e-9 + request.timeout_s)
        _Passage(self, request).advance()

    def ended(self) -> None:
        """One request has its answer. Any thread."""
        with self._changed:
            self._inflight -= 1
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; True when it came to that within `timeout_s` seconds. Refuses nobody."""
        with self._changed:
            return self._changed.wait_for(lambda: self._inflight == 0, timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse newcomers and wait for those under way. Not on the loop thread.

        Returns:
            False when some were still under way after `timeout_s` seconds.
        """
        with self._changed:
            self._closed = True
        return self.drain(timeout_s)


class _Passage:
    """One request on its way through the steps. Loop thread, save where said."""

    def __init__(self, ensemble: EnsembleScheduler, request: Request) -> None:
        self.request = request
        self.over = False
        """It has its answer. Read on any thread."""
        self._ensemble = ensemble
        self._ahead = [*ensemble.steps]
        self._tensors: dict[str, Array] = {
            spec.name: array
            for spec, array in zip(ensemble.signature.inputs, request.inputs, strict=True)
            if array is not None
        }
        timeline = request.timeline
        timeline.queued_ns = timeline.taken_ns = timeline.run_start_ns = ensemble.clock_ns()

    def advance(self) -> None:
        """Start every step that has its tensors; answer, when all that was asked for is there."""
        outputs = self._ensemble.signature.outputs
        wanted = [outputs[index].name for index in self.request.outputs]
        if all(name in self._tensors for name in wanted):
            self._succeed([self._tensors[name] for name in wanted])
            return
        ready = [step for step in self._ahead if all(tensor in self._tensors for _, tensor in step.inputs)]
        self._ahead = [step for step in self._ahead if step not in ready]
        for step in ready:
            if not self.over:
                self._start(step)

    def arrived(self, step: Step, outputs: Sequence[Array]) -> None:
        """A step has answered."""
        if not self.over:
            self._tensors.update(zip((tensor for _, tensor in step.outputs), outputs, strict=True))
            self.advance()

    def fail(self, step: Step, error: Exception) -> None:
        """A step has failed, and with it the request."""
        if not self.over:
            self.end_badly(_of_step(error, f"ensemble '{self._ensemble.name}', {step}"))

    def end_badly(self, error: Exception) -> None:
        """Answer with an error. Any thread, once."""
        self.over = True
        self._ensemble.statistics.refused(error, self.request.timeline.received_ns)
        try:
            self.request.responder.fail(error)
        except Exception:
            log.exception("a responder failed to fail; its caller waits for its deadline")
        self._ensemble.ended()

    def _start(self, step: Step) -> None:
        try:
            lent = self._ensemble.lend(step.model, step.version)
            try:
                lent.version.scheduler.submit(self._request_of(step, lent))
            except BaseException:
                lent.release()
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            self.fail(step, error)

    def _request_of(self, step: Step, lent: Lent) -> Request:
        """What the step's model is asked. Raises InvalidRequest where the tensors do not fit it."""
        signature = lent.version.signature
        arrays = [self._tensors[tensor] for _, tensor in step.inputs]
        key = (step.number, lent.version.serial, *[array.shape for array in arrays])
        known = self._ensemble.plans.get(key)
        if known is None:
            known = plan(signature, _head(step, signature, arrays))
            self._ensemble.plans.put(key, known)
        number = {spec.name: index for index, spec in enumerate(signature.outputs)}
        asked = Request(
            [None if slot is None else arrays[slot.index] for slot in known.slots],
            rows=known.rows,
            nbytes=sum(array.nbytes for array in arrays),
            outputs=tuple(number[output] for output, _ in step.outputs),
            responder=_StepAnswer(self, step, lent, self._ensemble.on_loop),
            timeline=type(self.request.timeline)(self._ensemble.clock_ns()),
            deadline=self.request.deadline,
            priority=self.request.priority,
        )
        asked.timeline.decoded_ns = asked.timeline.received_ns
        return asked

    def _succeed(self, outputs: Sequence[Array]) -> None:
        self.over = True
        request, statistics = self.request, self._ensemble.statistics
        timeline = request.timeline
        timeline.run_end_ns = self._ensemble.clock_ns()
        timeline.batch_rows = request.rows
        statistics.ran([request], request.rows, timeline.taken_ns, timeline.run_start_ns, timeline.run_end_ns)
        try:
            request.responder.succeed(outputs, request)
        except Exception as error:
            if not isinstance(error, CallerError):  # else it is between the caller and its own memory
                log.exception("a finished answer could not be sent")
            statistics.took_back()
            self.end_badly(error)
            return
        statistics.answered([request], request.rows)
        self._ensemble.ended()


class _StepAnswer:
    """Takes the answer of one step to the loop thread. A `request.Responder`."""

    __slots__ = ("_lent", "_on_loop", "_passage", "_step")

    def __init__(self, passage: _Passage, step: Step, lent: Lent, on_loop: OnLoop) -> None:
        self._passage = passage
        self._step = step
        self._lent = lent
        self._on_loop = on_loop

    @property
    def cancelled(self) -> bool:
        """The caller of the ensemble has left, or another step has failed."""
        return self._passage.over or self._passage.request.responder.cancelled

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._passage.request.responder.on_cancel(callback)

    def succeed(self, outputs: Sequence[Array], request: Request) -> None:
        request.timeline.encoded_ns = request.timeline.run_end_ns  # arrays are handed on as they are
        self._lent.release()
        self._hop(partial(self._passage.arrived, self._step, outputs))

    def fail(self, error: Exception) -> None:
        self._lent.release()
        self._hop(partial(self._passage.fail, self._step, error))

    def _hop(self, then: Callable[[], None]) -> None:
        try:
            self._on_loop(then)
        except RuntimeError:  # the loop has ended, and with it whoever waited
            self._passage.end_badly(Stopping("the server stopped between two steps of the ensemble"))


def _head(step: Step, signature: Signature, arrays: Sequence[Array]) -> Head:
    """The tensors of a step as a request for its model would state them."""
    datatypes = {spec.name: spec.dtype.wire for spec in signature.inputs}
    inputs = tuple(
        InputHead(name, datatypes.get(name, ""), array.shape, {}, None)
        for (name, _), array in zip(step.inputs, arrays, strict=True)
    )
    return Head(step.model, step.version, {}, inputs, (), typed=False, has_parameters=False)


def _of_step(error: Exception, where: str) -> Exception:
    """The same error, saying where; one of ours stays of its kind, and so keeps its status."""
    if isinstance(error, CallCancelled) or not isinstance(error, ForwardpassError):
        return error
    text = f"{where}: {error}"
    named = Overloaded(text, retry_after_s=error.retry_after_s) if isinstance(error, Overloaded) else type(error)(text)
    named.__cause__ = error
    return named
