"""The command `forwardpass-server`: settings, logs, signals, and one server's life; or several, under a supervisor.

Exit status: 0 after a stop that lost no call, 1 when it could not start or lost one, 2 for a flag that does not exist,
128 + n when a second signal n ended it at once.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType

from forwardpass_server import config, logs, memory
from forwardpass_server.errors import StartFailed
from forwardpass_server.logs import event
from forwardpass_server.seat import Place, Seat, place_in
from forwardpass_server.transport import core_log, single_thread

log = logging.getLogger("forwardpass_server.main")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        place = place_in(os.environ)
        settings = config.load(arguments, os.environ)
    except StartFailed as exc:
        sys.stderr.write(f"forwardpass-server: {exc}\nforwardpass-server --help shows every setting\n")
        return 1
    logs.configure(settings.log_format, settings.log_level, process=None if place is None else place.number)
    try:
        if settings.processes > 1 and place is None:
            # Imported here, since it brings what one server alone has no use for.
            from forwardpass_server.supervisor import Supervisor

            return Supervisor(settings, arguments).run()
        return _run(settings, place)
    except StartFailed as exc:
        event(log, logging.ERROR, "cannot start", reason=exc)
        return 1


def _run(settings: config.ServerConfig, place: Place | None) -> int:
    memory.share_one_arena(os.environ)
    single_thread.choose(os.environ)
    core_log.choose(os.environ)
    # Imported here, so that --help and a wrong flag are answered without ONNX Runtime's half second.
    from forwardpass_server.app import Server

    seat = None if place is None else Seat(place)
    if place is not None and place.again:
        settings = replace(settings, load_model=())  # it is told what to load; see `broadcast`
    server = Server(settings, seat)
    asked = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            # At once means at once: no handler, no thread and no model is waited for.
            os._exit(128 + number)
        asked = True
        server.ask_to_stop()
        if seat is not None:
            seat.give_up()

    for number in SIGNALS:
        signal.signal(number, on_signal)
    signal.signal(signal.SIGHUP, lambda _number, _frame: server.ask_to_reload())
    try:
        if seat is None:
            serves = server.start()
        else:
            seat.sit(server)
            serves = server.load() and seat.wait_to_listen()
            if serves:
                server.listen()
                seat.serving()
        if serves:
            server.wait()
    except BaseException:
        server.stop()
        raise
    stopped = server.stop()
    status = 1 if stopped.calls_lost else 0
    if stopped.threads_left:
        # A thread inside ONNX Runtime would still run while the interpreter takes ONNX Runtime's globals apart.
        logging.shutdown()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
