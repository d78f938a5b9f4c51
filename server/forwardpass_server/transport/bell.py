"""Wakes a loop that is blocked in `poll`, from any thread.

The completion queue has no wake-up of its own. Two things do put an event on it: an empty batch on any call, finished
ones included (0.3 µs; so the latest call is kept as the bell); and, before the first call, the shutdown of a spare
server that listens nowhere (1 ms to make the next one).
"""

from forwardpass_server.transport import core


class Bell:
    """One queue's bell. `ring` may be called on any thread, under the server's lock; the rest on the loop thread."""

    __slots__ = ("_queue", "_spare", "_tag", "latest_call")

    def __init__(self, queue: core.Queue, tag: core.Tag) -> None:
        self._queue = queue
        self._tag = tag
        self.latest_call: core.RawCall | None = None
        self._spare: core.RawServer | None = self._new_spare()

    def ring(self) -> None:
        """Put one event carrying our tag on the queue. Further rings before `rewind` may be lost without a call."""
        if self.latest_call is not None:
            self.latest_call.start_server_batch((), self._tag)
        elif self._spare is not None:
            self._spare.shutdown(self._queue, self._tag)

    def rewind(self) -> None:
        """Make the bell fit to ring again, after its event has come."""
        if self.latest_call is None and self._spare is not None:
            self._spare.destroy()
            self._spare = self._new_spare()

    def dismantle(self) -> None:
        """Let go of what the bell holds; its queue is about to end."""
        self.latest_call = None
        self._spare = None

    def _new_spare(self) -> core.RawServer:
        spare = core.server((), self._queue)
        spare.start()
        return spare
