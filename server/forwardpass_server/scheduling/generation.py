"""The scheduler of one generator: texts go in, each is written token by token, many of them in every run.

    begin ─▶ join ─▶ turns (who rides, how far) ─▶ rows ─▶ run ─▶ readers take their tokens ─▶ turns …

One thread steps. Who comes joins at its next step; who has its text, or has left, is not in the next one; who reads
too slowly is left out until it has taken what was written, so that no more than that ever waits for it. A caller of
`begin` gets an exception, or its reader gets the text to its end, or `fail`.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import numpy as np

from forwardpass_server.errors import (
    CallCancelled,
    DeadlineExpired,
    ForwardpassError,
    NotImplementedHere,
    NotReady,
    Overloaded,
    RunFailed,
    Stopping,
)
from forwardpass_server.observe.generation import GenerationStatistics, Texts
from forwardpass_server.scheduling.cost import CostCurve, ServedCost
from forwardpass_server.scheduling.request import Request
from forwardpass_server.scheduling.rows import Arrays, Rows, Step
from forwardpass_server.scheduling.runner import GIVING_UP_S, Run
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.scheduling.text import Text
from forwardpass_server.scheduling.turns import Turns, steps_of
from forwardpass_server.scheduling.watchdog import Watchdog
from forwardpass_server.tensors.generator import Generator

log = logging.getLogger(__name__)

PATIENCE_S = 300.0
"""How long a reader may be behind before its text ends, in seconds; else those who never read would fill the server."""
RETRY_AFTER_S = 0.05
"""The soonest that somebody who met a full server is told to come again, in seconds."""
LEARNING_RATE = 0.2
"""By how much one text changes the figure of how long a text takes."""


class GenerationScheduler:
    """Schedules one version of a generator; stands where a `scheduler.Scheduler` stands. Starts at once.

    Args:
        name: for the thread and for messages: model and version.
        run: the model.
        generator: what it is.
        slots: texts in one run.
        max_texts: that may be under way, those that wait included.
        cost: of runs of `generator.steps_max` tokens by their rows, from warm-up.
        watchdog: ends runs that last too long; None lets them.
        statistics: the version's account; a new one when None.
        clock_ns: the monotonic clock.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        generator: Generator,
        *,
        slots: int,
        max_texts: int,
        cost: CostCurve | None = None,
        watchdog: Watchdog | None = None,
        statistics: GenerationStatistics | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.generator = generator
        self.max_texts = max_texts
        self.statistics = statistics or GenerationStatistics(clock_ns)
        self._run = run
        self._clock_ns = clock_ns
        self._cost = ServedCost(cost or CostCurve())
        self._outputs = (generator.tokens, *(state.output for state in generator.states))
        self._turns = Turns(slots)
        self._rows = Rows(generator)
        self._text_s = 0.0
        self._begun = 0
        self._changed = threading.Condition()  # guards what follows, which other threads write
        self._inflight = 0
        self._arrived: list[Text] = []
        self._left: list[Text] = []
        self._taken: list[Text] = []
        self._closed = False
        self._given_up: Exception | None = None  # why every text ends now
        self._run_ended: Exception | None = None  # why the run in progress was ended
        self._termination: Termination | None = None
        self.began_ns = 0
        """When the run in progress began; 0 when there is none. Any thread."""
        self._watchdog = watchdog
        if watchdog is not None:
            watchdog.watch(self)
        self._thread = threading.Thread(target=self._work, name=f"{name}-0", daemon=True)
        self._thread.start()

    # What is asked on any thread.

    @property
    def slots(self) -> int:
        """Texts in one run."""
        return self._turns.slots

    @property
    def inflight(self) -> int:
        """Texts admitted and not yet over."""
        return self._inflight

    @property
    def active(self) -> int:
        """Texts that have begun and are not yet over; parked ones included."""
        return self._begun

    @property
    def depth(self) -> int:
        """Texts that wait for their first step."""
        return max(0, self._inflight - self._begun)

    @property
    def parked(self) -> int:
        """Texts whose readers are behind."""
        return len(self._turns.parked)

    @property
    def written(self) -> Texts:
        """Figures of its texts."""
        return self.statistics.texts()

    @property
    def queue_bytes(self) -> int:
        """Bytes of the states of all texts; a bound, since who waits for its first step has none."""
        return self._inflight * self.generator.row_bytes

    @property
    def instances(self) -> int:
        """Runs that may be in progress at a time."""
        return 1

    @property
    def seconds_per_row(self) -> float:
        """What one text costs in a full run of many tokens, in seconds; 0 when unknown."""
        return self._cost.seconds(self.slots) / self.slots

    @property
    def slo_s(self) -> float:
        """No latency is promised of a text."""
        return inf

    def submit(self, request: Request) -> None:
        """Refuse a request that is no text: a step of an ensemble, whose model has become a generator meanwhile.

        Raises:
            NotImplementedHere: always.
        """
        error = NotImplementedHere(f"'{self.name}' is a generator, and writes texts for callers alone")
        self.statistics.refused(error, request.timeline.received_ns)
        raise error

    def begin(self, text: Text) -> None:
        """Let a text join at the next step. Loop thread; never blocks.

        Raises:
            Overloaded, NotReady, DeadlineExpired: refused, counted, and the reader will not be called.
        """
        now_ns = self._clock_ns()
        try:
            with self._changed:
                self._admit(text, now_ns * 1e-9)
                text.timeline.queued_ns = now_ns
                self._inflight += 1
                self._arrived.append(text)
                self._changed.notify_all()
        except ForwardpassError as error:
            self.statistics.refused(error, text.timeline.received_ns)
            raise
        text.reader.on_cancel(partial(self._tell, self._left, text))

    def drain(self, timeout_s: float) -> bool:
        """Wait until no text is under way; True when it came to that within `timeout_s` seconds. Refuses nobody."""
        with self._changed:
            return self._changed.wait_for(lambda: self._inflight == 0, timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Refuse newcomers, wait for the texts under way, end the thread. Not on the loop thread.

        Texts that are not over after `timeout_s` seconds fail with Stopping, and the run that they ride in is ended.

        Returns:
            False when that run did not even end then, within as many seconds again.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if not self.drain(timeout_s):
            log.warning("%s: closed with %d texts under way; they are ended", self.name, self._inflight)
            with self._changed:
                self._given_up = Stopping(f"'{self.name}' was unloaded before the text was at its end")
                if self._termination is not None:
                    self._run_ended = self._given_up
                    self._termination.ask()
                self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._watchdog is not None:
            self._watchdog.forget(self)
        return not self._thread.is_alive()

    def end(self, began_ns: int, error: Exception) -> None:
        """End the run that began at `began_ns`, if it still runs; its texts fail with `error`."""
        with self._changed:
            if began_ns and self.began_ns == began_ns and self._termination is not None:
                self._run_ended = error
                self._termination.ask()

    def _admit(self, text: Text, now: float) -> None:
        if self._closed:
            raise NotReady(f"model '{self.name}' is being unloaded")
        if text.deadline <= now:
            raise DeadlineExpired("the deadline passed before the text was begun")
        if self._inflight >= self.max_texts:
            retry_s = max(RETRY_AFTER_S, self._text_s / self._inflight)
            raise Overloaded(
                f"'{self.name}' is full ({self._inflight} texts are under way); retry after {retry_s * 1e3:.0f} ms",
                retry_after_s=retry_s,
            )

    def _tell(self, whom: list[Text], text: Text) -> None:
        """Put something of a text before the step thread. Any thread."""
        with self._changed:
            whom.append(text)
            self._changed.notify_all()

    # What the step thread does.

    def _work(self) -> None:
        while self._hear():
            texts = self._who_rides()
            try:
                if texts:
                    self._step(texts)
            except Exception as error:
                log.exception("a step went wrong beside the model")
                for text in texts:
                    if text in self._turns:
                        self._fail(text, error)

    def _hear(self) -> bool:
        """Wait until there is something to do, and let in, out and on whom it concerns; False when all is over."""
        turns = self._turns
        with self._changed:
            while not (self._arrived or self._left or self._taken or turns.wanting or self._given_up):
                if self._closed and not self._inflight:
                    return False
                until = min((min(text.deadline, text.parked_until) for text in turns.parked), default=inf)
                if until <= self._clock_ns() * 1e-9:
                    break
                # NOTE: a Condition takes no infinite timeout; None is its word for that.
                self._changed.wait(None if until == inf else until - self._clock_ns() * 1e-9)
            arrived, left, taken, given_up = [*self._arrived], [*self._left], [*self._taken], self._given_up
            for news in (self._arrived, self._left, self._taken):
                news.clear()
            self._given_up = None
        for text in arrived:
            turns.join(text)
        for text in taken:
            turns.resume(text)
        for text in left:
            if text in turns:
                self._drop(text)
        if given_up is not None:
            for text in turns.everybody:
                self._fail(text, given_up)
        for text in [*turns.parked]:
            self._check_patience(text)
        return True

    def _who_rides(self) -> list[Text]:
        """The texts of the next step; those whose readers are gone are dropped."""
        while True:
            texts = self._turns.next()
            now = self._clock_ns() * 1e-9
            dead = [text for text in texts if text.reader.cancelled or text.deadline <= now]
            if not dead:
                return texts
            for text in dead:
                self._drop(text)

    def _step(self, texts: list[Text]) -> None:
        """One run, and what comes of it. Raises nothing: what goes wrong goes to the texts it concerns."""
        taken_ns = self._clock_ns()
        steps_max = self.generator.steps_max
        step = self._rows.step(texts, steps_of(texts, steps_max, self._cost.seconds(len(texts)) / steps_max))
        start_ns = self._clock_ns()
        for text in texts:
            if not text.timeline.taken_ns:
                text.timeline.taken_ns, text.timeline.run_start_ns = taken_ns, start_ns
                self._begun += 1
        rows, outputs = self._run_or_halve(step, range(len(texts)))
        end_ns = self._clock_ns()
        if not rows:
            self._rows.keep(rows, np.empty((0, 1), np.int64), [])
            return
        tokens, *states = outputs
        self._rows.keep(rows, tokens, states)
        self._deliver(step, rows, tokens, taken_ns, start_ns, end_ns)
        if len(rows) == len(texts):
            self._cost.observe(len(texts), (end_ns - start_ns) * 1e-9 * steps_max / step.steps)

    def _deliver(
        self, step: Step, rows: Sequence[int], tokens: np.ndarray, taken_ns: int, start_ns: int, end_ns: int
    ) -> None:
        """Give every text its tokens: first let the readers see who is at its end, then count, then let them speak."""
        speaking: list[Text] = []
        over: list[Text] = []
        firsts_ns: list[int] = []
        gaps_ns: list[int] = []
        strange = np.any((tokens < 0) | (tokens >= len(self.generator.vocabulary)), axis=1)
        written = 0
        for at, row in enumerate(rows):
            text, read = step.texts[row], step.forced[row]
            text.timeline.run_end_ns, text.timeline.batch_rows = end_ns, len(rows)
            text.unread -= read
            count = min(step.steps - read, text.left)
            try:
                if strange[at]:
                    raise RunFailed(f"the model wrote {tokens[at].tolist()}: not tokens of its vocabulary")
                if not count:
                    continue
                text.left -= count
                until = text.reader.take(tokens[at, read : read + count].tolist(), last=not text.left)
            except Exception as error:  # noqa: BLE001 - a bug of ours concerns this text alone
                self._fail(text, error)
                continue
            written += count if until is None else until
            if text.spoke_ns:
                gaps_ns.append(end_ns - text.spoke_ns)
            else:
                firsts_ns.append(end_ns - text.timeline.received_ns)
            text.spoke_ns = end_ns
            speaking.append(text)
            if until is not None or not text.left:
                over.append(text)
        self.statistics.stepped(
            len(rows),
            taken_ns=taken_ns,
            start_ns=start_ns,
            end_ns=end_ns,
            tokens=written,
            firsts_ns=firsts_ns,
            gaps_ns=gaps_ns,
        )
        if over:
            self._finish(over)
        for text in speaking:
            self._speak(text)
        self.statistics.said(len(rows), self._clock_ns() - end_ns)

    def _speak(self, text: Text) -> None:
        """Let a reader have what it took; one that is then behind rides no more until it has caught up."""
        reader = text.reader
        try:
            reader.say()
        except Exception as error:
            log.exception("a piece of text could not be sent")
            if text in self._turns:
                self._fail(text, error)
            else:  # it was the last, and the text is counted as it ended
                self._tell_why(text, error)
            return
        if reader.behind and text in self._turns:
            text.parked_until = self._clock_ns() * 1e-9 + PATIENCE_S
            self._turns.park(text)
            reader.when_taken(partial(self._tell, self._taken, text))

    def _run_or_halve(self, step: Step, rows: Sequence[int]) -> tuple[list[int], Arrays]:
        """Run rows of a step; where that fails, its halves, so that only texts fail that fail alone.

        Returns:
            The rows that did not fail, and the outputs of those.
        """
        whole = len(rows) == len(step.texts)
        try:
            outputs = self._run_ending(step.inputs if whole else [array[list(rows)] for array in step.inputs])
            return [*rows], outputs
        except Exception as error:
            self.statistics.run_failed()
            if not isinstance(error, ForwardpassError):
                log.exception("a run raised what no session should raise")
            because = self._run_ended
            if because is not None or len(rows) == 1:
                for row in rows:
                    self._fail(step.texts[row], because or error)
                return [], []
        middle = len(rows) // 2
        halves = [self._run_or_halve(step, rows[:middle]), self._run_or_halve(step, rows[middle:])]
        ran = [half for half in halves if half[0]]
        if len(ran) < 2:
            return ran[0] if ran else ([], [])
        return ran[0][0] + ran[1][0], [np.concatenate(pair) for pair in zip(ran[0][1], ran[1][1], strict=True)]

    def _run_ending(self, inputs: Arrays) -> Arrays:
        """Run in such a way that `end` and `close` can end it."""
        termination = Termination()
        with self._changed:
            self._termination, self._run_ended, self.began_ns = termination, None, self._clock_ns()
        try:
            return [*self._run(inputs, self._outputs, termination)]
        finally:
            with self._changed:
                self._termination, self.began_ns = None, 0

    # How texts end.

    def _finish(self, texts: Sequence[Text]) -> None:
        self.statistics.finished([text.timeline for text in texts])
        now_ns = self._clock_ns()
        for text in texts:
            took_s = (now_ns - text.timeline.received_ns) * 1e-9
            self._text_s += LEARNING_RATE * (took_s - self._text_s)
        for text in texts:
            self._let_go(text)

    def _drop(self, text: Text) -> None:
        """The reader has left, or it is too late for it."""
        late = text.deadline - self._clock_ns() * 1e-9 <= GIVING_UP_S
        tokens = text.sampling.max_tokens - text.left
        if late:
            self._fail(text, DeadlineExpired(f"the deadline passed after {tokens} tokens"))
        else:
            self._fail(text, CallCancelled(f"the caller left after {tokens} tokens"))

    def _check_patience(self, text: Text) -> None:
        now = self._clock_ns() * 1e-9
        if text.deadline <= now:
            self._drop(text)
        elif text.parked_until <= now:
            self._fail(text, DeadlineExpired(f"nothing of the text was read for {PATIENCE_S:g} s"))

    def _fail(self, text: Text, error: Exception) -> None:
        self.statistics.refused(error, text.timeline.received_ns)
        self._let_go(text)
        self._tell_why(text, error)

    def _tell_why(self, text: Text, error: Exception) -> None:
        try:
            text.reader.fail(error)
        except Exception:
            log.exception("a reader failed to fail; its caller waits for its deadline")

    def _let_go(self, text: Text) -> None:
        self._turns.remove(text)
        self._rows.forget(text)
        if text.timeline.taken_ns:
            self._begun -= 1
        with self._changed:
            self._inflight -= 1
            if not self._inflight:
                self._changed.notify_all()
