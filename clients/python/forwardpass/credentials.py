"""Certificates for the channel, and the bearer token for each call."""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import grpc

from forwardpass.errors import ClientMisused

Token = str | Callable[[], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TLS:
    """How to trust the server, and how to be trusted. All files are PEM."""

    ca_file: str | PathLike[str] | None = None
    """Roots that sign the server's certificate; None for the machine's public ones."""
    cert_file: str | PathLike[str] | None = None
    """Our own certificate chain (mutual TLS); needs `key_file`."""
    key_file: str | PathLike[str] | None = None
    """Its private key."""
    server_name: str | None = None
    """Name expected in the server's certificate; None for the host of the address."""


def channel_credentials(tls: TLS) -> grpc.ChannelCredentials:
    """Read the files.

    Raises:
        ClientMisused: a file missing, unreadable or not PEM, or a certificate without its key.
    """
    if (tls.cert_file is None) != (tls.key_file is None):
        raise ClientMisused("mutual TLS needs both cert_file and key_file, got one of them")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(tls.ca_file, "ca_file", "CERTIFICATE"),
        private_key=_pem(tls.key_file, "key_file", "PRIVATE KEY"),
        certificate_chain=_pem(tls.cert_file, "cert_file", "CERTIFICATE"),
    )


def bearer(token: Token) -> tuple[str, str]:
    """The call's authorization metadata; asks a callable each time, so that tokens may rotate."""
    return ("authorization", f"Bearer {token if isinstance(token, str) else token()}")


def _pem(path: str | PathLike[str] | None, role: str, kind: str) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as unreadable:
        raise ClientMisused(f"{role} '{path}' cannot be read: {unreadable.strerror}") from unreadable
    # gRPC itself says nothing about a bad file but "handshake failed", seconds later.
    if b"-----BEGIN " not in data or f"{kind}-----".encode() not in data:
        raise ClientMisused(f"{role} '{path}' holds no PEM block '{kind}'")
    return data
