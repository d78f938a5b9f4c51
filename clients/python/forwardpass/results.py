"""What the client hands back: plain immutable values, no message of the wire among them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy.typing as npt

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One input or output of a model."""

    name: str
    datatype: str
    """Wire name: "FP32"."""
    shape: tuple[int, ...]
    """-1 stands for a dimension that the caller chooses, the batch for one."""

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    properties: Mapping[str, str]
    """What training wrote beside the model, and the server's own remarks; empty on servers that send none."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the output's last dimension; empty when the model has none."""
        return tuple(str(label) for label in json.loads(self.properties.get("forwardpass.labels", "[]")))


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version of one model in the server's repository."""

    name: str
    version: str
    state: str
    """UNKNOWN, READY, UNAVAILABLE, LOADING or UNLOADING."""
    reason: str
    """Why it is not READY; "" otherwise."""


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Who answers."""

    name: str
    version: str
    extensions: tuple[str, ...]


class Health(StrEnum):
    """What grpc.health.v1 says of the server, or of one service of it."""

    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"


@dataclass(frozen=True, slots=True, eq=False)
class InferResult(Mapping[str, npt.NDArray[Any]]):
    """Arrays by output name, in the server's order, and what came with them.

    Arrays are read-only views of the received message (no copy); `.copy()` gives a writable one.
    BYTES outputs are object arrays of `bytes`, BF16 outputs float32.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    model_name: str
    model_version: str
    """The version that answered, whichever was asked for."""
    id: str
    """The caller's `request_id`."""
    parameters: Mapping[str, Parameter]
    trailers: Mapping[str, str | bytes]
    """Trailing metadata of the call; keys that end in "-bin" hold bytes."""

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        try:
            return self.arrays[name]
        except KeyError:
            raise KeyError(f"no output '{name}'; '{self.model_name}' answered {', '.join(self.arrays)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)
