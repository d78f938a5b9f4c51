"""Explanations as a picture: what was given, where the answer is sensitive, what spoke for it and against it.

Needs Pillow (`pip install 'forwardpass[images]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from forwardpass.errors import ClientMisused
from forwardpass.explanation import Explanation
from forwardpass.images import Layout

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Array = npt.NDArray[Any]
Colour = tuple[int, int, int]

WHITE, INK, MUTED = (255, 255, 255), (31, 41, 51), (123, 135, 148)
SENSITIVE, FOR, AGAINST = (76, 29, 149), (11, 105, 163), (194, 65, 12)  # blue and orange: told apart by everyone
PANEL, GAP, MARGIN = 300, 24, 28
HEAD, TITLE, SCALE = 40, 26, 52
STRONGEST = 0.995
"""Colours are full at this quantile, so that one outlier does not bleach the rest."""
FAINT = 0.16
"""How dark the picture shows under the attributions."""


def save(path: Path, explanations: Sequence[Explanation], layout: Layout, *, model: str) -> None:
    """Draw each row as three panels, one row under the other.

    Args:
        path: any format that Pillow writes, by its ending.
        explanations: of pictures.
        layout: of the model's input.
        model: named in the head.

    Raises:
        ClientMisused: Pillow is missing, or the file cannot be written.
    """
    try:
        from PIL import Image
    except ImportError as missing:
        raise ClientMisused("pictures need Pillow: pip install 'forwardpass[images]'") from missing
    blocks = [_block(each, layout, model) for each in explanations]
    whole = Image.new("RGB", (blocks[0].width, sum(block.height for block in blocks)), WHITE)
    for row, block in enumerate(blocks):
        whole.paste(block, (0, row * block.height))
    try:
        whole.save(path)
    except (OSError, ValueError) as unwritable:
        raise ClientMisused(f"'{path}' cannot be written as a picture: {unwritable}") from unwritable


def _block(each: Explanation, layout: Layout, model: str) -> Image.Image:
    from PIL import Image, ImageDraw

    given = _light(each.given, layout)
    panels = [
        ("what was given", np.repeat(given[..., None] * 255, 3, axis=-1)),
        ("saliency: small changes matter here", _blend(_share(_plane(each.saliency, layout)), SENSITIVE)),
        ("integrated gradients: for and against", _attributed(_plane(each.attributions, layout), given)),
    ]
    width, height = _size(given.shape)
    size = (2 * MARGIN + 3 * width + 2 * GAP, 2 * MARGIN + HEAD + TITLE + height + SCALE)
    block = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(block)
    share = f"  {float(each.answer[each.best]):.2%}" if len(each.answer) > 1 else ""
    _write(draw, (MARGIN, MARGIN), f"{each.name}{share}", INK, 24)
    right = size[0] - MARGIN
    _write(draw, (right, MARGIN + 8), model, MUTED, 14, anchor="ra")
    top = MARGIN + HEAD + TITLE
    for column, (title, pixels) in enumerate(panels):
        left = MARGIN + column * (width + GAP)
        _write(draw, (left, MARGIN + HEAD), title, MUTED, 14)
        panel = Image.fromarray(pixels.round().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        block.paste(panel, (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline=(228, 231, 235))
    left = MARGIN + 2 * (width + GAP)
    _scale(block, draw, (left, top + height + 12), width)
    words = f"score {each.gained:+.3g} against an empty input; completeness error {each.error:+.2g}"
    _write(draw, (MARGIN, top + height + 14), words, MUTED, 14)
    return block


def _scale(block: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int) -> None:
    """A bar from `against` to `for`, with the two words under it."""
    from PIL import Image

    left, top = corner
    strip = np.linspace(-1, 1, width)[None]
    block.paste(Image.fromarray(_two_sided(np.repeat(strip, 10, axis=0)).round().astype(np.uint8)), corner)
    _write(draw, (left, top + 14), "against", AGAINST, 14)
    _write(draw, (left + width, top + 14), "for", FOR, 14, anchor="ra")


def _light(given: Array, layout: Layout) -> Array:
    """The picture as [height, width] from 0 (its darkest) to 1 (its lightest)."""
    plane = _plane(given.astype(np.float64), layout)
    span = plane.max() - plane.min()
    return (plane - plane.min()) / span if span else np.zeros_like(plane)


def _plane(array: Array, layout: Layout) -> Array:
    """[height, width], summed over channels."""
    return array if layout.axis is None else array.sum(axis=layout.axis)


def _share(plane: Array) -> Array:
    """Sizes as 0 to 1 of the strongest."""
    sizes = np.abs(plane.astype(np.float64))
    strongest = np.quantile(sizes, STRONGEST) or sizes.max()
    return np.minimum(sizes / strongest, 1.0) if strongest else np.zeros_like(sizes)


def _attributed(attributions: Array, given: Array) -> Array:
    colours = _two_sided(_share(attributions) * np.sign(attributions))
    return colours * (1 - FAINT * given[..., None])


def _two_sided(values: Array) -> Array:
    """-1 … 1 → orange, white, blue."""
    return np.where(values[..., None] < 0, _blend(-values, AGAINST), _blend(values, FOR))


def _blend(shares: Array, colour: Colour) -> Array:
    """White at 0, the colour at 1: [height, width, 3]."""
    shares = np.clip(shares, 0, 1)[..., None]
    blended: Array = 255 * (1 - shares) + np.array(colour) * shares
    return blended


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of a panel in pixels: whole multiples of the picture's, near `PANEL`."""
    height, width = shape
    factor = max(1, PANEL // max(height, width))
    return max(width * factor, PANEL // 3), max(height * factor, PANEL // 3)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], words: str, colour: Colour, size: int, anchor: str = "la"
) -> None:
    from PIL import ImageFont

    draw.text(at, words, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
