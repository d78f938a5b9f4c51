"""The metrics page over real HTTP."""

import http.client
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from forwardpass_server.errors import StartFailed
from forwardpass_server.observe.page import MetricsPage


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    registry = CollectorRegistry()
    Gauge("answer", "Of everything.", registry=registry).set(42)
    page = MetricsPage(registry, "127.0.0.1", 0)
    page.start()
    yield page
    page.stop()


def ask(page: MetricsPage, path: str, method: str = "GET", accept: str = "") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    try:
        connection.request(method, path, headers={"Accept": accept} if accept else {})
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read()
    finally:
        connection.close()


def test_metrics_are_shown(page: MetricsPage) -> None:
    status, kind, body = ask(page, "/metrics?whatever")
    assert status == 200
    assert kind.startswith("text/plain")
    assert b"\nanswer 42.0\n" in body


def test_openmetrics_is_spoken_with_those_who_ask_for_it(page: MetricsPage) -> None:
    _, kind, body = ask(page, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(("path", "status", "says"), [("/", 200, b"/metrics"), ("/etc/passwd", 404, b"/metrics")])
def test_other_paths_point_to_it(page: MetricsPage, path: str, status: int, says: bytes) -> None:
    got, _, body = ask(page, path)
    assert got == status
    assert says in body


def test_a_head_has_no_body_and_other_methods_are_refused(page: MetricsPage) -> None:
    assert ask(page, "/metrics", "HEAD")[::2] == (200, b"")
    assert ask(page, "/metrics", "POST")[0] == 501


def test_a_scraper_that_stalls_keeps_nobody_waiting(page: MetricsPage) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=10):
        assert ask(page, "/metrics")[0] == 200


def test_a_scraper_that_hangs_up_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    registry = CollectorRegistry()
    for number in range(200):
        Gauge(f"g{number}", "x" * 100_000, registry=registry)  # more than a socket's buffers hold
    page = MetricsPage(registry, "127.0.0.1", 0)
    page.start()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", page.port), timeout=10) as scraper:
            scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            scraper.recv(1)
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not close
    assert ask(page, "/")[0] == 200
    page.stop()
    for thread in threading.enumerate():
        if "process_request_thread" in thread.name:
            thread.join(10)
    assert capfd.readouterr() == ("", "")


def test_a_page_that_cannot_be_made_is_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    Gauge("broken", "Raises.", registry=registry).set_function(lambda: 1 / 0)
    page = MetricsPage(registry, "127.0.0.1", 0)
    page.start()
    with pytest.raises(http.client.HTTPException):
        ask(page, "/metrics")
    page.stop()
    assert "the metrics page cannot be shown" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert capfd.readouterr().out == ""


def test_a_taken_port_is_named(page: MetricsPage) -> None:
    with pytest.raises(StartFailed, match=rf"127\.0\.0\.1:{page.port}.*in use.*--metrics-port"):
        MetricsPage(CollectorRegistry(), "127.0.0.1", page.port).start()


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 0), ("no such host", 0), ("127.0.0.1", 70000)])
def test_an_address_that_is_not_ours_is_named(host: str, port: int) -> None:
    with pytest.raises(StartFailed, match=f"{host}:{port}"):
        MetricsPage(CollectorRegistry(), host, port).start()


def test_stopping_frees_the_port_and_ends_the_thread(page: MetricsPage) -> None:
    port = page.port
    page.stop()
    page.stop()
    assert "metrics-page" not in {thread.name for thread in threading.enumerate()}
    again = MetricsPage(CollectorRegistry(), "127.0.0.1", port)
    assert again.start() == port
    again.stop()


def test_a_page_that_was_not_started_can_be_stopped() -> None:
    MetricsPage(CollectorRegistry(), "127.0.0.1", 0).stop()
