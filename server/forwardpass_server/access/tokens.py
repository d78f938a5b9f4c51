"""Bearer tokens in a file, one a line; read again when it changes.

Only their digests are kept. A given token is compared with each of them in constant time, so that neither its beginning
nor its place in the file can be found out by timing.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from forwardpass_server.errors import StartFailed
from forwardpass_server.logs import event

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 1 << 20
TOKENS_MAX = 1024
TOKEN_CHARACTERS_MIN = 16
"""A shorter one can be guessed."""
CHECK_INTERVAL_S = 1.0
"""How often the file is looked at, in seconds; only while there are calls."""


class UnusableTokens(Exception):
    """Why a file gives no tokens."""


class TokenFile:
    """The tokens in a file. Loop thread, save `reread`.

    A file that cannot be read any more leaves the tokens as they were, and is logged. An empty one revokes them all.

    Args:
        path: one token a line; blank lines, and those that begin with `#`, are passed over.
        clock: monotonic seconds.

    Raises:
        StartFailed: it cannot be read, holds no token, or a token that is too short.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(path)
        try:
            self._digests = _read(path)
        except UnusableTokens as exc:
            raise StartFailed(f"token file {path}: {exc}") from exc
        if not self._digests:
            raise StartFailed(f"token file {path} holds no token: write one a line")

    def holds(self, token: str) -> bool:
        """Whether it is one of them."""
        self._refresh()
        digest = _digest(token)
        # No early end: every one is compared, whichever fits.
        return sum(hmac.compare_digest(digest, each) for each in self._digests) > 0

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._looked < CHECK_INTERVAL_S:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self.reread()

    def reread(self) -> None:
        """Read the file now, changed or not. Any thread."""
        self._stamp = _stamp(self._path)
        try:
            self._digests = _read(self._path)
        except UnusableTokens as exc:
            event(log, logging.ERROR, "token file not read; the tokens of before go on", path=self._path, reason=exc)
        else:
            event(log, logging.INFO, "token file read", path=self._path, tokens=len(self._digests))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise UnusableTokens(f"is larger than {FILE_BYTES_MAX} bytes")
        lines = content.decode("ascii").splitlines()
    except OSError as exc:
        raise UnusableTokens(f"cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise UnusableTokens("is not ASCII, which is all that a token can be") from exc
    tokens = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"}
    for number, token in tokens.items():
        if len(token) < TOKEN_CHARACTERS_MIN:
            raise UnusableTokens(
                f"line {number} has {len(token)} characters; a token has at least {TOKEN_CHARACTERS_MIN}"
            )
    if len(tokens) > TOKENS_MAX:
        raise UnusableTokens(f"holds {len(tokens)} tokens; at most {TOKENS_MAX}")
    return tuple(_digest(token) for token in tokens.values())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
