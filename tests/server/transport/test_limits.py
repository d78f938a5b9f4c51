"""What one caller may ask for: at the limit and one beyond it, and the server unharmed."""

import contextlib
import socket
import threading
import zlib
from collections.abc import Callable

import grpc
import pytest
from served import Served, wait_until

from forwardpass_server.transport.call import DEFLATE, GZIP, Call, Metadata, StreamCall

Serve = Callable[..., Served]
ECHO = "/test.Service/Echo"
STREAM = "/test.Service/Stream"
MIB = 1 << 20
BIG = ("grpc.max_receive_message_length", -1)


def echo(call: Call, body: bytes) -> None:
    call.reply(body)


def length(call: Call, body: bytes) -> None:
    call.reply(str(len(body)).encode())


def refused(multi: grpc.UnaryUnaryMultiCallable, body: bytes = b"", **kwargs: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        multi(body, timeout=20, **kwargs)
    return caught.value


@pytest.mark.parametrize("limit", [1, 1000, MIB, 5 * MIB])
def test_a_message_of_the_limit_passes_and_one_byte_more_does_not(serve: Serve, limit: int) -> None:
    served = serve({ECHO: length}, max_message_bytes=limit)
    multi = served.unary(ECHO)
    assert multi(bytes(limit), timeout=20) == str(limit).encode()
    error = refused(multi, bytes(limit + 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{limit + 1} vs. {limit}" in error.details()
    assert multi(b"", timeout=20) == b"0"
    assert served.quiet()


def test_a_reply_may_be_larger_than_a_request(serve: Serve) -> None:
    served = serve({ECHO: lambda call, _: call.reply(bytes(9 * MIB))}, max_message_bytes=1000)
    assert len(served.unary(ECHO, BIG)(b"", timeout=20)) == 9 * MIB


METADATA_LIMIT = 16 << 10


@pytest.mark.parametrize("size", [1000, 8 << 10, 9000, 12_000, 15_000])
def test_metadata_below_the_limit_always_passes(serve: Serve, size: int) -> None:
    multi = serve({ECHO: echo}).unary(ECHO)
    for _ in range(20):  # the core's default would refuse some of them at random
        assert multi(b"1", metadata=(("x", "a" * size),), timeout=10) == b"1"


@pytest.mark.parametrize("size", [METADATA_LIMIT, 20_000, 63 << 10, 200 << 10])
def test_metadata_above_the_limit_never_passes(serve: Serve, size: int) -> None:
    served = serve({ECHO: echo})
    multi = served.unary(ECHO)
    for _ in range(5):
        error = refused(multi, metadata=(("x", "a" * size),))
        assert error.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}, error
    assert multi(b"1", timeout=10) == b"1"


def test_the_metadata_limit_is_exact(serve: Serve) -> None:
    multi = serve({ECHO: echo}, max_metadata_bytes=4096).unary(ECHO)

    def passes(size: int) -> bool:
        try:
            return bool(multi(b"1", metadata=(("x", "a" * size),)) == b"1")  # a timeout is a header of varying length
        except grpc.RpcError:
            return False

    low, high = 1000, 4096
    assert passes(low)
    assert not passes(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    assert 4096 - low < 600, "gRPC's own headers take less"
    assert all(passes(low) for _ in range(5))
    assert not any(passes(high) for _ in range(5))


def test_ten_thousand_small_headers_are_refused_and_harm_nobody(serve: Serve) -> None:
    multi = serve({ECHO: echo}).unary(ECHO)
    error = refused(multi, metadata=tuple((f"x-{n}", "1") for n in range(10_000)))
    assert error.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}
    assert multi(b"1", timeout=10) == b"1"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate], ids=str)
def test_compressed_requests_are_read(serve: Serve, compression: grpc.Compression) -> None:
    body = bytes(MIB) + b"end"
    served = serve({ECHO: echo})
    assert served.unary(ECHO)(body, compression=compression, timeout=10) == body


def test_the_message_limit_counts_after_decompression(serve: Serve) -> None:
    served = serve({ECHO: length}, max_message_bytes=MIB)
    multi = served.unary(ECHO)
    assert multi(bytes(MIB), compression=grpc.Compression.Gzip, timeout=20) == str(MIB).encode()
    for bomb in (MIB + 1, 64 * MIB):
        error = refused(multi, bytes(bomb), compression=grpc.Compression.Gzip)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert multi(b"", timeout=20) == b"0"
    assert served.quiet()


class Wire:
    """A proxy for one connection, that counts the bytes of the answers."""

    def __init__(self, port: int) -> None:
        self.came_back = 0
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets = [self._listener]
        self._threads[0].start()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._upstream))
        self._sockets += [near, far]
        for source, sink, counted in ((near, far, False), (far, near, True)):
            thread = threading.Thread(target=self._copy, args=(source, sink, counted))
            self._threads.append(thread)
            thread.start()

    def _copy(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if counted:
                    self.came_back += len(data)
                sink.sendall(data)
        except OSError:
            return  # one side closed

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):  # not connected any more
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize(
    ("asked", "smaller"), [((), False), (GZIP, True), (DEFLATE, True)], ids=["not asked", "gzip", "deflate"]
)
def test_an_answer_is_compressed_only_when_the_handler_asks(serve: Serve, asked: Metadata, smaller: bool) -> None:
    body = bytes(MIB)
    served = serve({ECHO: lambda call, _: call.reply(body, metadata=asked)})
    wire = Wire(served.port)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{wire.port}") as channel:
            assert channel.unary_unary(ECHO)(b"", timeout=10) == body
    finally:
        wire.close()
    if smaller:
        assert len(zlib.compress(body)) < wire.came_back < 10_000
    else:
        assert wire.came_back > MIB


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_every_answer_is_compressed_where_the_settings_say_so(serve: Serve, compression: str) -> None:
    body = bytes(MIB)

    class Echo:
        def __init__(self, call: StreamCall) -> None:
            self._call = call

        def on_message(self, message: bytes) -> None:
            self._call.send(body)

        def on_half_close(self) -> None:
            self._call.finish()

        def on_cancel(self) -> None:
            """Nothing is held."""

    served = serve({ECHO: lambda call, _: call.reply(body)}, {STREAM: Echo}, compression=compression)
    wire = Wire(served.port)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{wire.port}") as channel:
            assert channel.unary_unary(ECHO)(b"", timeout=10) == body
            assert list(channel.stream_stream(STREAM)(iter([b"", b""]), timeout=10)) == [body, body]
    finally:
        wire.close()
    assert 3 * len(zlib.compress(body)) < wire.came_back < 20_000


def test_one_call_beyond_those_in_flight_is_refused_with_a_time_to_come_back(serve: Serve) -> None:
    held: list[Call] = []
    served = serve({ECHO: lambda call, _: held.append(call)}, max_calls_in_flight=3)
    multi = served.unary(ECHO)
    futures = [multi.future(b"", timeout=20) for _ in range(3)]
    assert wait_until(lambda: len(held) == 3)
    error = refused(multi)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "3 calls are in flight, which is the limit; retry later"
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "50"
    assert served.server.stats.calls_refused == 1
    held.pop().reply(b"")
    assert wait_until(lambda: served.server.stats.calls_in_flight == 2)
    futures.append(multi.future(b"", timeout=20))
    assert wait_until(lambda: len(held) == 3)
    for call in held:
        call.reply(b"")
    assert all(future.result() == b"" for future in futures)


def test_connections_beyond_the_limit_are_closed_and_room_comes_back(serve: Serve) -> None:
    served = serve({ECHO: echo}, max_connections=2)
    first, second, third = (served.channel() for _ in range(3))
    for channel in (first, second):
        assert channel.unary_unary(ECHO)(b"1", timeout=10) == b"1"
    error = refused(third.unary_unary(ECHO))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert first.unary_unary(ECHO)(b"1", timeout=10) == b"1"
    second.close()
    assert third.unary_unary(ECHO)(b"1", timeout=10, wait_for_ready=True) == b"1"


def test_a_client_that_pings_every_ten_seconds_or_faster_is_kept(serve: Serve) -> None:
    """tritonclient's and others' keepalive; the core's own limit of five minutes would cut them."""
    served = serve({ECHO: echo}, min_client_ping_interval_s=0.01)
    channel = served.channel(
        ("grpc.keepalive_time_ms", 50), ("grpc.keepalive_timeout_ms", 5000), ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.min_sent_ping_interval_without_data_ms", 50),
    )  # fmt: skip
    assert channel.unary_unary(ECHO)(b"1", timeout=10) == b"1"
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append)
    assert wait_until(lambda: bool(states))
    wait_until(lambda: grpc.ChannelConnectivity.IDLE in states, timeout_s=1.0)
    assert grpc.ChannelConnectivity.IDLE not in states, "the connection was cut"
