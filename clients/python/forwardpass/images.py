"""A picture file as the tensor that a model takes. Needs Pillow (`pip install 'forwardpass[images]'`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forwardpass.errors import ClientMisused, InvalidRequest
from forwardpass.results import TensorMetadata

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model's input keeps height, width and channels."""

    height: int
    """-1 when the caller chooses, as for `width`."""
    width: int
    channels: int
    """1 for grey, 3 for colour."""
    axis: int | None
    """0 when channels come first, -1 when last, None when there is no such axis."""


def layout(shape: Sequence[int], name: str) -> Layout:
    """Understand [batch, height, width], [batch, channels, height, width] or [batch, height, width, channels].

    Raises:
        InvalidRequest: none of these.
    """
    sides = tuple(shape[1:])
    if len(sides) == 2:
        return Layout(sides[0], sides[1], 1, None)
    if len(sides) == 3 and sides[0] in (1, 3):
        return Layout(sides[1], sides[2], sides[0], 0)
    if len(sides) == 3 and sides[2] in (1, 3):
        return Layout(sides[0], sides[1], sides[2], -1)
    raise InvalidRequest(
        f"input '{name}' {list(shape)} is no picture: those are [batch, height, width], or with 1 or 3 channels before "
        "or after; give the numbers as .npy or .json"
    )


def load(path: Path, tensor: TensorMetadata, *, invert: bool) -> tuple[npt.NDArray[Any], list[str]]:
    """The picture as one row of `tensor`, and every choice made on the way, in words.

    Integers stay 0 to 255; floating point is divided by 255.

    Args:
        path: any format that Pillow reads.
        tensor: the model's input.
        invert: exchange light and dark.

    Raises:
        ClientMisused: Pillow is missing, or the file is none that it reads.
        InvalidRequest: the input is no picture, or of a datatype that holds none.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as missing:
        raise ClientMisused("pictures need Pillow: pip install 'forwardpass[images]'") from missing
    wanted = layout(tensor.shape, tensor.name)
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as unreadable:
        raise ClientMisused(f"'{path}' cannot be read as a picture: {unreadable}") from unreadable

    choices = []
    mode = "L" if wanted.channels == 1 else "RGB"
    if "A" in picture.getbands() or "transparency" in picture.info:
        background = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(background, picture.convert("RGBA"))
        choices.append("put on white where transparent")
    if picture.mode != mode:
        choices.append("greyscaled" if mode == "L" else "taken as RGB")
        picture = picture.convert(mode)
    width = picture.width if wanted.width < 0 else wanted.width
    height = picture.height if wanted.height < 0 else wanted.height
    if picture.size != (width, height):
        choices.append(f"resized from {picture.width}x{picture.height} to {width}x{height} (width x height)")
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    if invert:
        choices.append("inverted")
        picture = ImageOps.invert(picture)

    pixels = np.asarray(picture)
    if wanted.channels == 1 and pixels.mean() > 127 and not invert:
        choices.append("mostly light: a model trained on light strokes over dark (MNIST) wants --invert")
    if wanted.axis is not None:
        pixels = pixels[..., None] if wanted.channels == 1 else pixels
        pixels = np.moveaxis(pixels, -1, wanted.axis) if wanted.axis == 0 else pixels
    if tensor.datatype in ("FP16", "BF16", "FP32", "FP64"):
        choices.append("divided by 255")
        pixels = pixels.astype(np.float32) / 255
    elif tensor.datatype not in ("UINT8", "UINT16", "UINT32", "UINT64", "INT16", "INT32", "INT64"):
        raise InvalidRequest(f"input '{tensor.name}' takes {tensor.datatype}, which holds no picture of 0 to 255")
    return pixels[None], choices
