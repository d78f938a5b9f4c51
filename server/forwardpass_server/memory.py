"""Memory that large requests have freed goes back to the system.

The C library keeps what was freed for its next allocation, and as many heaps ("arenas") beside each other as it sees
threads allocate at once, up to eight a core. A server that has unpacked a 64 MiB message in each of grpcio's threads so
keeps hundreds of megabytes for ever, and its container needs a limit to match. Two cures, measured with glibc 2.36:

One arena. Callers who leave while they send 20 MB, 480 of them: from 100 to 166 MiB and up to 219 with the default (a
stock grpcio server: from 35 to 199), 100 MiB with one. A call costs as much CPU as before, of 40 bytes or of 640 KB.

Giving back, by `malloc_trim`, while nobody is served: 0.1 ms when there is nothing to give, 5 to 17 ms after 64 MiB.
"""

import ctypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path

GROWTH_SHARE = 0.02
"""How much resident memory must have grown since the last time to be given back at once."""
LOOKS_BETWEEN = 4
"""Without such growth it is given back every so many looks: a time before may have come too early, while an answer was
being let go of, or a message unpacked of which no call was made yet."""

_STATM = Path("/proc/self/statm")
_M_ARENA_MAX = -8
"""`mallopt`'s name for it, from glibc's malloc.h."""


def share_one_arena(environment: Mapping[str, str]) -> bool:
    """Let all threads of this process allocate from one arena. Call it before there are any.

    Args:
        environment: `MALLOC_ARENA_MAX` in it is somebody's own choice, and stays.

    Returns:
        Whether it is so now; False where the C library has no arenas (musl, macOS).
    """
    if "MALLOC_ARENA_MAX" in environment:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    except (OSError, AttributeError):
        return False


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def trimmer() -> Callable[[], object] | None:
    """What gives free memory back; None where the C library has no such thing (musl, macOS)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return lambda: trim(0)


class Memory:
    """Gives memory back while nobody is served. Used by one thread.

    Args:
        resident: bytes of resident memory now.
        trim: gives free memory back; None for never.
    """

    def __init__(self, resident: Callable[[], int], trim: Callable[[], object] | None) -> None:
        self._resident = resident
        self._trim = trim
        self._left = 0
        self._looks = 0

    def tend(self, *, idle: bool) -> bool:
        """Look, and give back if it is time. Call it about once a second.

        Args:
            idle: nothing is in flight. A trim locks one arena after the other, and would hold up a request.

        Returns:
            Whether memory was given back.
        """
        if self._trim is None or not idle:
            return False
        self._looks += 1
        if self._looks < LOOKS_BETWEEN and self._resident() <= self._left * (1 + GROWTH_SHARE):
            return False
        self._trim()
        self._left = self._resident()
        self._looks = 0
        return True
