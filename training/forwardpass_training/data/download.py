"""Fetch one file over HTTP: resumed where it stopped, never too long, visible only when whole and verified."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from forwardpass_training.errors import DownloadFailed

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30.0
PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416

OnProgress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all), on the calling thread."""


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    urls: tuple[str, ...], target: Path, *, size_bytes: int, sha256: str, on_progress: OnProgress | None = None
) -> None:
    """Fetch `target` from the first of `urls` that gives the right bytes.

    What has arrived is kept in `<target>.part` and resumed by the next call, also after a crash. The file appears
    under its own name only when its size and SHA-256 are right, by one rename. The caller holds the file's lock.

    Raises:
        DownloadFailed: no address gave the file; the text lists each with its reason.
    """
    part = target.with_name(target.name + ".part")
    reasons = []
    for url in urls:
        try:
            resumed = part.exists()
            reason = _attempt(url, part, size_bytes, sha256, on_progress)
            if reason and resumed and not part.exists():  # the old beginning was bad, not the mirror
                reason = _attempt(url, part, size_bytes, sha256, on_progress)
        except urllib.error.HTTPError as exc:
            reason = f"HTTP {exc.code} {exc.reason}"
            exc.close()
        except urllib.error.URLError as exc:
            reason = str(exc.reason)
        except (OSError, http.client.HTTPException) as exc:
            reason = str(exc) or type(exc).__name__
        if not reason:
            part.replace(target)
            return
        reasons.append(f"  {url}: {reason}")
    raise DownloadFailed("\n".join(reasons))


def _attempt(url: str, part: Path, size_bytes: int, sha256: str, on_progress: OnProgress | None) -> str:
    """Complete `part` from `url`. Returns why it is not the file, or '' when it is; wrong bytes are deleted."""
    _receive(url, part, size_bytes, on_progress)
    got_bytes = part.stat().st_size
    if got_bytes < size_bytes:
        return f"the connection ended after {got_bytes:,} of {size_bytes:,} bytes (kept, to be resumed)"
    got_sha256 = sha256_of(part) if got_bytes == size_bytes else ""
    if got_sha256 == sha256:
        return ""
    part.unlink()
    if got_bytes > size_bytes:
        return f"it is longer than the {size_bytes:,} bytes that it must have"
    return f"its SHA-256 is {got_sha256}, not {sha256}"


def _receive(url: str, part: Path, size_bytes: int, on_progress: OnProgress | None) -> None:
    """Append to `part` what it lacks; begin again where the server cannot resume. Stops one byte past `size_bytes`."""
    have_bytes = part.stat().st_size if part.exists() else 0
    if have_bytes >= size_bytes:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "forwardpass-train", "Accept-Encoding": "identity"})
    if have_bytes:
        request.add_header("Range", f"bytes={have_bytes}-")
    with closing(urllib.request.urlopen(request, timeout=TIMEOUT_S)) as reply:
        append = reply.status == PARTIAL_CONTENT and _starts_at(reply.headers.get("Content-Range", ""), have_bytes)
        got_bytes = have_bytes if append else 0
        with part.open("ab" if append else "wb") as file:
            while got_bytes <= size_bytes and (chunk := reply.read1(min(CHUNK_BYTES, size_bytes + 1 - got_bytes))):
                file.write(chunk)
                got_bytes += len(chunk)
                if on_progress:
                    on_progress(got_bytes, size_bytes)


def _starts_at(content_range: str, offset: int) -> bool:
    return content_range.startswith(f"bytes {offset}-")
