"""Several processes behind one port: `--processes N`.

The supervisor takes the port exclusively, so that no other server joins by accident, and starts N fresh copies of its
own command, which share it by SO_REUSEPORT. They load side by side and listen together, when all have loaded. One that
ends is started again, after a pause that grows, and one that hangs is killed before; it is given what admins ordered
meanwhile (`broadcast`) before it listens. SIGHUP and SIGTERM go to all, and a second SIGTERM ends all at once. When the
supervisor is gone, its processes drain and leave.

It serves nothing itself but the metrics page of all (`observe.merged`). Its threads: main, which decides; for each
process one that reads its link, one that waits for its end, and while it joins the others one that brings it up to
date; one for each order that waits to be carried out; and the page's.
"""

import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswerInTime
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Pipe
from types import FrameType

from forwardpass_server.broadcast import Broadcast
from forwardpass_server.config import ServerConfig
from forwardpass_server.errors import StartFailed
from forwardpass_server.heartbeat import Beat, Heartbeat
from forwardpass_server.link import Link, LinkClosed, NoAnswer
from forwardpass_server.logs import event
from forwardpass_server.observe.merged import MergedPages
from forwardpass_server.observe.page import MetricsPage
from forwardpass_server.seat import BEAT, LISTEN, LOADED, METRICS, SERVING, VARIABLE, Place
from forwardpass_server.transport import sockets

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)

JOINED = b"joined"
"""News of ours about a process: it is up to date, and asked whatever all are asked."""

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A process that has lived so long did not fail at its start: the pause begins anew."""

PAGE_WAIT_S = 2.0
"""How long a scrape waits for the processes, in seconds; of one that is late, the page before stands."""


@dataclass
class Backoff:
    """How long to wait before a process is started again. Pure.

    Args:
        deaths: in a row, each before `STEADY_S`.
    """

    deaths: int = 0

    def pause_s(self, lived_s: float) -> float:
        """Seconds to wait, now that a process has ended which lived for so many: 0.1, doubled each time, at most 30."""
        self.deaths = 1 if lived_s >= STEADY_S else self.deaths + 1
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.deaths - 1, 16)))


class Standing(Enum):
    """Where a process stands: each after the one before; ENDED may follow any of them."""

    LOADING = "loads its models"
    JOINING = "has loaded, and is brought up to date"
    WAITING = "may not listen yet"
    LISTENING = "was told to listen"
    SERVING = "serves"
    ENDED = "is gone"


class Member:
    """One process, from its start to its end; what is started in its place is another member.

    Args:
        number: 0 to N - 1: its place; the same for whoever is started in its place.
        command: what to run.
        again: it is started in place of another.
        heard: takes each note, and at last the exit status (negative: the signal that ended it). Any thread.
        answer: takes each question, and answers it. A thread of its own.
        heartbeat: when to ask it whether it lives.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        *,
        again: bool,
        heard: "Callable[[Member, bytes | int], None]",
        answer: Callable[[bytes], bytes],
        heartbeat: Heartbeat,
    ) -> None:
        self.number = number
        self.heartbeat = heartbeat
        self._beat: Future[bytes] | None = None
        self.standing = Standing.LOADING
        self.began = time.monotonic()
        ours, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, VARIABLE: str(Place(number, theirs.fileno(), again))},
                pass_fds=[theirs.fileno()],
                # A group of its own: Ctrl-C reaches the supervisor alone, which then asks all to stop, once.
                process_group=0,
            )
        self.link = Link(ours, on_note=lambda note: heard(self, note), answer=answer, on_end=lambda: None)
        self.link.start()
        threading.Thread(target=lambda: heard(self, self.process.wait()), name=f"process-{number}", daemon=True).start()

    def ask(self, question: bytes) -> "Future[bytes]":
        """See `link.Link.ask`."""
        return self.link.ask(question)

    def hangs(self, now: float) -> bool:
        """Look whether it lives; whether it has been silent for too long. The main thread."""
        beat = self.heartbeat.look(now, answered=self._beat is not None and self._beat.done())
        if beat is Beat.ASK:
            self._beat = self.link.ask(BEAT)
        return beat is Beat.HANGS


class Supervisor:
    """See the module. `run` is called once, on the main thread.

    Args:
        config: the settings; `processes` is 2 or more.
        arguments: the command line they were read from; the processes read it again, and the same environment.
    """

    def __init__(self, config: ServerConfig, arguments: Sequence[str]) -> None:
        self._config = config
        self._arguments = list(arguments)
        # A SimpleQueue, since a signal handler may put while the same thread is inside `get`.
        self._news: queue.SimpleQueue[tuple[Member, bytes | int] | None] = queue.SimpleQueue()
        self._members: list[Member] = []
        self._broadcast = Broadcast()
        self._backoffs = [Backoff() for _ in range(config.processes)]
        self._due: dict[int, float] = {}
        self._together = False
        self._stopping = False
        self._restarts = 0
        self._hangs = 0
        self._silence_s = math.inf if config.process_silence_s is None else config.process_silence_s
        self._look_at = -math.inf
        """When to look again whether all live, in monotonic seconds."""
        self._calls_lost = False
        self._port = config.grpc_port

    def run(self) -> int:
        """Start the processes, keep them alive, stop them; returns the exit status.

        Raises:
            StartFailed: the port is in use, or a process ended before all served.
        """
        config = self._config
        for each in SIGNALS:
            signal.signal(each, self._on_signal)
        try:
            self._port, held = sockets.hold(config.host, config.grpc_port)
        except OSError as error:
            raise StartFailed(
                f"cannot listen on {config.host}:{config.grpc_port}: {error.strerror or error}; "
                "choose another --grpc-port or --host, or stop what is listening there"
            ) from error
        page = None
        if config.metrics_port is not None:
            merged = MergedPages(self._pages, lambda: self._restarts, lambda: self._hangs)
            page = MetricsPage(merged.registry, config.host, config.metrics_port)
        try:
            if page is not None:
                event(log, logging.INFO, "metrics page", address=f"http://{config.host}:{page.start()}/metrics")
            signal.signal(signal.SIGHUP, self._on_reload)
            for number in range(config.processes):
                self._start(number, again=False)
            while not self._stopping or self._members:
                self._turn()
        except BaseException:
            self._end_all()
            raise
        finally:
            if page is not None:
                page.stop()
            for own in held:
                own.close()
        event(log, logging.INFO, "processes stopped", calls_lost=self._calls_lost, restarts=self._restarts)
        return 1 if self._calls_lost else 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            # At once means at once.
            for member in tuple(self._members):
                member.process.kill()
            os._exit(128 + number)
        self._stopping = True
        self._news.put(None)

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        for member in tuple(self._members):
            if member.standing is not Standing.LOADING:  # it might not have its handler yet, and reads them anyway
                member.process.send_signal(signal.SIGHUP)

    def _turn(self) -> None:
        """Wait for the next thing to happen, and do what follows from it."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now)
        self._start_due(now)
        next_at = min([self._look_at, *self._due.values()])
        try:
            news = self._news.get(timeout=None if math.isinf(next_at) else max(0.0, next_at - time.monotonic()))
        except queue.Empty:
            return
        match news:
            case None:
                self._stop_all()
            case member, int() as status:
                self._ended(member, status)
            case member, bytes() as note:
                self._told(member, note)

    def _start(self, number: int, *, again: bool) -> None:
        command = [sys.executable, "-P", "-m", "forwardpass_server", *self._arguments]
        command += [f"--grpc-port={self._port}", "--metrics-port=none"]
        member = Member(
            number,
            command,
            again=again,
            heard=lambda member, news: self._news.put((member, news)),
            answer=self._broadcast.answer,
            heartbeat=Heartbeat(self._silence_s, time.monotonic()),
        )
        self._members = [*self._members, member]
        event(log, logging.INFO, "process started", process=number, pid=member.process.pid)

    def _start_due(self, now: float) -> None:
        for number in [each for each, at in self._due.items() if at <= now]:
            del self._due[number]
            if not self._stopping:
                self._restarts += 1
                self._start(number, again=True)

    def _look(self, now: float) -> None:
        """Kill whoever hangs; its end follows like any other."""
        for member in self._members:
            # NOTE: one that loads answers, too: ONNX Runtime lets other threads run (of 5.8 s that a session took, 0.1
            # at most went by without one).
            if member.hangs(now):
                self._hangs += 1
                member.heartbeat = Heartbeat(math.inf, now)
                event(
                    log,
                    logging.ERROR,
                    "process hangs, and is killed",
                    process=member.number,
                    pid=member.process.pid,
                    silent_s=self._silence_s,
                )
                member.process.kill()
        self._look_at = now + Heartbeat(self._silence_s, now).interval_s

    def _join(self, member: Member, in_force: bytes) -> None:
        """Bring a process up to date, on a thread of its own: models may have to be loaded."""
        try:
            self._broadcast.join(member, in_force)
        except LinkClosed:
            return  # its end is news anyway
        except NoAnswer:
            log.error("process %d could not be brought up to date, and is killed", member.number)
            member.process.kill()
            return
        self._news.put((member, JOINED))

    def _told(self, member: Member, note: bytes) -> None:
        """A process says where it stands."""
        if member.standing is Standing.ENDED:
            self._broadcast.leave(member)  # it ended while it joined
            return
        if note.startswith(LOADED):
            member.standing = Standing.JOINING
            arguments = (member, note.removeprefix(LOADED))
            threading.Thread(target=self._join, args=arguments, name=f"join-{member.number}", daemon=True).start()
            return
        if note == JOINED:
            member.standing = Standing.WAITING
        elif note == SERVING:
            member.standing = Standing.SERVING
        standings = {each.standing for each in self._members}
        if self._together or standings == {Standing.WAITING}:
            for each in self._members:
                if each.standing is Standing.WAITING:
                    each.standing = Standing.LISTENING
                    each.link.tell(LISTEN)
        if standings == {Standing.SERVING} and not self._together:
            self._together = True
            address = f"{self._config.host}:{self._port}"
            event(log, logging.INFO, "processes serving", address=address, processes=len(self._members))

    def _ended(self, member: Member, status: int) -> None:
        """A process is gone.

        Raises:
            StartFailed: it is one of the first, and not all of them served yet.
        """
        served, lived_s = member.standing is Standing.SERVING, time.monotonic() - member.began
        member.standing = Standing.ENDED
        self._broadcast.leave(member)
        self._members = [each for each in self._members if each is not member]
        reason = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        if self._stopping:
            self._calls_lost |= served and status != 0
            event(log, logging.INFO, "process ended", process=member.number, pid=member.process.pid, reason=reason)
            return
        if not self._together:
            raise StartFailed(f"process {member.number} ended with {reason} before all served; its log says why")
        pause_s = self._backoffs[member.number].pause_s(lived_s)
        self._due[member.number] = time.monotonic() + pause_s
        event(
            log,
            logging.ERROR,
            "process ended, and is started again",
            process=member.number,
            pid=member.process.pid,
            reason=reason,
            lived_s=round(lived_s, 3),
            pause_s=pause_s,
        )

    def _stop_all(self) -> None:
        self._due.clear()
        event(log, logging.INFO, "stopping processes", processes=len(self._members))
        for member in self._members:
            member.process.terminate()

    def _end_all(self) -> None:
        """Something failed: let nobody live on."""
        for member in self._members:
            member.process.kill()
            member.process.wait()

    def _pages(self) -> dict[int, str | None]:
        """The metrics page of each process that lives, by its pid; None for one that is late. The page's thread."""
        asked = [(each.process.pid, each.ask(METRICS)) for each in self._members]
        until = time.monotonic() + PAGE_WAIT_S
        pages: dict[int, str | None] = {}
        for pid, future in asked:
            try:
                pages[pid] = future.result(max(0.0, until - time.monotonic())).decode()
            except (NoAnswerInTime, LinkClosed, NoAnswer):
                pages[pid] = None
        return pages
