"""Held-out images as small PNG files inside a page: `data:` addresses, nothing to fetch."""

import base64
import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image


def of_image(pixels: NDArray[Any], white: float) -> str:
    """An image as it is.

    Args:
        pixels: [height, width] grey or [height, width, planes], 0 to `white`; of other than 3 planes, their mean.
        white: the largest value.
    """
    shares = np.clip(pixels.astype(np.float64) / white, 0, 1)
    if shares.ndim == 3 and shares.shape[2] != 3:
        shares = shares.mean(axis=2)
    grey = shares[..., None].repeat(3, axis=2) if shares.ndim == 2 else shares
    return _png(grey)


def of_heat(strength: NDArray[Any]) -> str:
    """How strongly each pixel counts, relative to the strongest: black is not at all, pale yellow is most.

    Args:
        strength: [height, width] or [height, width, planes], from 0 upwards; the strongest plane counts.
    """
    flat = strength.max(axis=2) if strength.ndim == 3 else strength
    return _png(colormaps["inferno"](flat / max(float(flat.max()), np.finfo(np.float64).tiny))[..., :3])


def _png(colours: NDArray[Any]) -> str:
    """[height, width, 3], 0 to 1."""
    file = io.BytesIO()
    Image.fromarray((colours * 255).round().astype(np.uint8)).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
