"""Binding: exclusively, and with the reason when that fails."""

import os
import socket
from collections.abc import Callable

import grpc
import pytest
from served import Served

from forwardpass_server.errors import StartFailed
from forwardpass_server.transport import sockets
from forwardpass_server.transport.call import Call
from forwardpass_server.transport.completion_queue import CompletionQueueServer
from forwardpass_server.transport.options import TransportOptions

Serve = Callable[..., Served]
ECHO = "/test.Service/Echo"


def echo(call: Call, body: bytes) -> None:
    call.reply(body)


def bind(**options: object) -> CompletionQueueServer:
    server = CompletionQueueServer(TransportOptions(**options), {}, {}, on_error=lambda _: (13, ""))  # type: ignore[arg-type]
    server.bind()
    return server


def test_a_port_that_another_server_of_ours_has_is_refused_by_name(serve: Serve) -> None:
    first = serve({ECHO: echo})
    with pytest.raises(StartFailed, match=rf"cannot listen on 127\.0\.0\.1:{first.port}: Address already in use"):
        bind(port=first.port)
    assert first.unary(ECHO)(b"1", timeout=10) == b"1"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_that_a_stranger_has_is_refused_by_name(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(StartFailed, match=f"cannot listen on {host}:{port}: Address already in use"):
            bind(host=host, port=port)


def test_even_one_who_shares_his_port_does_not_share_it_with_us() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(StartFailed, match="Address already in use"):
            bind(port=port)


def test_those_who_ask_for_it_share_a_port(serve: Serve) -> None:
    first = serve({ECHO: echo}, reuse_port=True)
    second = serve({ECHO: echo}, reuse_port=True, port=first.port)
    assert first.port == second.port
    second.stop()
    assert first.unary(ECHO)(b"1", timeout=10) == b"1"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "300.1.2.3"])
def test_a_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(StartFailed, match=f"cannot listen on {host}:8001: the host does not resolve"):
        bind(host=host, port=8001)


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(StartFailed, match=r"cannot listen on 192\.0\.2\.1:8001: Cannot assign requested address"):
        bind(host="192.0.2.1", port=8001)


def test_port_0_gives_a_real_one_and_connections_wait_for_the_loop(serve: Serve) -> None:
    served = serve({ECHO: echo})
    assert 1024 <= served.port <= 65535
    assert served.server.port == served.port


@pytest.mark.parametrize("host", ["::1", "localhost", "0.0.0.0"])
def test_other_hosts_are_listened_on(serve: Serve, host: str) -> None:
    if host == "::1" and sockets.why_not_bindable("::1", 0):
        pytest.skip("this machine has no IPv6")
    served = serve({ECHO: echo}, host=host)
    name = "[::1]" if host == "::1" else "localhost"
    with grpc.insecure_channel(f"{name}:{served.port}") as channel:
        assert channel.unary_unary(ECHO)(b"1", timeout=10) == b"1"


def test_listening_and_accepted_sockets_of_a_port_are_told_apart() -> None:
    before = sockets.listening()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port = server.getsockname()[1]
        new = {inode: at for inode, at in sockets.listening().items() if inode not in before}
        assert sorted(new.values()) == sorted([port, other.getsockname()[1]])
        ours = frozenset(inode for inode, at in new.items() if at == port)
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            with accepted:
                assert sockets.shut_down_listening(ours) == 1
                assert sockets.shut_down_listening(ours) == 0
                assert sockets.shut_down_accepted(port) == 1
                assert client.recv(1) == b"", "the other side sees the end"
                assert accepted.fileno() > 0, "the owner's descriptor is still his"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.create_connection(other.getsockname()):
            assert sockets.shut_down_accepted(port) == 0


def test_looking_at_sockets_leaves_no_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        before = sorted(os.listdir("/dev/fd"))
        for _ in range(3):
            sockets.listening()
            sockets.shut_down_listening(frozenset())
            sockets.shut_down_accepted(1)
        assert sorted(os.listdir("/dev/fd")) == before
