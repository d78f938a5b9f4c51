"""A value that a person typed, brought to the shape that a model takes. Pure.

Only the command line does this: it says aloud what it did. The clients send shapes as they are.
"""

from collections.abc import Sequence
from math import prod


def fit(given: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...] | None:
    """The shape to reshape to, or None when `given` is one that the model takes, or cannot be brought to one.

    A value with fewer dimensions than the model's gets those that are missing: with one open dimension the elements
    are dealt into it (3 → [1, 1], [1, 2, 3] → [3, 1], a picture [28, 28] → [1, 28, 28]); with several, ones are put
    in front ([5, 6] → [1, 2]).

    Args:
        given: shape of the value.
        wanted: the model's, -1 for an open dimension.
    """
    if len(given) >= len(wanted):
        return None
    open_axes = [axis for axis, dim in enumerate(wanted) if dim < 0]
    padded = (1,) * (len(wanted) - len(given)) + tuple(given)
    if all(dim in (-1, have) for dim, have in zip(wanted, padded, strict=True)):
        return padded
    fixed = prod(dim for dim in wanted if dim >= 0)
    if len(open_axes) == 1 and fixed and prod(given) % fixed == 0:
        return tuple(prod(given) // fixed if dim < 0 else dim for dim in wanted)
    return None
