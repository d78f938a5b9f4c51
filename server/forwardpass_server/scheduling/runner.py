"""One batch from taken to answered: stack, run, split, reply; and if the run fails, find the guilty.

A failed batch is halved and its halves run again, so that only requests that fail *alone* are failed. Where one half
ran well the other must hold the guilty one, and is halved again without being run whole. With one guilty request among
n that is at most 2·log2(n) + 1 runs and 3·n rows; however many are guilty, never more than 2·n - 1 runs.

Cost beside the model, for 8 one-row requests and counting included: 19 µs here and 3 µs to take them from the queue
(`tests/benchmark/scheduling.py`, CPU time of one EPYC core, Python 3.11).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from forwardpass_server.errors import (
    CallCancelled,
    CallerError,
    DeadlineExpired,
    ForwardpassError,
    InvalidRequest,
    RunFailed,
)
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.scheduling.batch import split, stack, wanted_outputs
from forwardpass_server.scheduling.request import Array, Inputs, Request
from forwardpass_server.scheduling.termination import Termination

log = logging.getLogger(__name__)

GIVING_UP_S = 0.01
"""A caller that leaves within so many seconds of its deadline leaves because of it: its own clock runs ahead of ours by
the way of its request."""


class Run(Protocol):
    """The model: inputs in the order of the signature, indices of the outputs wanted → those outputs, in that order."""

    def __call__(
        self, inputs: Inputs, outputs: Sequence[int], termination: Termination | None = None, /
    ) -> Sequence[Array]:
        """`termination`, when given, is armed with what makes this run fail soon."""


class Runner:
    """Runs the batches of one instance and answers every request in them exactly once. Used by one thread at a time.

    Args:
        run: the model.
        statistics: the version's account.
        can_end: runs may be ended from other threads.
        finite: fail requests whose outputs hold a NaN or an infinity.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        run: Run,
        statistics: VersionStatistics,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        *,
        can_end: bool = False,
        finite: bool = False,
    ) -> None:
        self._run = run
        self._statistics = statistics
        self._clock_ns = clock_ns
        self._can_end = can_end
        self._finite = finite
        self._lock = threading.Lock()  # of the three below, which other threads read
        self._riders: Sequence[Request] = ()
        self._termination: Termination | None = None
        self._ended_because: Exception | None = None
        self.began_ns = 0
        """When the run in progress began; 0 when there is none, or none that can be ended. Any thread."""

    def run(self, batch: Sequence[Request]) -> bool:
        """Run and answer. Raises nothing: what goes wrong goes to the requests it concerns.

        Returns:
            Whether one run answered them all.
        """
        return self._run_or_halve(batch, self._clock_ns())

    def left(self, request: Request) -> None:
        """The caller of a request has left: if it rides in the run in progress and was the last, end that run. Any
        thread."""
        with self._lock:
            alone = request in self._riders and all(rider.responder.cancelled for rider in self._riders)
            began_ns = self.began_ns
        if alone:
            self.end(began_ns, CallCancelled("every caller left while the model ran"))

    def end(self, began_ns: int, error: Exception) -> None:
        """End the run that began at `began_ns`, if it still runs; its requests get `error`. Any thread."""
        with self._lock:
            if began_ns and self.began_ns == began_ns and self._termination is not None:
                self._ended_because = error
                self._termination.ask()

    def drop(self, dropped: Sequence[Request]) -> None:
        """Answer requests that are not to be run: their caller left, or their deadline passed in the queue."""
        for request in dropped:
            self.fail(request, self._why_dropped(request))

    def fail(self, request: Request, error: Exception) -> None:
        """Answer one request with an error, and count it."""
        self._statistics.refused(error, request.timeline.received_ns)
        try:
            request.responder.fail(error)
        except Exception:
            log.exception("a responder failed to fail; its caller waits for its deadline")

    def _run_or_halve(self, batch: Sequence[Request], taken_ns: int, *, known_bad: bool = False) -> bool:
        """Run a batch, or, once it has failed, its halves.

        Args:
            batch: the requests; those that died meanwhile are dropped.
            taken_ns: when the first attempt was taken.
            known_bad: it certainly fails whole; begin with its halves.

        Returns:
            Whether every request in it ran well together.
        """
        if not (known_bad and len(batch) > 1):
            error = self._try(batch, taken_ns)
            if error is None:
                return True
            self._statistics.run_failed()
            if len(batch) == 1:
                self.fail(batch[0], error)
                return False
        middle = len(batch) // 2
        left, right = self._living(batch[:middle]), self._living(batch[middle:])
        left_ran = not left or self._run_or_halve(left, taken_ns)
        if right:
            # Somebody who was in the failed batch may have been dropped since: then nothing is certain.
            nobody_left = len(left) + len(right) == len(batch)
            self._run_or_halve(right, taken_ns, known_bad=left_ran and nobody_left)
        return False

    def _try(self, batch: Sequence[Request], taken_ns: int) -> Exception | None:
        """Run a batch and answer it; or answer nobody and return why it failed."""
        try:
            wanted = wanted_outputs(batch)
            inputs = stack(batch)
            start_ns = self._clock_ns()
            outputs = self._run_ending(inputs, wanted, batch, start_ns) if self._can_end else self._run(inputs, wanted)
            end_ns = self._clock_ns()
            rows = sum([request.rows for request in batch])
            if self._finite:
                _check_finite(outputs, wanted)
            parts = split(outputs, wanted, batch, rows)
        except ForwardpassError as error:
            return error
        except Exception as error:
            log.exception("a run raised what no session should raise")
            wrapped = RunFailed(f"{type(error).__name__}: {error}")
            wrapped.__cause__ = error
            return wrapped
        here = [request for request in batch if not request.responder.cancelled]
        gone = set(batch).difference(here) if len(here) < len(batch) else None
        self._statistics.ran(here, rows, taken_ns, start_ns, end_ns)
        for request, part in zip(batch, parts, strict=True):
            timeline = request.timeline
            timeline.taken_ns = taken_ns
            timeline.run_start_ns = start_ns
            timeline.run_end_ns = end_ns
            timeline.batch_rows = rows
            if gone and request in gone:
                self.fail(request, self._why_left(request))
            elif not self._succeed(request, part):
                here = [other for other in here if other is not request]
        self._statistics.answered(here, rows)
        return None

    def _run_ending(
        self, inputs: Inputs, wanted: Sequence[int], batch: Sequence[Request], start_ns: int
    ) -> Sequence[Array]:
        """Run in such a way that `end` can end it."""
        termination = Termination()
        with self._lock:
            self._riders, self._termination, self._ended_because, self.began_ns = batch, termination, None, start_ns
        try:
            return self._run(inputs, wanted, termination)
        except Exception:
            if self._ended_because is not None:
                raise self._ended_because from None
            raise
        finally:
            with self._lock:
                self._riders, self._termination, self.began_ns = (), None, 0

    def _succeed(self, request: Request, outputs: Sequence[Array]) -> bool:
        """Give a request its outputs. Returns whether it has them."""
        try:
            request.responder.succeed(outputs, request)
        except Exception as error:
            if not isinstance(error, CallerError):  # else it is between the caller and its own memory
                log.exception("a finished answer could not be sent")
            self._statistics.took_back()
            self.fail(request, error)
            return False
        return True

    def _living(self, batch: Sequence[Request]) -> list[Request]:
        """Those whose callers still wait; the others are dropped."""
        now = self._clock_ns() * 1e-9
        dead = [request for request in batch if request.responder.cancelled or request.deadline <= now]
        self.drop(dead)
        return [request for request in batch if request not in dead]

    def _why_left(self, request: Request) -> Exception:
        if request.deadline - self._clock_ns() * 1e-9 > GIVING_UP_S:
            return CallCancelled("the caller left while its request ran")
        return DeadlineExpired("the deadline passed while the model ran")

    def _why_dropped(self, request: Request) -> Exception:
        now_ns = self._clock_ns()
        waited_ms = (now_ns - request.timeline.queued_ns) * 1e-6
        left_s = request.deadline - now_ns * 1e-9
        if request.responder.cancelled and left_s > GIVING_UP_S:
            return CallCancelled(f"the caller left after {waited_ms:.0f} ms in the queue")
        if request.wait_until <= now_ns * 1e-9:
            return DeadlineExpired(f"{waited_ms:.0f} ms in the queue are more than the model's queue policy allows")
        if left_s > 0:
            return DeadlineExpired(
                f"after {waited_ms:.0f} ms in the queue {left_s * 1e3:.0f} ms are left, less than the model needs"
            )
        return DeadlineExpired(f"the deadline passed after {waited_ms:.0f} ms in the queue; the model was not run")


def _check_finite(outputs: Sequence[Array], wanted: Sequence[int]) -> None:
    """Raises:
    InvalidRequest: an output holds a NaN or an infinity. Halving the batch then finds whose it is.
    """
    for index, output in zip(wanted, outputs, strict=True):
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise InvalidRequest(
                f"output {index} holds numbers that are not finite for these inputs, and this model's configuration "
                "(refuse_nonfinite) says not to answer with them"
            )
