"""What the channel does by itself: retries, pushback, TLS, spreading over servers, finding a restarted one."""

import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass import TLS, Client, RetryPolicy
from forwardpass import errors as e

QUICK = RetryPolicy(initial_backoff_s=0.02, max_backoff_s=0.1)


def failing(server: Any, code: Any, times: int, trailers: Any = ()) -> list[float]:
    """Fail `times` calls of ModelInfer, then answer; returns the arrival times."""
    arrivals: list[float] = []

    def run(request: Any, context: Any) -> Any:
        arrivals.append(time.monotonic())
        if len(arrivals) <= times:
            context.set_trailing_metadata(trailers)
            context.abort(code, "queue of 'echo' is full (256 requests)")
        return server._ModelInfer(request, context)

    server.overrides["ModelInfer"] = run
    return arrivals


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_passing_failure_is_tried_again_until_it_succeeds(server: Any, code: Any) -> None:
    arrivals = failing(server, code, times=3)
    with Client(server.address, retry=QUICK) as client:
        assert client.infer("echo", {"x": 1.0})["x"] == 1.0
    assert len(arrivals) == 4


def test_large_requests_are_tried_again_too(server: Any) -> None:
    arrivals = failing(server, grpc.StatusCode.UNAVAILABLE, times=2)
    with Client(server.address, retry=QUICK) as client:
        assert client.infer("echo", {"x": np.ones((3, 1024, 1024), np.float32)})["x"].shape == (3, 1024, 1024)
    assert len(arrivals) == 3


def test_a_lasting_failure_ends_after_the_stated_attempts_with_the_servers_words(server: Any) -> None:
    arrivals = failing(server, grpc.StatusCode.UNAVAILABLE, times=99)
    with (
        Client(server.address, retry=RetryPolicy(attempts=3, initial_backoff_s=0.01, max_backoff_s=0.01)) as client,
        pytest.raises(e.ServerUnavailable, match="256 requests"),
    ):
        client.infer("echo", {"x": 1.0})
    assert len(arrivals) == 3


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED]
)
def test_other_failures_are_not_tried_again(server: Any, code: Any) -> None:
    arrivals = failing(server, code, times=99)
    with Client(server.address, retry=QUICK) as client, pytest.raises(e.ForwardpassError):
        client.infer("echo", {"x": 1.0})
    assert len(arrivals) == 1


def test_without_a_policy_nothing_is_tried_again(server: Any) -> None:
    arrivals = failing(server, grpc.StatusCode.UNAVAILABLE, times=99)
    with Client(server.address, retry=None) as client, pytest.raises(e.ServerUnavailable):
        client.infer("echo", {"x": 1.0})
    assert len(arrivals) == 1


def test_the_servers_pushback_sets_the_delay(server: Any) -> None:
    arrivals = failing(
        server, grpc.StatusCode.RESOURCE_EXHAUSTED, times=1, trailers=(("grpc-retry-pushback-ms", "700"),)
    )
    with Client(server.address, retry=QUICK) as client:
        client.infer("echo", {"x": 1.0})
    assert len(arrivals) == 2
    assert 0.65 < arrivals[1] - arrivals[0] < 5


def test_a_negative_pushback_forbids_the_retry(server: Any) -> None:
    arrivals = failing(server, grpc.StatusCode.UNAVAILABLE, times=99, trailers=(("grpc-retry-pushback-ms", "-1"),))
    with Client(server.address, retry=QUICK) as client, pytest.raises(e.ServerUnavailable):
        client.infer("echo", {"x": 1.0})
    assert len(arrivals) == 1


def test_an_overload_that_lasts_says_when_to_come_back(server: Any) -> None:
    arrivals = failing(
        server, grpc.StatusCode.RESOURCE_EXHAUSTED, times=99, trailers=(("grpc-retry-pushback-ms", "40"),)
    )
    with Client(server.address, retry=QUICK) as client, pytest.raises(e.Overloaded) as caught:
        client.infer("echo", {"x": 1.0})
    assert caught.value.retry_after_s == 0.04
    assert len(arrivals) == 5


def test_retries_stay_within_the_deadline(server: Any) -> None:
    failing(server, grpc.StatusCode.RESOURCE_EXHAUSTED, times=99, trailers=(("grpc-retry-pushback-ms", "60000"),))
    started = time.monotonic()
    with Client(server.address, retry=QUICK) as client, pytest.raises(e.TryAgain):
        client.infer("echo", {"x": 1.0}, deadline_s=0.4)
    assert time.monotonic() - started < 5


def test_a_restarted_server_is_found_again_by_the_same_client(server: Any, client: Client) -> None:
    for _ in range(2):
        client.infer("echo", {"x": 1.0})
        server.stop()
        with pytest.raises(e.ServerUnavailable, match=server.address) as caught:
            client.infer("echo", {"x": 1.0}, deadline_s=20)
        assert caught.value.address == server.address
        server.start()
        client.wait_until_ready("echo", deadline_s=30)
        assert client.infer("echo", {"x": 2.0})["x"] == 2.0


def two(make_server: Any, make_echo: Any) -> Any:
    servers = [make_server(), make_server()]
    for server in servers:
        server.models["echo"] = make_echo("FP32")
    return servers, ",".join(server.address for server in servers)


def spread(client: Client, servers: list[Any], calls: int = 20) -> list[int]:
    before = [server.count("ModelInfer") for server in servers]
    for _ in range(calls):
        client.infer("echo", {"x": [1.0]})
    return [server.count("ModelInfer") - start for server, start in zip(servers, before, strict=True)]


def until(condition: Any, *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"


def test_round_robin_spreads_over_servers_and_leaves_out_one_that_is_not_serving(
    make_server: Any, make_echo: Any
) -> None:
    servers, url = two(make_server, make_echo)
    with Client(url, deadline_s=20) as client:
        until(lambda: min(spread(client, servers)) >= 9)
        servers[0].health = "NOT_SERVING"
        until(lambda: spread(client, servers)[0] == 0)
        assert spread(client, servers) == [0, 20]
        servers[0].health = "SERVING"
        until(lambda: min(spread(client, servers)) >= 9)


def test_a_server_may_leave_under_load_without_a_failed_call(make_server: Any, make_echo: Any) -> None:
    """NOT_SERVING, then gone: the stop that loses nothing (conformance, fact 1, recipe b)."""
    servers, url = two(make_server, make_echo)
    failures: list[Exception] = []
    stopped, answered = threading.Event(), [0]
    with Client(url, deadline_s=20) as client:
        until(lambda: min(spread(client, servers)) >= 9)

        def keep_calling() -> Any:
            while not stopped.is_set():
                try:
                    client.infer("echo", {"x": [1.0]})
                    answered[0] += 1
                except e.ForwardpassError as error:
                    failures.append(error)

        callers = [threading.Thread(target=keep_calling) for _ in range(4)]
        for caller in callers:
            caller.start()
        servers[0].health = "NOT_SERVING"

        def idle() -> Any:
            before = servers[0].count("ModelInfer")
            seen = answered[0]
            until(lambda: answered[0] > seen + 50)
            return servers[0].count("ModelInfer") == before

        until(idle)
        servers[0].stop()
        after = answered[0]
        until(lambda: answered[0] > after + 50)
        stopped.set()
        for caller in callers:
            caller.join()
        servers[0].start()
    assert failures == []


def test_pick_first_stays_with_one_server(make_server: Any, make_echo: Any) -> None:
    servers, url = two(make_server, make_echo)
    with Client(url, load_balancing="pick_first", deadline_s=20) as client:
        assert sorted(spread(client, servers)) == [0, 20]


def test_no_server_that_serves_is_unavailable_with_a_reason(server: Any) -> None:
    server.health = "NOT_SERVING"
    with Client(server.address, retry=QUICK) as client, pytest.raises(e.ServerUnavailable) as caught:
        client.infer("echo", {"x": 1.0}, deadline_s=20)
    assert "health" in caught.value.reason or "SERVING" in caught.value.reason


def test_tls_with_a_private_authority(make_server: Any, make_echo: Any, certificates: Any) -> None:
    server = make_server(certificates.server_credentials(ask_client=False))
    server.models["echo"] = make_echo("FP32")
    with Client(server.address, tls=TLS(ca_file=certificates.ca)) as client:
        assert client.infer("echo", {"x": [1.0]})["x"] == 1.0
    with (
        Client(server.address, retry=QUICK) as plaintext,
        pytest.raises(e.ServerUnavailable),
    ):
        plaintext.live(deadline_s=10)


def test_a_server_that_nobody_vouches_for_is_unavailable(make_server: Any, certificates: Any) -> None:
    server = make_server(certificates.server_credentials(ask_client=False))
    with (
        Client(f"grpcs://{server.address}") as client,
        pytest.raises(e.ServerUnavailable, match=r"(?i)certificate|handshake|ssl"),
    ):
        client.live(deadline_s=10)


def test_a_certificate_for_another_name_needs_server_name(make_server: Any, certificates: Any) -> None:
    server = make_server(certificates.server_credentials(ask_client=False))
    url = f"localhost:{server.port}"
    with Client(url, tls=TLS(ca_file=certificates.ca)) as client, pytest.raises(e.ServerUnavailable):
        client.live(deadline_s=10)
    with Client(url, tls=TLS(ca_file=certificates.ca, server_name="model.test")) as client:
        assert client.live()


def test_mutual_tls_and_a_token(make_server: Any, make_echo: Any, certificates: Any) -> None:
    server = make_server(certificates.server_credentials(ask_client=True))
    server.models["echo"] = make_echo("FP32")
    tls = TLS(ca_file=certificates.ca, cert_file=certificates.client_cert, key_file=certificates.client_key)
    with Client(server.address, tls=tls, token="secret") as client:
        client.infer("echo", {"x": [1.0]})
    assert server.calls[-1][1]["authorization"] == "Bearer secret"
    with (
        Client(server.address, tls=TLS(ca_file=certificates.ca)) as anonymous,
        pytest.raises(e.ServerUnavailable),
    ):
        anonymous.live(deadline_s=10)


def test_a_message_beyond_the_servers_limit_is_sent_once_and_refused(server: Any) -> None:
    with Client(server.address, max_message_bytes=200 * 1024 * 1024) as client:
        with pytest.raises(e.TooLarge, match="larger than max"):
            client.infer("echo", {"x": np.zeros(17 * 1024 * 1024, np.float32)})
        assert client.infer("echo", {"x": 1.0})["x"] == 1.0
