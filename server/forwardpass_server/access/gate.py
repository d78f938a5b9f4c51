"""The gate before every rpc: what a caller shows, compared with what the rpc takes.

Two kinds of credentials, of equal worth: a bearer token (metadata `authorization: Bearer …`), and the subject of a
client certificate (mTLS). Admin credentials are good for data as well. Without a data credential configured, data rpcs
are open; without an admin one, admin rpcs are closed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from forwardpass_server.access.levels import Level
from forwardpass_server.errors import PermissionDenied, Unauthenticated

SUBJECT_KEYS = ("x509_common_name", "x509_subject_alternative_name")
"""Where grpc tells the names in a client's certificate, all vouched for by the authority that signed it."""


class Caller(Protocol):
    """A call, as far as it says who calls."""

    @property
    def method(self) -> str: ...
    @property
    def metadata(self) -> Sequence[tuple[str, str | bytes]]: ...
    def identity(self) -> Mapping[str, tuple[bytes, ...]]: ...


class Tokens(Protocol):
    """A set of tokens; `tokens.TokenFile`."""

    def holds(self, token: str) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What is good for one level.

    Args:
        tokens: bearer tokens; None for none.
        subjects: common names and alternative names of client certificates.
    """

    tokens: Tokens | None = None
    subjects: frozenset[str] = field(default_factory=frozenset)

    def know(self, token: str | None, subjects: frozenset[str]) -> bool:
        """Whether one of them was shown."""
        return bool(self.subjects & subjects) or (
            token is not None and self.tokens is not None and self.tokens.holds(token)
        )


class Gate:
    """Decides about calls. Loop thread.

    Args:
        data: good for data rpcs; None leaves them open to everybody.
        admin: good for admin rpcs, and for data; None closes those.
    """

    def __init__(self, data: Credentials | None = None, admin: Credentials | None = None) -> None:
        self._data = data
        self._admin = admin

    def is_open(self, level: Level) -> bool:
        """Whether everybody passes."""
        return level is Level.OPEN or (level is Level.DATA and self._data is None)

    def check(self, caller: Caller, level: Level) -> None:
        """Let a caller pass.

        Raises:
            Unauthenticated: it shows nothing that is known here.
            PermissionDenied: the rpc is closed, or what it shows is not good for it.
        """
        if self.is_open(level):
            return
        name = caller.method.rpartition("/")[2]
        if level is Level.ADMIN and self._admin is None:
            raise PermissionDenied(f"{name} is for admins, and they are off: start the server with --enable-admin")
        token = _token(caller)
        subjects = _subjects(caller)
        if self._admin is not None and self._admin.know(token, subjects):
            return
        good_for_data = self._data is not None and self._data.know(token, subjects)
        if level is Level.DATA and good_for_data:
            return
        if good_for_data:
            raise PermissionDenied(f"{name} is for admins; these credentials are good for data only")
        shown = "what was shown is not known here" if token is not None or subjects else "none were shown"
        raise Unauthenticated(
            f"{name} needs credentials, and {shown}: a bearer token (metadata `authorization: Bearer …`) or a client "
            "certificate"
        )


def _token(caller: Caller) -> str | None:
    """The bearer token; None where there is none, or several, one of which somebody on the way may have added."""
    given = [value for key, value in caller.metadata if key == "authorization"]
    if len(given) != 1 or not isinstance(given[0], str):
        return None
    scheme, _, token = given[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _subjects(caller: Caller) -> frozenset[str]:
    identity = caller.identity()
    return frozenset(name.decode("utf-8", "replace") for key in SUBJECT_KEYS for name in identity.get(key, ()))
