"""What a model says about its tensors."""

from dataclasses import dataclass
from typing import TypeAlias

from forwardpass_server.tensors.dtypes import Dtype

Dim: TypeAlias = int | str | None
"""A size; or dynamic, with the graph's name for it where it has one."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, datatype and shape of one input or output."""

    name: str
    dtype: Dtype
    shape: tuple[Dim, ...]
    """Full shape, the batch dimension included. Dimensions with one name have one size."""
    optional: bool = False
    """A request may leave it out."""
    ranked: bool = True
    """False where the graph says nothing about the shape; `shape` is then empty and anything goes."""

    @property
    def wire_shape(self) -> tuple[int, ...]:
        """The shape as metadata writes it: -1 for dynamic."""
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.shape)

    def shape_text(self) -> str:
        """The shape for people: `[batch, 28, 28]`, `?` for a dynamic dimension without a name."""
        return "[" + ", ".join("?" if dim is None else str(dim) for dim in self.shape) + "]" if self.ranked else "any"


@dataclass(frozen=True)
class Specs:
    """Inputs and outputs of one model version, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    """Rows that may run as one batch; 0 for a model whose first dimension is nothing special."""
