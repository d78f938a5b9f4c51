"""Settings of the transport, and the channel arguments they become. Imports no gRPC at run time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import grpc

MIB = 1 << 20

# What the core may hold before we have seen a call. Its own default drops calls as CANCELLED beyond about 1,000; we see
# every call and refuse by name (grpc/grpc#34782 introduced the limit).
PENDING_CALLS_LIMIT = 1 << 20

_COMPRESSION = {"none": 0, "deflate": 1, "gzip": 2}
"""`grpc_compression_algorithm` of the core."""


@dataclass(frozen=True, kw_only=True)
class TransportOptions:
    """How to listen, and what one caller may ask for. Limits hold exactly: the limit passes, one more is refused."""

    host: str = "127.0.0.1"
    """Address or name to listen on; `0.0.0.0` or `::` for every interface."""
    port: int = 8001
    """TCP port; 0 lets the system choose, and `bind` returns its choice."""
    credentials: "grpc.ServerCredentials | None" = None
    """TLS or mTLS, from `credentials.load`; None serves plaintext."""
    max_message_bytes: int = 64 * MIB
    """Largest request, after decompression; a larger one is answered RESOURCE_EXHAUSTED."""
    compression: Literal["none", "gzip", "deflate"] = "none"
    """How answers are compressed for callers who said that they read it; requests are read compressed in any case."""
    max_metadata_bytes: int = 16 << 10
    """Largest request metadata as HTTP/2 counts it: name + value + 32 bytes each, gRPC's own (about 500) included.

    The core's stock server refuses at random between 8 and 16 KiB; this one refuses exactly above the limit.
    """
    max_calls_in_flight: int = 1 << 16
    """Calls admitted and not yet completed, streams included; one more is answered RESOURCE_EXHAUSTED."""
    max_connections: int | None = None
    """Open connections; further ones are closed as they arrive. None: no limit but the system's."""
    max_stream_backlog_bytes: int = 256 * MIB
    """What one stream may hold for a caller that does not read; beyond it the stream fails with RESOURCE_EXHAUSTED."""
    max_connection_age_s: float | None = None
    """After this long (±10 %) a connection is told to reconnect (GOAWAY), so that clients spread. None: never."""
    max_connection_age_grace_s: float | None = None
    """How long calls may outlive the age of their connection. None: as long as they need."""
    keepalive_s: float = 60.0
    """A connection silent for this long is pinged; without an answer in `keepalive_timeout_s` it is closed."""
    keepalive_timeout_s: float = 20.0
    """See `keepalive_s`."""
    min_client_ping_interval_s: float = 5.0
    """Clients may ping this often, with or without calls; a flood is still cut (GOAWAY `too_many_pings`)."""
    posted_calls: int = 1000
    """Calls that the core may hand over without waiting for the loop."""
    reuse_port: bool = False
    """Let several processes share the port (SO_REUSEPORT). Off: a second server on the port fails to start."""

    def __post_init__(self) -> None:
        for name in (
            "max_message_bytes",
            "max_metadata_bytes",
            "max_calls_in_flight",
            "max_stream_backlog_bytes",
            "keepalive_s",
            "keepalive_timeout_s",
            "min_client_ping_interval_s",
            "posted_calls",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_connections", "max_connection_age_s", "max_connection_age_grace_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, or None for no limit, got {value}")
        if self.compression not in _COMPRESSION:
            raise ValueError(f"compression must be one of {', '.join(_COMPRESSION)}, got {self.compression!r}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 (choose for me) to 65535, got {self.port}")
        if not self.host:
            raise ValueError("host is empty; say 0.0.0.0 to listen on every interface")

    @property
    def address(self) -> str:
        """`host:port` as gRPC takes it, with brackets round an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def channel_args(options: TransportOptions) -> tuple[tuple[str, int], ...]:
    """The core's settings for `options`."""
    args = {
        "grpc.so_reuseport": int(options.reuse_port),
        "grpc.server.max_pending_requests": PENDING_CALLS_LIMIT,
        "grpc.server.max_pending_requests_hard_limit": PENDING_CALLS_LIMIT,
        "grpc.max_receive_message_length": options.max_message_bytes,
        "grpc.default_compression_algorithm": _COMPRESSION[options.compression],
        # soft = hard: exact, where the core's default refuses at random in between
        "grpc.max_metadata_size": options.max_metadata_bytes,
        "grpc.absolute_max_metadata_size": options.max_metadata_bytes,
        "grpc.keepalive_time_ms": _milliseconds(options.keepalive_s),
        "grpc.keepalive_timeout_ms": _milliseconds(options.keepalive_timeout_s),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_recv_ping_interval_without_data_ms": _milliseconds(options.min_client_ping_interval_s),
    }
    if options.max_connections is not None:
        args["grpc.max_allowed_incoming_connections"] = options.max_connections
    if options.max_connection_age_s is not None:
        args["grpc.max_connection_age_ms"] = _milliseconds(options.max_connection_age_s)
    if options.max_connection_age_grace_s is not None:
        args["grpc.max_connection_age_grace_ms"] = _milliseconds(options.max_connection_age_grace_s)
    return tuple(args.items())


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
