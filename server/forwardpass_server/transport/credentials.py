"""TLS and mTLS from PEM files, checked before the port is bound, and read again when they are replaced.

Certificates live shorter than servers: cert-manager and its like replace the files in place, so every new connection
gets what the files say at that moment. A replacement that does not check is logged, and the one before it stays in use.
"""

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from forwardpass_server.errors import StartFailed

logger = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class CredentialFiles:
    """Where the PEM files are."""

    certificate: Path
    """The server's certificate, followed by its intermediates."""
    key: Path
    """Its private key, not encrypted."""
    client_ca: Path | None = None
    """Certificate authorities of clients: given, every client must present a certificate of theirs (mTLS)."""

    def paths(self) -> tuple[Path, ...]:
        """The files, for reading and for noticing a change."""
        return (self.certificate, self.key) if self.client_ca is None else (self.certificate, self.key, self.client_ca)


def load(files: CredentialFiles) -> grpc.ServerCredentials:
    """Credentials for `TransportOptions.credentials`.

    Raises:
        StartFailed: a file is missing, unreadable or no PEM, or the key is encrypted or another's; says which.
    """
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files),
        _Reloading(files),
        require_client_authentication=files.client_ca is not None,
    )


class _Reloading:
    """What the core asks at each new connection, on its own threads: None for "no change"."""

    def __init__(self, files: CredentialFiles) -> None:
        self._files = files
        self._seen = _stamp(files)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            stamp = _stamp(self._files)
            if stamp == self._seen:
                return None
            self._seen = stamp
            configuration = _configuration(self._files)
        except (OSError, StartFailed) as error:
            logger.error("new TLS files are not used, the ones before them stay: %s", error)
            return None
        logger.info("TLS files were replaced; new connections get %s", self._files.certificate)
        return configuration


def _configuration(files: CredentialFiles) -> grpc.ServerCertificateConfiguration:
    certificate, key = _read("certificate", files.certificate), _read("private key", files.key)
    client_ca = None if files.client_ca is None else _read("client CA", files.client_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_password)
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise StartFailed(
                f"the private key {files.key} does not belong to the first certificate of {files.certificate}"
            ) from error
        raise StartFailed(
            f"cannot use certificate {files.certificate} with private key {files.key}: {_words(error)}; "
            "both must be PEM, the key not encrypted"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise StartFailed(f"the client CA {files.client_ca} holds no PEM certificate: {_words(error)}") from error
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartFailed(f"cannot read the {what} {path}: {error.strerror}") from error


def _refuse_password() -> str:
    raise ValueError("the private key is encrypted")


def _words(error: ssl.SSLError | ValueError) -> str:
    return getattr(error, "reason", None) or str(error)


def _stamp(files: CredentialFiles) -> Stamp:
    found = (os.stat(path) for path in files.paths())
    return tuple((status.st_mtime_ns, status.st_ino, status.st_size) for status in found)
