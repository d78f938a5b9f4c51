"""The line between the supervisor and one of its processes: notes, questions and answers, either way.

A pair of sockets, inherited by the process. Each end has one thread that reads and one that writes, so that nobody who
tells or asks waits for an end that hangs; a question is answered on a short-lived thread of its own, so that two ends
may ask each other at once. Standard library only: the supervisor imports no gRPC.
"""

import contextlib
import logging
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection

_HEAD = struct.Struct(">cQ")
_NOTE, _QUESTION, _ANSWER, _NO_ANSWER = b"N", b"Q", b"A", b"X"

log = logging.getLogger(__name__)


class LinkClosed(Exception):
    """The other end is gone."""

    def __str__(self) -> str:
        return "the other end of the link is gone"


class NoAnswer(Exception):
    """The other end could not answer; its log says why."""


class Link:
    """One end. Every method may be called on any thread; none blocks.

    Args:
        connection: this end; closed by the link.
        on_note: takes what the other end told; on the reading thread.
        answer: takes a question, returns its answer; on a thread of its own. b"" for what is not known.
        on_end: the other end is gone; on the reading thread, as its last act.
    """

    def __init__(
        self,
        connection: "Connection[bytes, bytes]",
        *,
        on_note: Callable[[bytes], None],
        answer: Callable[[bytes], bytes],
        on_end: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._on_note = on_note
        self._answer = answer
        self._on_end = on_end
        self._lock = threading.Lock()
        self._asked: dict[int, Future[bytes]] = {}
        self._questions = 0
        self._closed = False
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="link", daemon=True)
        self._writer = threading.Thread(target=self._write, name="link-out", daemon=True)

    def start(self) -> None:
        """Read and write from now on."""
        self._reader.start()
        self._writer.start()

    def tell(self, note: bytes) -> None:
        """Send a note; nothing happens when the other end is gone."""
        with contextlib.suppress(LinkClosed):
            self._send(_NOTE, 0, note)

    def ask(self, question: bytes) -> "Future[bytes]":
        """Send a question.

        The future raises `LinkClosed` when the other end is gone, or goes before it answers; `NoAnswer` when answering
        raised there.
        """
        future: Future[bytes] = Future()
        with self._lock:
            self._questions += 1
            number = self._questions
            if self._closed:
                future.set_exception(LinkClosed())
                return future
            self._asked[number] = future
        try:
            self._send(_QUESTION, number, question)
        except LinkClosed:
            self._settle(number, LinkClosed())
        return future

    def close(self) -> None:
        """Let both ends know that it is over; they learn it on their reading threads."""
        with self._lock, contextlib.suppress(OSError):
            # NOTE: closing the descriptor would not wake our own reader.
            own = socket.socket(fileno=os.dup(self._connection.fileno()))
            with own:
                own.shutdown(socket.SHUT_RDWR)

    def _send(self, kind: bytes, number: int, body: bytes) -> None:
        with self._lock:
            if self._closed:
                raise LinkClosed
            self._outgoing.put(_HEAD.pack(kind, number) + body)

    def _write(self) -> None:
        while (frame := self._outgoing.get()) is not None:
            try:
                self._connection.send_bytes(frame)
            except OSError:
                break  # the other end is gone, as the reader learns too
        self.close()

    def _settle(self, number: int, answer: bytes | Exception) -> None:
        with self._lock:
            future = self._asked.pop(number, None)
        if future is None:
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _read(self) -> None:
        while True:
            try:
                frame = self._connection.recv_bytes()
            except (EOFError, OSError):
                break
            kind, number = _HEAD.unpack_from(frame)
            body = frame[_HEAD.size :]
            if kind == _NOTE:
                self._on_note(body)
            elif kind == _ANSWER:
                self._settle(number, body)
            elif kind == _NO_ANSWER:
                self._settle(number, NoAnswer("it could not answer; its log says why"))
            else:
                threading.Thread(target=self._reply, args=(number, body), name="link-answer", daemon=True).start()
        with self._lock:
            self._closed = True
            waiting = list(self._asked)
        for number in waiting:
            self._settle(number, LinkClosed())
        self._outgoing.put(None)
        self.close()
        # NOTE: a descriptor that was closed under the writer could be another file's by the time that it writes.
        self._writer.join()
        with self._lock:
            self._connection.close()
        self._on_end()

    def _reply(self, number: int, question: bytes) -> None:
        try:
            kind, body = _ANSWER, self._answer(question)
        except Exception:
            log.exception("a question of the other end could not be answered")
            kind, body = _NO_ANSWER, b""
        with contextlib.suppress(LinkClosed):
            self._send(kind, number, body)
