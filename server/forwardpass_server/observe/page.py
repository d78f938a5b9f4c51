"""The page that Prometheus reads, on a port of its own: `/metrics`, and a line at `/` for people who got lost.

A thread accepts and a short-lived thread answers each connection, so that a scraper that stalls keeps nobody waiting.
"""

import logging
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder

from forwardpass_server.errors import StartFailed

log = logging.getLogger(__name__)

CONNECTION_TIMEOUT_S = 10.0
"""A connection that says nothing for so long is closed."""


def text(registry: CollectorRegistry) -> bytes:
    """What the page shows, in Prometheus's text format."""
    return generate_latest(registry)


class MetricsPage:
    """Shows a registry over HTTP.

    Args:
        registry: what to show.
        host: address to listen on; a name or a number, IPv4 or IPv6.
        port: TCP port; 0 lets the system choose, and `port` then says which.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._registry = registry
        self.host = host
        self.port = port
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen and answer from now on; returns the port.

        Raises:
            StartFailed: the address cannot be had; names it and the reason.
        """
        if not 0 <= self.port <= 65535:  # NOTE: getaddrinfo takes it modulo 65536 without a word
            raise StartFailed(f"the metrics page cannot listen on {self.host}:{self.port}: ports end at 65535")
        try:
            family, _, _, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            server = _Server(family, address, self._registry)
        except OSError as error:
            reason = error.strerror or error
            raise StartFailed(
                f"the metrics page cannot listen on {self.host}:{self.port}: {reason}; "
                "choose another --metrics-port, or stop who has it"
            ) from error
        self._server = server
        self.port = int(server.server_address[1])
        self._thread = threading.Thread(target=server.serve_forever, name="metrics-page", daemon=True)
        self._thread.start()
        return self.port

    def stop(self) -> None:
        """Close the port and end the thread; does nothing if it was not started, or twice."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A thread that still waits for a slow scraper does not hold up the end of the process.
    block_on_close = False

    def __init__(self, family: int, address: Any, registry: CollectorRegistry) -> None:
        self.address_family = family
        self.registry = registry
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which `HTTPServer.server_bind` does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's
        """A scraper that hangs up before it has its page leaves no trace; a page that cannot be made is logged."""
        if not isinstance(sys.exception(), OSError):
            log.exception("the metrics page cannot be shown")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "forwardpass"
    sys_version = ""
    timeout = CONNECTION_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer one request."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._send(HTTPStatus.OK, content_type, encode(self.server.registry))
        elif path == "/":
            self._send(HTTPStatus.OK, "text/plain; charset=utf-8", b"forwardpass: metrics are at /metrics\n")
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"only /metrics is here\n")

    def do_HEAD(self) -> None:
        """The same without the body."""
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing: a line every scrape would drown the log."""

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
