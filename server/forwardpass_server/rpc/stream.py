"""ModelStreamInfer: many requests and many answers on one stream.

Each message is a request like any other and takes the same road; what differs is how its answers go out. A request has
a `Turn`: the turns of a stream speak in the order in which they came, so a turn that is answered early holds its
responses until those before it have ended; but texts that are generated are out of the line. What goes wrong with a
request is said inside the stream, which goes on; unless the caller asked, by metadata `triton_grpc_error: true`, that
it end the stream as its status.

Threads: messages arrive on the loop thread; turns are answered on any. One lock a stream guards the line of turns.
"""

import threading
from collections import deque

from forwardpass_server.errors import DeadlineExpired
from forwardpass_server.rpc import status
from forwardpass_server.rpc.infer import Infer
from forwardpass_server.rpc.status import Status
from forwardpass_server.rpc.turn import Turn
from forwardpass_server.scheduling.lifeline import Lifeline
from forwardpass_server.transport.call import StreamCall

TURNS_MAX = 256
"""Requests of one stream that may be unanswered; at so many, no further message is read until half have ended. What the
caller sends meanwhile is held back by flow control. Bytes are bounded by the models' queues."""

ERROR_ENDS_STREAM = ("triton_grpc_error", "true")
"""The pair of metadata that asks for errors as the status of the stream."""


class InferStream:
    """One stream. A `transport.call.StreamHandler`.

    Args:
        infer: admits the requests.
        call: the stream.
    """

    def __init__(self, infer: Infer, call: StreamCall) -> None:
        self._infer = infer
        self.call = call
        self._error_ends_stream = ERROR_ENDS_STREAM in call.metadata
        self._lock = threading.Lock()
        self._line: deque[Turn] = deque()
        self._apart: set[Turn] = set()
        self._lifeline = Lifeline()
        self._half_closed = False
        self._over = False
        self._paused = False

    @property
    def over(self) -> bool:
        """Nobody listens any more: the caller has left, or the status is sent."""
        return self._over or self.call.cancelled

    @property
    def open_turns(self) -> int:
        """Requests that have not been answered to their end."""
        return len(self._line) + len(self._apart)

    def on_message(self, body: bytes) -> None:
        turn = Turn(self)
        with self._lock:
            self._line.append(turn)
            if self.open_turns >= TURNS_MAX:
                self._paused = True
                self.call.pause_reading()
        try:
            request = self._infer.decode(body)
            turn.asks(request)
            self._infer.admit(turn, request, self._lifeline)
        except Exception as error:  # noqa: BLE001 - the edge: status.of logs what is ours
            turn.fail(*status.of(error))

    def on_half_close(self) -> None:
        with self._lock:
            self._half_closed = True
            self._finish_if_done()

    def on_cancel(self) -> None:
        with self._lock:
            self._over = True
            turns = [*self._line, *self._apart]
            self._line.clear()
            self._apart.clear()
        for turn in turns:
            turn.leave()
        self._lifeline.cut()

    def step_out(self, turn: Turn) -> None:
        """Let a turn speak out of the line. Loop thread, while it is the last one in it."""
        with self._lock:
            if self._line and self._line[-1] is turn:
                self._line.pop()
                self._apart.add(turn)

    def hold(self, turn: Turn, message: bytes | None, *, error: Status | None = None, ends: bool) -> bool:
        """Let a turn say something, now or when those before it have ended. Any thread.

        Args:
            turn: of this stream.
            message: a ModelStreamInferResponse; None for nothing.
            error: what `message` says, where that is an error.
            ends: it has nothing more to say.

        Returns:
            False when nobody listens.
        """
        with self._lock:
            if message is not None:
                turn.held.append(message)
            turn.error = error
            turn.ended = ends
            if turn in self._apart:
                left = self._speak(turn)
                if turn.ended:
                    self._apart.discard(turn)
            else:
                left = self._advance()
            self._finish_if_done()
            resume = self._paused and not self._over and self.open_turns <= TURNS_MAX // 2
            if resume:
                self._paused = False
        for each in left:
            each.leave()
        if resume:
            self.call.resume_reading()
        return not self.over

    def _advance(self) -> list[Turn]:
        """Let those speak whose turn it is in the line; returns those who never will. Under the lock."""
        while self._line:
            turn = self._line[0]
            left = self._speak(turn)
            if self._over or not turn.ended:
                return left
            self._line.popleft()
        return []

    def _speak(self, turn: Turn) -> list[Turn]:
        """Send what a turn holds; returns the turns that are over with the stream, if its error ends it. Under the
        lock."""
        if self._over:
            return []
        if turn.error is not None and self._error_ends_stream:
            self._over = True
            self.call.fail(*turn.error)
            left = [*self._line, *self._apart]
            self._line.clear()
            self._apart.clear()
            return left
        for message in turn.held:
            self.call.send(message)
        turn.held.clear()
        return []

    def _finish_if_done(self) -> None:
        if self._half_closed and not self._line and not self._apart and not self._over:
            self._over = True
            if self.call.cancelled:  # and still there: its clock is behind ours, and has no other status for this
                self.call.fail(*status.of(DeadlineExpired("the deadline of the stream passed")))
            else:
                self.call.finish()
