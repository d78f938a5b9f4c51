"""One text that is being generated: what was asked for, how far it is, and who reads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np

from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.scheduling.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the tokens of one text are chosen.

    Args:
        max_tokens: after so many it ends, at least 1.
        temperature: 0 takes the likeliest token.
        top_k: of so many likeliest tokens; 0 of all.
        top_p: of the likeliest tokens that have this much of the probability together; 1 of all.
        seed: of its random numbers; any int64.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class Reader(Protocol):
    """Takes one text as it is written: `take` and `say` in turn, then at most one `fail`; on the step thread."""

    @property
    def cancelled(self) -> bool:
        """It has left; read at every step, so it must be cheap."""

    @property
    def behind(self) -> bool:
        """It has not yet read what was said before: let it be, until `when_taken` says so. Likewise cheap."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call `callback` once if it leaves before its end; at once if it has left. Loop thread."""

    def when_taken(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on any thread, when it has read everything; soon, if it has. Not if it leaves."""

    def take(self, tokens: Sequence[int], *, last: bool) -> int | None:
        """The next tokens of the text, at least one; not yet to be sent.

        Args:
            tokens: numbers in the vocabulary.
            last: no more will come.

        Returns:
            None if the text goes on, or is over with the last of them; where it is over before, because it came to a
            stop string, how many of them there are up to its end.
        """

    def say(self) -> None:
        """Send what was taken. After the end of the text nothing is called any more."""

    def fail(self, error: Exception) -> None:
        """Why the text ends here. Also called for one that has left, so that it lets go of what it holds."""


class Text:
    """One text. Touched by the step thread alone, once it is submitted; compared by identity.

    Args:
        prompt: tokens of the vocabulary, at least one.
        sampling: how it goes on.
        reader: who reads it.
        timeline: its stamps.
        deadline: `time.monotonic()` seconds after which nobody wants it; inf for never.
    """

    __slots__ = (
        "deadline",
        "left",
        "parked_until",
        "prompt",
        "reader",
        "sampling",
        "spoke_ns",
        "states",
        "timeline",
        "uniforms",
        "unread",
        "written",
    )

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        reader: Reader,
        timeline: Timeline,
        deadline: float = inf,
    ) -> None:
        assert prompt, "there is no token to begin with"
        self.prompt = np.array(prompt, np.int64)
        self.sampling = sampling
        self.reader = reader
        self.timeline = timeline
        self.deadline = deadline
        self.unread = len(prompt) - 1
        """Tokens at the end of the prompt that are still to be forced; the first one is fed as it is."""
        self.left = sampling.max_tokens
        """Tokens that may still be written."""
        self.written = 0
        """Tokens written."""
        self.spoke_ns = 0
        """When its reader was last given tokens; 0 for not yet."""
        self.states: tuple[np.ndarray, ...] | None = None
        """Its last token and its states, [1, …] each, while it is no row of the last step; None at its beginning."""
        self.uniforms = Uniforms(sampling.seed) if sampling.temperature else None
        self.parked_until = inf
        """`time.monotonic()` seconds until when its reader may be behind."""

    @property
    def needs(self) -> int:
        """Tokens that it advances by until its end, if nothing stops it."""
        return self.unread + self.left

    def forced(self, steps: int) -> np.ndarray:
        """The part of the prompt that a run of so many steps reads."""
        start = len(self.prompt) - self.unread
        return self.prompt[start : start + steps]
