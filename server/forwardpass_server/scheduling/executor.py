"""Who runs the batches: instance threads, or the loop thread itself for models that cost less than a thread's wake-up.

Both are a few lines round the same three: the queue decides nothing, the policy waits for nothing, the runner does the
work. An executor only says on which thread, and when.
"""

import threading
from collections import deque
from typing import Protocol

from forwardpass_server.scheduling.policy import Action
from forwardpass_server.scheduling.queue import RequestQueue
from forwardpass_server.scheduling.runner import Runner


class Executor(Protocol):
    """Empties a queue."""

    def start(self) -> None:
        """Begin; before this, requests only wait."""

    def arrived(self) -> None:
        """A request was submitted. Loop thread; must not block."""

    def stop(self, timeout_s: float) -> bool:
        """End once the queue is closed and empty; False when that took longer than `timeout_s` seconds."""


def execute(action: Action, queue: RequestQueue, runner: Runner) -> None:
    """Answer everything that was taken."""
    ran_whole = False
    try:
        if action.dropped:
            runner.drop(action.dropped)
        if action.batch:
            ran_whole = runner.run(action.batch)
    finally:
        queue.finished(action, ran_whole=ran_whole)


class ThreadExecutor:
    """One thread per instance; each takes, runs and answers, and sleeps while nothing waits.

    Args:
        name: names the threads.
        queue: what they empty.
        runners: one per instance.
    """

    def __init__(self, name: str, queue: RequestQueue, runners: list[Runner]) -> None:
        self._queue = queue
        self._threads = [
            threading.Thread(target=self._work, args=(runner,), name=f"{name}-{index}", daemon=True)
            for index, runner in enumerate(runners)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def arrived(self) -> None:
        """Nothing to do: the queue woke a thread if one slept."""

    def stop(self, timeout_s: float) -> bool:
        """Wait for the threads, which end when the queue is closed and empty."""
        if not self._queue.wait_idle(timeout_s):
            return False
        for thread in self._threads:
            thread.join()
        return True

    def _work(self, runner: Runner) -> None:
        while (action := self._queue.take()) is not None:
            execute(action, self._queue, runner)
            # Or this thread would hold the batch and its tensors until the next one comes, however long that takes.
            del action


class InlineLoop:
    """The inline models of one transport loop: knows which of them have work, so that an idle loop asks one question.

    `run_ready` is what the transport calls when it has drained every ready event. Each model with work runs one batch a
    call, so a flooded model does not keep the others, or the next events, waiting for more than one batch.
    """

    def __init__(self) -> None:
        self._ready: deque[InlineExecutor] = deque()

    def run_ready(self) -> bool:
        """Run one batch of every model that has one; False when none had. Loop thread."""
        if not self._ready:
            return False
        for _ in range(len(self._ready)):
            self._ready.popleft().run_one()
        return True

    def add(self, executor: "InlineExecutor") -> None:
        """A model has work. Loop thread."""
        self._ready.append(executor)


class InlineExecutor:
    """Runs on the loop thread, between one drained set of events and the next.

    Args:
        queue: what it empties; its limits must not ask for a delay.
        runner: the only instance.
        loop: the transport's.
    """

    def __init__(self, queue: RequestQueue, runner: Runner, loop: InlineLoop) -> None:
        assert not queue.limits.max_delay_s, "a model that waits for batch-mates cannot run on the loop thread"
        self._queue = queue
        self._runner = runner
        self._loop = loop
        self._listed = False

    def start(self) -> None:
        """Nothing to start: the loop runs."""

    def arrived(self) -> None:
        """Ask the loop for a turn, unless one is coming."""
        if not self._listed:
            self._listed = True
            self._loop.add(self)

    def run_one(self) -> None:
        """Run one batch; ask for another turn if more is waiting. Loop thread."""
        self._listed = False
        action = self._queue.take_nowait()
        if action is None:
            return
        if self._queue.depth:
            self.arrived()
        execute(action, self._queue, self._runner)

    def stop(self, timeout_s: float) -> bool:
        """Wait until the loop has run what is waiting. Not on the loop thread."""
        return self._queue.wait_idle(timeout_s)
