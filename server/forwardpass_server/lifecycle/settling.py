"""Whether somebody may still be writing to files that have no manifest to say that they are complete."""

from __future__ import annotations

from collections.abc import Callable

from forwardpass_server.lifecycle.repository import Stamp


class Settling:
    """Remembers since when files have looked as they do.

    Files are settled when the newest of them is older than `settle_s`, or when nothing about them has changed for as
    long as we have watched (a file may carry any time, one in the future too).

    Args:
        settle_s: seconds.
        clock: monotonic seconds.
        wall_clock: seconds since 1970, as files are stamped.
    """

    def __init__(self, settle_s: float, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._settle_s = settle_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._since: dict[object, tuple[Stamp, float]] = {}

    def settled(self, key: object, stamp: Stamp) -> bool:
        """Whether the files known as `key`, which look like `stamp` now, are left alone."""
        now = self._clock()
        before, since = self._since.get(key, (None, now))
        if before != stamp:
            since = now
        self._since[key] = (stamp, since)
        age_s = self._wall_clock() - max((mtime_ns for _, _, mtime_ns, _ in stamp), default=0) * 1e-9
        return age_s >= self._settle_s or now - since >= self._settle_s

    def forget(self, key: object) -> None:
        """Those files are gone."""
        self._since.pop(key, None)
