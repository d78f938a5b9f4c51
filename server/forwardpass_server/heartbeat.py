"""When a process is asked whether it lives, and when it is taken for hung. Pure."""

import math
from dataclasses import dataclass, field
from enum import Enum

BEATS = 4
"""How often a process is asked in the time after which its silence means that it hangs."""
INTERVAL_S_MAX = 5.0


class Beat(Enum):
    """What to do now."""

    WAIT = "nothing"
    ASK = "ask it"
    HANGS = "it hangs"


@dataclass
class Heartbeat:
    """Of one process.

    Args:
        silence_s: after so many seconds without an answer it hangs; inf: never.
        now: monotonic seconds.

    Before its first answer it starts, however long that takes. Time in which nobody looked does not count: the
    supervisor may have been stopped itself.
    """

    silence_s: float
    now: float
    _silent_s: float = field(default=0.0, init=False)
    _waits: bool = field(default=False, init=False)
    _lives: bool = field(default=False, init=False)

    @property
    def interval_s(self) -> float:
        """How often to call `look`, in seconds."""
        return min(self.silence_s / BEATS, INTERVAL_S_MAX)

    def look(self, now: float, *, answered: bool) -> Beat:
        """Look once.

        Args:
            now: monotonic seconds.
            answered: it answered what it was asked last.
        """
        if math.isinf(self.silence_s):
            return Beat.WAIT
        passed_s, self.now = min(now - self.now, self.interval_s), now
        self._lives |= answered
        if answered or not self._waits:
            self._waits, self._silent_s = True, 0.0
            return Beat.ASK
        self._silent_s += passed_s
        return Beat.HANGS if self._lives and self._silent_s >= self.silence_s else Beat.WAIT
