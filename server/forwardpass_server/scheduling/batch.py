"""Several requests as one run: stack their inputs, split its outputs.

Copies: a request that runs alone is not copied at all; in a batch each input is copied once, into the batch's buffer;
outputs are never copied, every request gets views of the run's arrays (save where a model hands its input back, below).

Buffers: a small batch gets a fresh array from numpy's cache. A large one is stacked into a buffer that the next batch
of this instance uses again, because fresh megabytes cost a page fault per 4 KiB. Nothing that leaves may then share
memory with it: `split` copies any output that does.
"""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import cast

import numpy as np

from forwardpass_server.errors import RunFailed
from forwardpass_server.scheduling.request import Array, Inputs, Request

REUSE_FROM_BYTES = 1 << 20
"""Stacked inputs at least this large go to a buffer that is kept. Measured on one core, 64 rows of 600 KB: 11.7 ms into
fresh memory, 4.6 ms into a kept buffer; at 256 KiB no difference."""


def merge_key(inputs: Inputs) -> Hashable:
    """What two requests must have in common to share a run: which inputs they give, with which shape past the rows.

    Dtypes are not part of it: the signature fixed them.
    """
    return tuple(None if array is None else array.shape[1:] for array in inputs)


def wanted_outputs(batch: Sequence[Request]) -> tuple[int, ...]:
    """The outputs that anybody in the batch wants, as indices in ascending order (or the one order all agree on)."""
    first = batch[0].outputs
    for request in batch:
        if request.outputs != first:
            return tuple(sorted(set(chain.from_iterable(request.outputs for request in batch))))
    return first


class Stacker:
    """Stacks the batches of one instance. Used by one thread; its arrays are valid until the next `stack`."""

    def __init__(self) -> None:
        self._buffers: dict[int, Array] = {}
        self._lent: list[Array] = []

    def stack(self, batch: Sequence[Request]) -> Inputs:
        """The inputs of one run, in the order of the signature.

        Args:
            batch: at least one request; more than one only with equal `merge_key`s and rows above 0.
        """
        self._lent.clear()
        if len(batch) == 1:
            return batch[0].inputs
        indices = range(len(batch[0].inputs))
        return [self._column(index, [request.inputs[index] for request in batch]) for index in indices]

    def split(
        self, outputs: Sequence[Array], wanted: Sequence[int], batch: Sequence[Request], rows: int
    ) -> list[list[Array]]:
        """The outputs of one run, dealt out: for each request those it asked for, with its own rows.

        Args:
            outputs: what the model answered, one array per index in `wanted`.
            wanted: see `wanted_outputs`.
            batch: the requests, in the order in which they were stacked.
            rows: of all of them together.

        Raises:
            RunFailed: an output does not have as many rows as the batch, so nobody knows whose they are.
        """
        if self._lent:
            outputs = [self._ours(output) for output in outputs]
        if len(batch) == 1:
            return [list(outputs)]
        for index, output in zip(wanted, outputs, strict=True):
            if output.ndim == 0 or len(output) != rows:
                raise RunFailed(
                    f"output {index} has shape {list(output.shape)} for a batch of {rows} rows: the model does not "
                    "keep its rows apart; set max_batch_size to 0 in its config.pbtxt"
                )
        if len(outputs) == 1 and rows == len(batch):
            # One output, which everybody wants, and one row each, as empty requests run alone: the common case, 1.7 µs
            # for 8 requests, where the loop below takes 4.
            (output,) = outputs
            return [[output[row : row + 1]] for row in range(rows)]
        output_of = dict(zip(wanted, outputs, strict=True))
        parts: list[list[Array]] = []
        start = 0
        for request in batch:
            end = start + request.rows
            parts.append([output_of[index][start:end] for index in request.outputs])
            start = end
        return parts

    def _column(self, index: int, arrays: list[Array | None]) -> Array | None:
        """One input of all requests, stacked along the rows."""
        if arrays[0] is None:
            assert not any(array is not None for array in arrays), "merged with and without an optional input"
            return None
        present = cast("list[Array]", arrays)
        first = present[0]
        if first.dtype.hasobject or first.nbytes * len(present) < REUSE_FROM_BYTES:
            return np.concatenate(present)
        rows = sum(len(array) for array in present)
        out = self._buffer(index, (rows, *first.shape[1:]), first.dtype)
        self._lent.append(out)
        return np.concatenate(present, out=out)

    def _buffer(self, index: int, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """A kept buffer for input `index`, grown where needed."""
        count = int(np.prod(shape))
        kept = self._buffers.get(index)
        if kept is None or kept.dtype != dtype or kept.size < count:
            kept = self._buffers[index] = np.empty(count, dtype)
        return kept[:count].reshape(shape)

    def _ours(self, output: Array) -> Array:
        """`output`, or a copy of it where it lies in a kept buffer."""
        return output.copy() if any(np.may_share_memory(output, lent) for lent in self._lent) else output
