"""The loop: one thread that takes events off the completion queue and gives each to its tag.

A round takes every event that is ready; hands over the messages among them; lets `on_idle` work (models that run in
microseconds run there, on the batch that gathered meanwhile); sends the answers; then blocks until the next event.
Nobody waits on a timer. A round is cut after `EVENTS_PER_ROUND`, so that arrivals cannot starve the work they brought.

Each of these steps does one thing for all calls of the round before the next step begins. Done call by call, between
the core's own work and its system calls, the same code runs cold: 72 µs a call of the MLP where it is 62 so, and 150
where it is 128 for a model on a thread of its own, which then also does not fight for the core's locks at every answer
(32 callers, one EPYC core). A call that is alone has nobody to share a round with and goes straight through.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from forwardpass_server.transport import core
from forwardpass_server.transport.bell import Bell
from forwardpass_server.transport.stats import Stats

EVENTS_PER_ROUND = 512
EMPTY_POLLS = 2
"""Polls that find nothing before a round ends. One poll looks at one socket that has something to read, and comes back
empty when that was no whole event: others may still have calls. With 1 a batch of the MLP had 5 rows of 32 that were
there; an echo took 61 µs a call, with 2 45, with 4 43 (32 callers, one EPYC core)."""

logger = logging.getLogger(__name__)


class Watchable(Protocol):
    """A call that wants to hear when its caller leaves."""

    def watch(self) -> None:
        """Ask the core, unless the call has its answer. Loop thread."""


class Reader(Protocol):
    """A call whose message has arrived."""

    def hand_over(self, body: bytes) -> None:
        """Give the message to the handler, and answer what the handler raises. Loop thread."""


class Writer(Protocol):
    """A call that has its answer."""

    def send(self, operations: core.Operations) -> None:
        """Start the operations that carry the answer. Loop thread, under `Loop.lock`; must not raise."""


class Endable(Protocol):
    """A stream, which may outlive any wait unless it is asked to end."""

    def end_reading(self, code: int, message: str) -> None:
        """Read no more, answer what was read, then end with this status. Loop thread."""

    def abandon(self, code: int, message: str) -> None:
        """End with this status now. Loop thread."""


class Loop:
    """The completion queue and the thread that serves it.

    `lock` is held while a batch of operations starts: it orders answers from several threads (exactly one wins), and an
    answer against the end of the queue (`closed`), where the core would abort the process.
    """

    def __init__(self) -> None:
        self.queue = core.queue()
        self.lock = threading.RLock()  # reentrant: a finaliser may answer a call while we hold it
        self.closed = False
        self.stats = Stats()
        self.on_idle: Callable[[], bool] | None = None
        self.arrived: list[tuple[Reader, bytes]] = []
        """Messages of this round, in the order in which they came."""
        self.unwatched: list[Watchable] = []
        self.streams: set[Endable] = set()
        self.behind_s = 0.0
        """The longest that what is read in this round may have lain unread; 0 while each round reads all there is."""
        self.in_flight = 0
        """Unary calls begun and not yet over."""
        self.bell = Bell(self.queue, self._on_bell)
        self._soon: deque[Callable[[], None]] = deque()
        self._answers: list[tuple[Writer, core.Operations]] = []
        self._rung = False
        self._thread: int | None = None

    def run(self) -> None:
        """Serve until the queue has shut down and is empty. Called once, by the thread that becomes the loop thread."""
        self._thread = threading.get_ident()
        poll = self.queue.poll
        ready = EVENTS_PER_ROUND
        wait_until: float | None = 0.0
        read_all_s = time.monotonic()
        while True:
            event = poll(wait_until)
            began_s = time.monotonic()
            self.behind_s = began_s - read_all_s if not ready else 0.0
            ready = EVENTS_PER_ROUND
            empty = 0
            while True:
                tag = event.tag
                if tag is not None:
                    tag(event)
                    empty = 0
                    ready -= 1
                    if not ready:
                        break
                elif event.completion_type == core.QUEUE_SHUTDOWN:
                    return
                else:
                    empty += 1
                    if empty == EMPTY_POLLS:
                        break
                event = poll(0.0)
            if ready:
                read_all_s = time.monotonic()
            worked = self._end_round()
            wait_until = 0.0 if worked or not ready else None
            self._account(time.monotonic() - began_s)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Run `function` on the loop thread at the end of its round, in the order of the calls. Any thread.

        Raises:
            RuntimeError: the loop has ended.
        """
        with self.lock:
            if self.closed:
                raise RuntimeError("the transport's loop has ended")
            self._soon.append(function)
            self._wake()

    def send_soon(self, call: Writer, operations: core.Operations) -> None:
        """Send an answer at the end of the round, with the others. Any thread, under `lock`, while not `closed`."""
        self._answers.append((call, operations))
        self._wake()

    def is_this_thread(self) -> bool:
        """Whether the caller is on the loop thread."""
        return threading.get_ident() == self._thread

    def close(self) -> None:
        """End the queue; `run` returns when it is empty. No batch may start after this."""
        with self.lock:
            self.closed = True
            self.bell.dismantle()
            self.queue.shutdown()

    def _wake(self) -> None:
        """Have the loop look at what was left for it. Under `lock`."""
        if self._rung or self._thread is None or self.is_this_thread():
            return  # it is awake, or will look before it first sleeps
        self._rung = True
        self.bell.ring()

    def _end_round(self) -> bool:
        worked = False
        if self.arrived:
            arrived, self.arrived = self.arrived, []
            for call, body in arrived:
                call.hand_over(body)
        if self.on_idle is not None:
            try:
                worked = self.on_idle()
            except Exception:
                logger.exception("on_idle raised; the loop goes on")
        if self._answers:
            self._send()
        if self.unwatched:
            unwatched, self.unwatched = self.unwatched, []
            for unanswered in unwatched:
                unanswered.watch()
        if self._soon:
            self._run_soon()
            worked = True
        return worked

    def _send(self) -> None:
        with self.lock:
            answers, self._answers = self._answers, []
        for call, operations in answers:
            with self.lock:  # anew for each: other threads answer too
                if not self.closed:
                    call.send(operations)

    def _run_soon(self) -> None:
        for _ in range(len(self._soon)):  # what these add runs in the next round
            function = self._soon.popleft()
            try:
                function()
            except Exception:
                logger.exception("a function given to call_soon raised; the loop goes on")

    def _on_bell(self, _event: core.Event) -> None:
        with self.lock:
            self._rung = False
            if not self.closed:
                self.bell.rewind()

    def _account(self, round_s: float) -> None:
        stats = self.stats
        stats.loop_passes += 1
        stats.loop_busy_s += round_s
        stats.loop_lag_s = round_s
        if round_s > stats.loop_lag_max_s:
            stats.loop_lag_max_s = round_s
