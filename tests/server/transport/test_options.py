"""Settings: what is refused, and what the core is told."""

import pytest

from forwardpass_server.transport.options import TransportOptions, channel_args


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_message_bytes", 0),
        ("max_message_bytes", -1),
        ("max_metadata_bytes", 0),
        ("max_calls_in_flight", 0),
        ("max_stream_backlog_bytes", -5),
        ("posted_calls", 0),
        ("keepalive_s", 0),
        ("keepalive_timeout_s", -1.0),
        ("min_client_ping_interval_s", 0),
        ("max_connections", 0),
        ("max_connection_age_s", 0.0),
        ("max_connection_age_grace_s", -1.0),
        ("port", -1),
        ("port", 65536),
        ("host", ""),
        ("compression", "zstd"),
    ],
)
def test_a_setting_without_meaning_is_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        TransportOptions(**{setting: value})  # type: ignore[arg-type]


def test_the_core_drops_no_call_by_itself_and_shares_no_port() -> None:
    args = dict(channel_args(TransportOptions()))
    assert args["grpc.server.max_pending_requests"] == 1 << 20
    assert args["grpc.server.max_pending_requests_hard_limit"] == 1 << 20
    assert args["grpc.so_reuseport"] == 0


def test_seconds_become_milliseconds_and_none_leaves_the_default() -> None:
    args = dict(channel_args(TransportOptions(max_connection_age_s=0.25, keepalive_s=30)))
    assert args["grpc.max_connection_age_ms"] == 250
    assert args["grpc.keepalive_time_ms"] == 30_000
    assert "grpc.max_connection_age_grace_ms" not in args
    assert "grpc.max_allowed_incoming_connections" not in args


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1:8001"), ("::", "[::]:8001"), ("::1", "[::1]:8001")]
)
def test_ipv6_hosts_get_brackets(host: str, address: str) -> None:
    assert TransportOptions(host=host).address == address
