"""How long requests of one priority may wait, and how many of them: Triton's ModelQueuePolicy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """What holds for the requests of one priority. The defaults leave everything to the version's limits."""

    max_requests: int | None = None
    """Requests of this priority that may wait; None: as many as the queue holds."""
    timeout_s: float = inf
    """How long one may wait for its run, in seconds."""
    callers_may_shorten: bool = False
    """A request's own `timeout` counts where it is shorter."""
    delays: bool = False
    """Who waited too long runs after all others of its priority, instead of never."""

    def __post_init__(self) -> None:
        if self.max_requests is not None and self.max_requests < 1:
            raise ValueError(f"max_requests is {self.max_requests}; it must be at least 1, or None")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be above 0")


@dataclass(frozen=True, slots=True)
class QueuePolicies:
    """The policy of each priority."""

    default: QueuePolicy = QueuePolicy()
    of_priority: Mapping[int, QueuePolicy] = field(default_factory=dict)

    def of(self, priority: int) -> QueuePolicy:
        """That of a priority, which has its own or the default one."""
        return self.of_priority.get(priority, self.default)

    @property
    def plain(self) -> bool:
        """Whether no request is treated otherwise than the version's limits say."""
        return not self.of_priority and self.default == QueuePolicy()
