"""`forwardpass generate`: a text shown as it arrives, and how fast it came."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from forwardpass.text import Text


@dataclass(frozen=True, slots=True)
class Seen:
    """How a text came."""

    characters: int
    seconds: float
    """From the request to the end of the text."""
    first_piece_s: float
    """From the request to the first piece."""

    @property
    def rate(self) -> float:
        """Characters a second."""
        return self.characters / self.seconds if self.seconds > 0 else 0.0


def show(text: Text, out: TextIO | None, clock: Callable[[], float] = time.perf_counter) -> Seen:
    """Read a text to its end, writing each piece as it comes; `out` then stands at the beginning of a line, whatever
    happened. None shows nothing."""
    began, first, last, characters = clock(), 0.0, "", 0
    try:
        for piece in text:
            first = first or clock()
            characters += len(piece)
            last = piece
            if out is not None:
                out.write(piece)
                out.flush()
    finally:
        if out is not None and last and not last.endswith("\n"):
            out.write("\n")
            out.flush()
    ended = clock()
    return Seen(characters, ended - began, (first or ended) - began)


def words(text: Text, seen: Seen) -> str:
    """One line about a text that is at its end."""
    return (
        f"{seen.characters} characters in {seen.seconds:.3g} s: {seen.rate:,.0f} characters/s, the first after "
        f"{seen.first_piece_s * 1e3:.3g} ms; ended by {text.finish_reason or 'the server'}; seed {text.seed}"
    )


def as_json(prompt: str, text: Text, seen: Seen) -> dict[str, Any]:
    """The same for programs, with the text."""
    return {
        "prompt": prompt,
        "text": text.text,
        "finish_reason": text.finish_reason,
        "generated_tokens": text.generated_tokens,
        "seed": text.seed,
        "model_version": text.model_version,
        "seconds": seen.seconds,
        "first_piece_s": seen.first_piece_s,
        "characters_per_s": seen.rate,
    }
