"""The arrays of the steps: what each text has been so far, as rows of what the model takes and gives.

The states of those who ride stay where the model left them, as one array each; only when somebody joins or leaves are
rows put together anew. A text that is left out takes a copy of its rows with it, so that it holds no more than those.
"""

from collections.abc import Sequence

import numpy as np

from forwardpass_server.scheduling.text import Text
from forwardpass_server.tensors.generator import Generator

Arrays = list[np.ndarray]


class Step:
    """One run: who ride, how far, and its inputs in the order of the graph."""

    __slots__ = ("forced", "inputs", "steps", "texts")

    def __init__(self, texts: Sequence[Text], steps: int, inputs: Arrays, forced: Sequence[int]) -> None:
        self.texts = texts
        self.steps = steps
        self.inputs = inputs
        self.forced = forced
        """Tokens that each reads before it writes."""


class Rows:
    """The rows of one model. Not for several threads at once.

    Args:
        generator: the model.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._texts: list[Text] = []
        self._kept: Arrays = []
        self._settings: list[tuple[int, np.ndarray]] = []

    def step(self, texts: list[Text], steps: int) -> Step:
        """A run of `steps` tokens for `texts`, at least one."""
        if texts != self._texts:
            self._gather(texts)
        generator, count = self._generator, len(texts)
        forced = np.full((count, steps), -1, np.int64)
        uniform = np.zeros((count, steps), np.float32)
        reads = [0] * count
        for row, text in enumerate(texts):
            if text.unread:
                told = text.forced(steps)
                reads[row] = read = len(told)
                forced[row, :read] = told
            else:
                read = 0
            if text.uniforms is not None and read < steps:
                text.uniforms.fill(uniform[row, read : read + text.left])
        inputs: Arrays = [forced] * len(generator.signature.inputs)
        inputs[generator.inputs["uniform"]] = uniform
        inputs[generator.inputs["token"]] = self._kept[0]
        for state, array in zip(generator.states, self._kept[1:], strict=True):
            inputs[state.input] = array
        for index, array in self._settings:
            inputs[index] = array
        return Step(texts, steps, inputs, reads)

    def keep(self, rows: Sequence[int], tokens: np.ndarray, states: Arrays) -> None:
        """What the last `step` came to.

        Args:
            rows: of its texts, those that it did not fail for, ascending.
            tokens: what each of them read and wrote, [rows, steps].
            states: theirs, in the order of the generator's.
        """
        if len(rows) < len(self._texts):
            self._texts = [self._texts[row] for row in rows]
            self._settings = [(index, array[list(rows)]) for index, array in self._settings]
        self._kept = [np.ascontiguousarray(tokens[:, -1:]), *states]

    def forget(self, text: Text) -> None:
        """A text is over: nothing of it is copied any more."""
        text.states = ()

    def _gather(self, texts: list[Text]) -> None:
        place = {text: row for row, text in enumerate(self._texts)}
        kept = [self._of(text, place.get(text)) for text in texts]
        for text in set(place).difference(texts):
            if text.states is None:
                text.states = tuple(array[place[text]][None].copy() for array in self._kept)
        for text in texts:
            text.states = None
        self._kept = [np.concatenate(rows) for rows in zip(*kept, strict=True)]
        self._texts = texts
        given = self._generator.inputs
        columns = (
            ("temperature", np.float32, [text.sampling.temperature for text in texts]),
            ("top_k", np.int64, [text.sampling.top_k for text in texts]),
            ("top_p", np.float32, [text.sampling.top_p for text in texts]),
        )
        self._settings = [
            (given[name], np.array(values, dtype).reshape(-1, 1)) for name, dtype, values in columns if name in given
        ]

    def _of(self, text: Text, row: int | None) -> Sequence[np.ndarray]:
        """The last token and the states of a text, [1, …] each: in place, set aside, or as at the beginning."""
        if row is not None:
            return [array[row : row + 1] for array in self._kept]
        if text.states is not None:
            return text.states
        states = [np.zeros((1, *state.shape), state.dtype.numpy) for state in self._generator.states]
        return [text.prompt[:1].reshape(1, 1), *states]
