"""The tokens of a generator and the text that they stand for.

Reading takes the longest token that fits, from the left; where every token is one character, that is simply the
character. So `read(write(tokens))` may be other tokens than those, and always the same text.
"""

from collections.abc import Sequence

from forwardpass_server.errors import InvalidRequest

STRANGERS_SHOWN = 3
"""Characters outside the vocabulary that an error names."""


class Vocabulary:
    """Token numbers and their text. Immutable; any thread.

    Args:
        tokens: the text of each, by number; where two have the same text, the first is read.
        replacement: the token that is read for a character that no token begins; None refuses such a text.
    """

    def __init__(self, tokens: Sequence[str], replacement: int | None = None) -> None:
        self.tokens = tuple(tokens)
        self._replacement = replacement
        self._numbers: dict[str, int] = {}
        for number, text in enumerate(self.tokens):
            if text:
                self._numbers.setdefault(text, number)
        self.longest = max(map(len, self._numbers), default=0)
        """Characters of the longest token."""

    def __len__(self) -> int:
        return len(self.tokens)

    def write(self, tokens: Sequence[int]) -> str:
        """The text of token numbers, each from 0 to below `len(self)`."""
        of = self.tokens
        return "".join([of[token] for token in tokens])

    def covering(self, tokens: Sequence[int], characters: int) -> Sequence[int]:
        """The first of `tokens`, up to the one whose text holds the last of so many characters, at least one."""
        for count, token in enumerate(tokens, 1):
            characters -= len(self.tokens[token])
            if characters <= 0:
                return tokens[:count]
        return tokens

    def read(self, text: str, most: int) -> list[int]:
        """The token numbers of a text.

        Raises:
            InvalidRequest: characters that are no token's and have no replacement; names the first of them. Or more
                than `most` tokens.
        """
        if self.longest == 1 and len(text) <= most:  # the common case, ten times as fast
            try:
                return [self._numbers[character] for character in text]
            except KeyError:
                pass  # the loop below knows what to do
        tokens: list[int] = []
        strangers: list[tuple[int, str]] = []
        at = 0
        while at < len(text):
            for length in range(min(self.longest, len(text) - at), 0, -1):
                number = self._numbers.get(text[at : at + length])
                if number is not None:
                    tokens.append(number)
                    at += length
                    break
            else:  # no token begins here
                if self._replacement is None:
                    strangers.append((at, text[at]))
                else:
                    tokens.append(self._replacement)
                at += 1
            if len(tokens) + len(strangers) > most:
                raise InvalidRequest(f"more than {most} tokens")
        if strangers:
            shown = ", ".join(f"{character!r} at {place}" for place, character in strangers[:STRANGERS_SHOWN])
            more = f" and {len(strangers) - STRANGERS_SHOWN} more" if len(strangers) > STRANGERS_SHOWN else ""
            raise InvalidRequest(
                f"{shown}{more}: not in the vocabulary of the model, which has {len(self)} tokens; leave these "
                "characters out, or write them otherwise"
            )
        return tokens
