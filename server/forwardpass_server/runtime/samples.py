"""Inputs made up for a model: values that most models can compute with, different in every row."""

import numpy as np

from forwardpass_server.tensors.dtypes import BF16, BOOL, BYTES, Dtype
from forwardpass_server.tensors.signature import Signature, TensorSpec

DYNAMIC_SIZE = 4
"""Size given to a dynamic dimension that is not the batch."""

_WORDS = ("", "a", "forward pass", "née", "0", "1.5")


def make_inputs(signature: Signature, rows: int, rng: np.random.Generator) -> list[np.ndarray | None]:
    """One run's inputs.

    Floats are drawn from the standard normal distribution, integers from {0, 1} (indices into any table that has two
    entries), strings from a few words. Optional inputs are left out.

    Args:
        signature: the model's.
        rows: size of the first dimension of every input; ignored for a model that is not batched.
        rng: where the values come from.
    """
    return [
        None if spec.optional else make_array(spec.dtype, _shape(spec, signature, rows), rng)
        for spec in signature.inputs
    ]


def _shape(spec: TensorSpec, signature: Signature, rows: int) -> tuple[int, ...]:
    sizes = [dim if isinstance(dim, int) else DYNAMIC_SIZE for dim in spec.shape]
    if signature.max_batch_size:
        sizes[0] = rows
    return tuple(sizes)


def make_array(dtype: Dtype, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values as in `make_inputs`."""
    if dtype is BYTES:
        return rng.choice(np.array(_WORDS, dtype=object), size=shape)
    if dtype is BF16:
        # The upper half of a float32 is its bfloat16, rounded towards zero.
        bits = rng.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    if dtype.numpy.kind == "f":
        return rng.standard_normal(shape).astype(dtype.numpy)
    return rng.integers(0, 2, size=shape).astype(np.bool_ if dtype is BOOL else dtype.numpy)
