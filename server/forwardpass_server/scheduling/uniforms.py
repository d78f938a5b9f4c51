"""The random numbers of one text: number i of a seed is always the same, on any machine, however they are drawn.

They are the upper 24 bits of the raw draws of numpy's Philox, whose streams numpy promises to keep as they are; it does
not promise that of the methods of its Generator.
"""

import numpy as np

BLOCK = 256
"""Numbers drawn at a time: drawn alone one costs as much as ten."""
UNIT = np.float32(2.0**-24)


class Uniforms:
    """Numbers of [0, 1), in float32. Not for several threads at once.

    Args:
        seed: any int64.
    """

    __slots__ = ("_at", "_bits", "_block")

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed & (2**64 - 1))
        self._block = np.empty(0, np.float32)
        self._at = 0

    def fill(self, into: np.ndarray) -> None:
        """Write the next numbers into a float32 array of one axis."""
        filled = 0
        while filled < len(into):
            if self._at == len(self._block):
                self._block = (self._bits.random_raw(BLOCK) >> np.uint64(40)).astype(np.float32) * UNIT
                self._at = 0
            taken = min(len(into) - filled, BLOCK - self._at)
            into[filled : filled + taken] = self._block[self._at : self._at + taken]
            filled += taken
            self._at += taken
