"""Where a text ends that is to end before certain strings, found while it is written piece by piece.

A string may come in two pieces, so a piece is held back as far as it could be the beginning of one: what is let go is
never taken back. The cut does not depend on the pieces: it is made where the first string is complete, before it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """What may be said now."""

    text: str
    read: int | None
    """Characters of the piece that was fed up to the end of the string that was found; None when none was."""


class StopStrings:
    """Looks for strings in one text. Not for several threads at once.

    Args:
        strings: none of them empty; may be none at all.
    """

    __slots__ = ("_firsts", "_held", "_longest", "_strings")

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._longest = max(map(len, strings), default=0)
        self._firsts = {string[0] for string in strings}
        self._held = ""

    def feed(self, piece: str) -> Piece:
        """The next piece of the text. After one in which a string was found, nothing is fed any more."""
        if not self._strings:
            return Piece(piece, None)
        text = self._held + piece
        found = self._first(text)
        if found is not None:
            start, end = found
            held, self._held = len(self._held), ""
            return Piece(text[:start], end - held)
        kept = len(text) - self._hopeful(text)
        self._held = text[kept:]
        return Piece(text[:kept], None)

    def rest(self) -> str:
        """What was held back, when no further piece comes."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, int] | None:
        """Beginning and end of the string that is complete first; of several, the longest."""
        ends = [(at + len(string), at) for string in self._strings if (at := text.find(string)) >= 0]
        if not ends:
            return None
        end, start = min(ends)
        return start, end

    def _hopeful(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a string."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._firsts and any(string.startswith(text[at:]) for string in self._strings):
                return len(text) - at
        return 0
