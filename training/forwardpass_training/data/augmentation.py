"""Random small distortions of images, so that a network sees no image twice: a batch at a time, on its device."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn import functional

from forwardpass_training.errors import BadSetting

WAVES = 5
"""Random displacements along each side of an image; those of the pixels between are interpolated (elastic)."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The largest distortion of each kind; every image draws its own, uniformly. All 0: images stay as they are."""

    degrees: float = 0.0
    """Rotation, to either side."""
    zoom: float = 0.0
    """Share by which height and width, each on its own, grow or shrink."""
    shear: float = 0.0
    """Share of its height by which an image slants."""
    shift_px: float = 0.0
    """Pixels to any side."""
    elastic_px: float = 0.0
    """Standard deviation, in pixels, of a smooth random displacement of every place."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise BadSetting(f"augmentation.{field.name} is {value}; it must be a number from 0 upwards")

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Distort each image by itself; what comes in from outside the image is 0.

        Args:
            images: uint8 [batch, height, width] or [batch, height, width, planes].
            generator: on the CPU, so that every device draws the same distortions.

        Returns:
            The same shape and dtype, rounded.
        """
        if not self:
            return images
        planes = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        places = self._places(len(images), planes.shape[2], planes.shape[3], generator).to(images.device)
        moved = functional.grid_sample(planes.float(), places, align_corners=False).round().to(images.dtype)
        return moved.squeeze(1) if images.ndim == 3 else moved.permute(0, 2, 3, 1)

    def _places(self, batch: int, height: int, width: int, generator: Generator) -> Tensor:
        """Where each pixel comes from, [batch, height, width, 2] as x, y in -1 … 1."""

        def drawn(largest: float) -> Tensor:
            return (torch.rand(batch, generator=generator) * 2 - 1) * largest

        angle, slant = drawn(math.radians(self.degrees)), drawn(self.shear)
        wide, high = 1 + drawn(self.zoom), 1 + drawn(self.zoom)
        right, down = drawn(2 * self.shift_px / width), drawn(2 * self.shift_px / height)
        cosine, sine = angle.cos(), angle.sin()
        affine = torch.stack([cosine * wide, slant - sine * high, right, sine * wide, cosine * high, down], dim=1)
        places = functional.affine_grid(affine.view(batch, 2, 3), [batch, 1, height, width], align_corners=False)
        if self.elastic_px:
            sizes = torch.tensor([2 / width, 2 / height]).view(1, 2, 1, 1) * self.elastic_px
            waves = torch.randn(batch, 2, WAVES, WAVES, generator=generator) * sizes
            smooth = functional.interpolate(waves, (height, width), mode="bicubic", align_corners=True)
            places = places + smooth.permute(0, 2, 3, 1)
        return places
