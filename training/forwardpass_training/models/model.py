"""What a network's config must offer. Anything that offers it can be trained, exported and served, yours included."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from forwardpass_training.data import Dataset
from forwardpass_training.errors import BadSetting


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """A frozen dataclass that states an architecture and builds it. Its fields are settings, and go to `config.json`.

    The network takes one tensor [batch, …] and gives [batch, outputs] float32: numbers where the task is a regression,
    logits where it is a classification; the served activation follows from the task. Preprocessing belongs into it. Its
    input is served under its attribute `input_name`, or as `x`.
    """

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, freshly initialised from torch's global generator."""

    def fitted(self, dataset: Dataset) -> Self:  # noqa: ARG002  for those that can tell
        """This config with everything filled in that the data decides.

        Raises:
            BadSetting: the network cannot take the data.
        """
        return self

    def check(self) -> None:
        """Raises BadSetting where a size is below 1, or a dropout is no share."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            sizes = [size for size in (value if isinstance(value, tuple) else (value,)) if type(size) is int]
            if min(sizes, default=1) < 1:
                raise BadSetting(f"model.{field.name} is {value}; every size in it must be at least 1")
            if field.name.endswith("dropout") and not 0 <= value < 1:
                raise BadSetting(f"model.{field.name} is {value}; it is a share, from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class ImageModelConfig(ModelConfig):
    """Images of bytes in, [batch, height, width] or, in colour, [batch, height, width, planes]; class logits out."""

    height: int | None = None
    """Pixels; None: as the data has."""
    width: int | None = None
    """Pixels; None: as the data has."""
    planes: int | None = 1
    """Numbers a pixel: 1 is grey, 3 is colour; None: as the data has."""
    white: int = 255
    """The largest pixel value; pixels are divided by it, inside the network."""
    classes: int | None = 10
    """Classes told apart; None: as the data has."""

    def fitted(self, dataset: Dataset) -> Self:
        """See `ModelConfig.fitted`."""
        height, width, *rest = tuple(dataset.train.inputs.shape[1:]) if dataset.train.inputs.ndim >= 3 else (0, 0)
        planes = rest[0] if rest else 1
        found = dataclasses.replace(
            self,
            height=self.height or height,
            width=self.width or width,
            planes=self.planes or planes,
            classes=self.classes or len(dataset.labels),
        )
        if (found.height, found.width, found.planes) != (height, width, planes):
            raise BadSetting(
                f"the network takes images of {(found.height, found.width)} pixels and {found.planes} planes, "
                f"the data has {tuple(dataset.train.inputs.shape[1:])}"
            )
        if found.classes != len(dataset.labels):
            raise BadSetting(f"the network tells {found.classes} classes apart, the data has {len(dataset.labels)}")
        return found

    def sizes(self) -> tuple[int, int, int, int]:
        """Height, width, planes and classes.

        Raises:
            BadSetting: one of them is still left to the data.
        """
        if not (self.height and self.width and self.planes and self.classes):
            raise BadSetting(f"{self} leaves sizes to the data: build what `fitted(dataset)` gives")
        return self.height, self.width, self.planes, self.classes


def planes_of(image: Tensor, white: int) -> Tensor:
    """Bytes [batch, height, width(, planes)] → float32 [batch, planes, height, width], 0 to 1."""
    planes = image.unsqueeze(1) if image.ndim == 3 else image.permute(0, 3, 1, 2)
    return planes.float() / white
