"""What the transport counts. Written by the loop thread alone, read by anybody: plain numbers, each whole by itself."""

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Counts since the start, and how late the loop runs."""

    calls_started: int = 0
    """Calls admitted to a handler, streams included."""
    calls_completed: int = 0
    """Admitted calls whose answer was taken by the core, or whose caller left."""
    calls_cancelled: int = 0
    """Of the completed, those whose caller left (or ran out of time) before the answer."""
    calls_refused: int = 0
    """Calls answered without a handler: unknown method, too many in flight, read too late, stopping, message too
    large or missing."""
    loop_passes: int = 0
    """Rounds of the loop: every ready event, then `on_idle`."""
    loop_busy_s: float = 0.0
    """Time spent in rounds, that is, not waiting for events."""
    loop_lag_s: float = 0.0
    """How long the latest round took: an event arriving at its start waited that long."""
    loop_lag_max_s: float = 0.0
    """The longest round; whoever reports it may set it back to 0."""

    @property
    def calls_answered(self) -> int:
        """Completed, and not because the caller left."""
        return self.calls_completed - self.calls_cancelled

    @property
    def calls_in_flight(self) -> int:
        """Admitted and not completed."""
        return self.calls_started - self.calls_completed
