"""What `Client` and `AsyncClient` share: the settings, checked once, and everything a call needs but the waiting."""

import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from forwardpass import address, credentials, status
from forwardpass.conversation import Ask, Pause, Signatures
from forwardpass.credentials import TLS, Token
from forwardpass.errors import CallCancelled, ClientMisused, DeadlineExceeded, ForwardpassError
from forwardpass.methods import Method
from forwardpass.retry import RetryPolicy, service_config

Headers = Mapping[str, str | bytes]

RETRY_BYTES = 64 * 1024 * 1024
"""Messages above this are not retried: gRPC's own 256 KiB would leave out most pictures, and what is beyond the limit
of our server would be sent five times to be refused five times."""

_KEY = re.compile(r"[a-z0-9_.-]+")
_COMPRESSIONS = {
    None: grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


class Session(ABC):
    """Base of both clients.

    Args:
        url: address of the server: "host:8001", "grpc://host:8001", "grpcs://host:443" (TLS), "ip:port,ip:port",
            "dns:///name:8001", "unix:/path".
        tls: certificates; None for plaintext, or for the machine's roots when the url says grpcs.
        token: bearer token, or a function that returns one at once (it is asked at every call).
        headers: metadata of every call; keys in lower case.
        deadline_s: for a call that names none, in seconds; retries and a look at the metadata count into it.
        retry: which failures are tried again; None for none.
        load_balancing: "round_robin" spreads calls over every address of the name, and leaves out servers whose
            health is NOT_SERVING; "pick_first" stays with one.
        compression: of requests: None, "gzip" or "deflate".
        max_message_bytes: limit of one message, both ways.
        keepalive_s: pings on a silent connection; None for none. Servers of gRPC's defaults forbid them closer than
            300 s.
        allow_plaintext_token: send the token although the connection is neither TLS nor local, because something
            else (a mesh) encrypts it.

    Raises:
        ClientMisused: a setting that cannot work, with the value.
    """

    def __init__(
        self,
        url: str = "127.0.0.1:8001",
        *,
        tls: TLS | None = None,
        token: Token | None = None,
        headers: Headers | None = None,
        deadline_s: float = 30.0,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008 - frozen
        load_balancing: str = "round_robin",
        compression: str | None = None,
        max_message_bytes: int = 64 * 1024 * 1024,
        keepalive_s: float | None = 330.0,
        allow_plaintext_token: bool = False,
    ) -> None:
        self._address = address.parse(url)
        self._tls = TLS() if tls is None and self._address.tls else tls
        self._token = token
        self._headers = _checked(headers)
        self._deadline_s = _positive(deadline_s, "deadline_s")
        self._max_message_bytes = int(_positive(max_message_bytes, "max_message_bytes"))
        self._keepalive_s = None if keepalive_s is None else _positive(keepalive_s, "keepalive_s")
        self._serving_config = service_config(retry, load_balancing)
        self._health_config = service_config(None, "pick_first")
        if compression not in _COMPRESSIONS:
            raise ClientMisused(f"compression must be None, 'gzip' or 'deflate', got '{compression}'")
        self._compression = _COMPRESSIONS[compression]
        if token is not None and self._tls is None and not self._address.local and not allow_plaintext_token:
            raise ClientMisused(
                f"a token would travel in plaintext to {url}; use tls=TLS(...) or grpcs://, or say "
                "allow_plaintext_token=True if something else encrypts the connection"
            )
        self._credentials = None if self._tls is None else credentials.channel_credentials(self._tls)
        self._known: Signatures = {}
        self._pid = os.getpid()
        self._closed = False
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Called once, when the settings are known."""

    @property
    def url(self) -> str:
        """The address, as given."""
        return self._address.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.url}')"

    def _channel_options(self, *, about_health: bool) -> list[tuple[str, str | int]]:
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", self._health_config if about_health else self._serving_config),
            ("grpc.max_send_message_length", self._max_message_bytes),
            ("grpc.max_receive_message_length", self._max_message_bytes),
            ("grpc.per_rpc_retry_buffer_size", RETRY_BYTES),
            # A client is its own connection: another one's back-off must not delay it.
            ("grpc.use_local_subchannel_pool", 1),
            # A restarted server is found within seconds (gRPC's own ceiling is two minutes).
            ("grpc.initial_reconnect_backoff_ms", 250),
            ("grpc.max_reconnect_backoff_ms", 5000),
        ]
        if self._keepalive_s is not None:
            options.append(("grpc.keepalive_time_ms", round(self._keepalive_s * 1000)))
        if self._address.local:
            options.append(("grpc.enable_http_proxy", 0))
        if self._tls is not None and self._tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return options

    def _begin(self, deadline_s: float | None, headers: Headers | None) -> "Terms":
        """Check that the client can be used, and fix the terms of one conversation."""
        if self._closed:
            raise ClientMisused("the client is closed; make a new one", address=self.url)
        if os.getpid() != self._pid:
            raise ClientMisused(
                f"the client was made in process {self._pid}, and this is process {os.getpid()}: gRPC's threads and "
                "sockets do not survive a fork; make the client after forking",
                address=self.url,
            )
        budget_s = self._deadline_s if deadline_s is None else _positive(deadline_s, "deadline_s")
        metadata = self._headers if headers is None else self._headers + _checked(headers)
        if self._token is not None:
            metadata = (*metadata, credentials.bearer(self._token))
        return Terms(budget_s, time.monotonic() + budget_s, metadata)

    def _error(self, failed: Any, ask: Ask, terms: "Terms") -> ForwardpassError:
        """The error of a failed call, a `grpc.RpcError` of either kind."""
        code, details = failed.code().name, failed.details() or ""
        # A server that sees the deadline pass may cancel the call before our own timer has looked.
        if code == "CANCELLED" and time.monotonic() >= terms.deadline:
            code, details = "DEADLINE_EXCEEDED", ""
        return status.error_of(
            code,
            details,
            failed.trailing_metadata() or (),
            model=ask.model,
            address=self.url,
            deadline_s=terms.budget_s,
        )

    def _stream_error(self, failed: Any, ask: Ask, terms: "Terms") -> ForwardpassError:
        """The error of a failed stream: a `grpc.RpcError` of either kind, an error of ours, or a stream that was ended
        from this side."""
        if isinstance(failed, ForwardpassError):
            failed.model, failed.address = failed.model or ask.model, failed.address or self.url
            return failed
        if hasattr(failed, "trailing_metadata") and not self._closed:
            return self._error(failed, ask, terms)
        reason = "the client was closed" if self._closed else "the stream was closed on this side"
        return CallCancelled(reason, model=ask.model, address=self.url)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every call of one conversation."""

    budget_s: float
    """What the caller gave it."""
    deadline: float
    """Its end, on `time.monotonic`; infinite when the caller set none."""
    metadata: tuple[tuple[str, str | bytes], ...]

    def timeout_s(self, ask: Ask) -> float | None:
        """What is left for one call, in seconds; None without a deadline.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        if self.deadline == math.inf:
            return None
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"no answer within {self.budget_s:.4g} s", model=ask.model)
        return left_s

    def pause_s(self, pause: Pause) -> float:
        """How long to wait, in seconds."""
        return max(0.0, min(pause.seconds, self.deadline - time.monotonic()))


class Stubs:
    """Callables by method on a client's two channels, each made once."""

    def __init__(self, serving: Any, about_health: Any) -> None:
        self.channels = (serving, about_health)
        self._callables: dict[tuple[Method[Any, Any], bool], Any] = {}

    def of(self, ask: Ask) -> Any:
        """The callable of grpc for one question."""
        key = ask.method, ask.about_health
        stub = self._callables.get(key)
        if stub is None:
            channel = self.channels[ask.about_health]
            make = channel.stream_stream if ask.method.streams else channel.unary_unary
            stub = self._callables[key] = make(
                ask.method.path,
                request_serializer=ask.method.request.SerializeToString,
                response_deserializer=ask.method.reply.FromString,
            )
        return stub


def _checked(headers: Headers | None) -> tuple[tuple[str, str | bytes], ...]:
    """The pairs, if HTTP/2 can carry them; gRPC itself would only say "metadata was invalid"."""
    for key, value in (headers or {}).items():
        if not _KEY.fullmatch(key) or key.startswith("grpc-"):
            raise ClientMisused(f"header '{key}': a key has lower-case letters, digits, '_', '-', '.', and no 'grpc-'")
        if key.endswith("-bin") != isinstance(value, bytes):
            raise ClientMisused(f"header '{key}': bytes go with keys that end in '-bin', and text with the others")
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise ClientMisused(f"header '{key}' is not printable ASCII: {value!r:.60}; use a '-bin' key and bytes")
    return tuple((headers or {}).items())


def _positive(value: float, name: str) -> float:
    if not value > 0:
        raise ClientMisused(f"{name} must be above 0, got {value}")
    return value
