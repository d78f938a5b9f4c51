"""Several requests as one run: stack their inputs, split its outputs.

Copies: a request that runs alone is not copied at all; in a batch each input is copied once, into the array of the run;
outputs are never copied: every request gets views of the run's arrays.

Every run gets arrays of its own, so no answer can lie in memory that a later run writes to. A buffer kept for the next
batch was measured and left out: 8 rows of 600 KB take 184 µs into a fresh array and 180 µs into a kept one, and only
batches of tens of megabytes gain (64 rows of 600 KB: 5.6 ms and 4.1 ms), beside models that run a hundred times as long
(`tests/benchmark/scheduling.py`, one EPYC core).
"""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import cast

import numpy as np

from forwardpass_server.errors import RunFailed
from forwardpass_server.scheduling.request import Array, Inputs, Request
from forwardpass_server.tensors.signature import Signature


def merge_key(inputs: Inputs) -> Hashable:
    """What two requests must have in common to share a run: which inputs they give, with which shape past the rows.

    Dtypes are not part of it: the signature fixed them.
    """
    return tuple(None if array is None else array.shape[1:] for array in inputs)


def one_shape(signature: Signature) -> bool:
    """Whether all requests have the same shape past their rows and give the same inputs, so that any two may merge."""
    return all(
        spec.ranked and not spec.optional and all(isinstance(size, int) for size in spec.shape[1:])
        for spec in signature.inputs
    )


def wanted_outputs(batch: Sequence[Request]) -> tuple[int, ...]:
    """The outputs that anybody in the batch wants, as indices in ascending order (or the one order all agree on)."""
    first = batch[0].outputs
    for request in batch:
        if request.outputs != first:
            return tuple(sorted(set(chain.from_iterable(request.outputs for request in batch))))
    return first


def stack(batch: Sequence[Request]) -> Inputs:
    """The inputs of one run, in the order of the signature.

    Args:
        batch: at least one request; more than one only with equal `merge_key`s and rows above 0.
    """
    if len(batch) == 1:
        return batch[0].inputs
    columns = ([request.inputs[index] for request in batch] for index in range(len(batch[0].inputs)))
    # An optional input is absent in all of them or in none: `merge_key` saw to it.
    return [None if column[0] is None else np.concatenate(cast("list[Array]", column)) for column in columns]


def split(
    outputs: Sequence[Array], wanted: Sequence[int], batch: Sequence[Request], rows: int
) -> Sequence[Sequence[Array]]:
    """The outputs of one run, dealt out: for each request those it asked for, with its own rows.

    Args:
        outputs: what the model answered, one array per index in `wanted`.
        wanted: see `wanted_outputs`.
        batch: the requests, in the order in which they were stacked.
        rows: of all of them together.

    Raises:
        RunFailed: an output does not have as many rows as the batch, so nobody knows whose they are.
    """
    if len(batch) == 1:
        return [outputs]
    for index, output in zip(wanted, outputs, strict=True):
        if output.ndim == 0 or len(output) != rows:
            raise RunFailed(
                f"output {index} has shape {list(output.shape)} for a batch of {rows} rows: the model does not "
                "keep its rows apart; set max_batch_size to 0 in its config.pbtxt"
            )
    if len(outputs) == 1 and rows == len(batch):
        # One output, which everybody wants, and one row each, as empty requests run alone: the common case. 2.9 µs for
        # 8 requests; the loop below takes 5.7 for two outputs.
        (output,) = outputs
        return [[output[row : row + 1]] for row in range(rows)]
    output_of = dict(zip(wanted, outputs, strict=True))
    parts = []
    start = 0
    for request in batch:
        end = start + request.rows
        parts.append([output_of[index][start:end] for index in request.outputs])
        start = end
    return parts
