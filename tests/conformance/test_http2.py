"""HTTP/2 as a weapon: floods of frames on one connection, while a polite client on another is served.

The frames are written by `h2`, or by hand where it would refuse to. What gRPC's core does about each (it cuts off, or
it bears it) is its own affair; that nobody else notices is ours.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from conformance.process import ServerProcess
from conformance.wire import INFERENCE, Caller, Outcome, ask, ok, zeros
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated
from h2.exceptions import ProtocolError

case = pytest.mark.case("http2", "floods of frames on one connection", "everybody else is served; nothing stays behind")

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", f"{INFERENCE}/ModelInfer"),
    (":authority", "attacker"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


class Attacker:
    """One HTTP/2 connection that sends what it likes.

    Args:
        target: "127.0.0.1:8001".
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.http = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
        self.http.initiate_connection()
        self.cut_off: int | None = None
        """The error code of the GOAWAY that ended this connection."""
        self.gone = False

    def flush(self, raw: bytes = b"") -> bool:
        """Send what there is, and take note of what came. Returns whether the connection still stands."""
        try:
            self.socket.sendall(self.http.data_to_send() + raw)
            self.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while not self.gone:
                    self._heard(self.socket.recv(1 << 16))
            self.socket.settimeout(20)
        except (ConnectionError, ProtocolError):
            self.gone = True
        return not self.gone

    def wait_until_cut_off(self) -> None:
        """Read until the server has closed the connection."""
        self.socket.settimeout(20)
        with contextlib.suppress(ConnectionError, ProtocolError):
            while not self.gone:
                self._heard(self.socket.recv(1 << 16))

    def _heard(self, data: bytes) -> None:
        self.gone = not data
        for event in self.http.receive_data(data):
            if isinstance(event, ConnectionTerminated):
                self.cut_off = event.error_code


@pytest.fixture
def attacker(server: ServerProcess) -> Iterator[Attacker]:
    attacking = Attacker(server.target)
    yield attacking
    attacking.socket.close()


@pytest.fixture
def polite(server: ServerProcess, remember: Callable[[Outcome], None]) -> Iterator[list[Outcome]]:
    """A client on a connection of its own that asks all the time; each of its calls must succeed."""
    outcomes: list[Outcome] = []
    stop = threading.Event()

    def ask_all_the_time() -> None:
        with Caller(server.target) as caller:
            while not stop.is_set():
                outcomes.append(caller.infer(ask("mlp", zeros("FP32", (1, 10)))))

    thread = threading.Thread(target=ask_all_the_time)
    thread.start()
    yield outcomes
    seen = len(outcomes)
    with Caller(server.target) as caller:
        ok(caller.infer(ask("mlp", zeros("FP32", (1, 10)))))
    stop.set()
    thread.join()
    assert len(outcomes) >= max(1, seen)
    wrong = [str(each) for each in outcomes if not each.ok]
    assert not wrong, f"{len(wrong)} of {len(outcomes)} calls of a polite client failed: {wrong[:3]}"
    remember(max(outcomes, key=lambda each: each.seconds))


@case
def test_streams_that_are_reset_as_soon_as_they_are_opened(polite: list[Outcome], attacker: Attacker) -> None:
    for number in range(5000):
        stream = attacker.http.get_next_available_stream_id()
        attacker.http.send_headers(stream, HEADERS)
        attacker.http.reset_stream(stream, ErrorCodes.CANCEL)
        if number % 50 == 49 and not attacker.flush():
            break


@case
def test_streams_that_are_reset_after_their_message(polite: list[Outcome], attacker: Attacker) -> None:
    body = ask("mlp", zeros("FP32", (1, 10))).SerializeToString()
    framed = b"\0" + struct.pack(">I", len(body)) + body
    for number in range(2000):
        stream = attacker.http.get_next_available_stream_id()
        attacker.http.send_headers(stream, HEADERS)
        if attacker.http.local_flow_control_window(stream) < len(framed) and not attacker.flush():
            break
        if attacker.http.local_flow_control_window(stream) >= len(framed):
            attacker.http.send_data(stream, framed, end_stream=True)
        attacker.http.reset_stream(stream, ErrorCodes.CANCEL)
        if number % 50 == 49 and not attacker.flush():
            break


@case
def test_streams_that_are_opened_and_left(polite: list[Outcome], attacker: Attacker) -> None:
    with contextlib.suppress(ProtocolError):  # more than the server allows at a time
        for number in range(3000):
            attacker.http.send_headers(attacker.http.get_next_available_stream_id(), HEADERS)
            if number % 50 == 49 and not attacker.flush():
                break
    attacker.flush()


@case
def test_a_message_that_is_announced_and_never_comes(polite: list[Outcome], attacker: Attacker) -> None:
    for _ in range(100):
        stream = attacker.http.get_next_available_stream_id()
        attacker.http.send_headers(stream, HEADERS)
        attacker.http.send_data(stream, b"\0" + struct.pack(">I", 64 << 20) + b"x")
    attacker.flush()


@pytest.mark.case("http2", "a flood of pings", "cut off; everybody else is served")
def test_a_flood_of_pings_is_cut_off(polite: list[Outcome], attacker: Attacker) -> None:
    for number in range(20_000):
        attacker.http.ping(number.to_bytes(8, "big"))
        if number % 10 == 9 and not attacker.flush():
            break
    attacker.wait_until_cut_off()
    assert attacker.cut_off == ErrorCodes.ENHANCE_YOUR_CALM


@case
def test_a_flood_of_settings(polite: list[Outcome], attacker: Attacker) -> None:
    for number in range(5000):
        attacker.http.update_settings({4: 65_535 + number})
        if number % 50 == 49 and not attacker.flush():
            break


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


@pytest.mark.case("http2", "headers without end", "cut off; everybody else is served; no memory")
def test_headers_that_never_end_are_cut_off(server: ServerProcess, polite: list[Outcome], attacker: Attacker) -> None:
    attacker.flush()
    before = server.memory_bytes("VmHWM")
    opening = attacker.http.encoder.encode(HEADERS)
    standing = attacker.flush(frame(1, 0, 1, opening))
    # A literal header field without indexing: name "x", value of 8000 bytes; 16 000 of them are 128 MB of headers.
    field = b"\x00\x01x\x7f" + bytes([(8000 - 127) & 0x7F | 0x80, (8000 - 127) >> 7]) + b"y" * 8000
    for _ in range(16_000):
        if not standing:
            break
        standing = attacker.flush(frame(9, 0, 1, field))
    assert server.memory_bytes("VmHWM") - before < 32 << 20
    assert not standing, "128 MB of headers were taken"


@pytest.mark.case("http2", "bytes that are no HTTP/2", "closed; everybody else is served")
@pytest.mark.parametrize(
    "opening",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(600), bytes(1 << 16), b"PRI * HTTP/2.0"],
    ids=["HTTP/1.1", "TLS", "zeros", "cut preface"],
)
def test_what_is_no_http2_is_no_connection(server: ServerProcess, polite: list[Outcome], opening: bytes) -> None:
    host, port = server.target.rsplit(":", 1)
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=20) as raw, contextlib.suppress(ConnectionError):
            raw.sendall(opening)
            if opening.startswith(b"GET"):
                while raw.recv(1 << 16):
                    pass
