"""Distortions of images: within bounds, repeatable, and nothing where nothing is asked for."""

import dataclasses
import math

import pytest
import torch
from torch import Generator

from forwardpass_training.data import Augmentation
from forwardpass_training.errors import BadSetting

EVERYTHING = Augmentation(degrees=10, zoom=0.1, shear=0.1, shift_px=2, elastic_px=1)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def blobs(batch: int, *rest: int) -> torch.Tensor:
    """White squares of 8 pixels in the middle of black images."""
    images = torch.zeros(batch, 20, 28, *rest, dtype=torch.uint8)
    images[:, 6:14, 10:18] = 255
    return images


def test_none_asked_for_is_the_same_tensor() -> None:
    images = blobs(3)
    assert Augmentation()(images, generator()) is images
    assert not Augmentation()
    assert EVERYTHING


@pytest.mark.parametrize("rest", [(), (3,)])
def test_shape_and_type_stay_and_every_image_gets_its_own(rest: tuple[int, ...]) -> None:
    images = blobs(4, *rest)
    moved = EVERYTHING(images, generator())
    assert (moved.shape, moved.dtype) == (images.shape, torch.uint8)
    assert not torch.equal(moved[0], moved[1])
    assert not torch.equal(moved, images)


def test_equal_generators_give_equal_images_and_others_do_not() -> None:
    images = blobs(4)
    assert torch.equal(EVERYTHING(images, generator()), EVERYTHING(images, generator()))
    assert not torch.equal(EVERYTHING(images, generator()), EVERYTHING(images, generator(1)))


def centres(images: torch.Tensor) -> torch.Tensor:
    """Centre of mass of each image, [batch, 2] as row, column."""
    ink = images.double()
    rows = (ink.sum(2) * torch.arange(20)).sum(1) / ink.sum((1, 2))
    columns = (ink.sum(1) * torch.arange(28)).sum(1) / ink.sum((1, 2))
    return torch.stack([rows, columns], 1)


def test_a_shift_moves_up_to_its_pixels_and_uses_them() -> None:
    images = blobs(500)
    moved = (centres(Augmentation(shift_px=3)(images, generator())) - centres(images)).abs()
    assert moved.max() < 3.05
    assert (moved.amax(0) > 2.8).all()


def test_a_zoom_changes_the_ink_by_its_share_along_each_side() -> None:
    images = blobs(500)
    ink = Augmentation(zoom=0.2)(images, generator()).double().sum((1, 2)) / images.double().sum((1, 2))
    assert ink.min() > 1 / 1.2**2 - 0.05
    assert ink.max() < 1 / 0.8**2 + 0.05
    assert ink.max() - ink.min() > 0.5


def test_a_rotation_keeps_the_centre_and_turns_the_corners() -> None:
    images = torch.zeros(500, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 13:15] = 255  # an upright bar
    moved = Augmentation(degrees=20)(images, generator()).double()
    tip = (moved[:, 5] * torch.arange(28)).sum(1) / moved[:, 5].sum(1)  # column of the bar, 8.5 rows above the middle
    assert (tip - 13.5).abs().max() < 8.5 * math.tan(math.radians(20)) + 0.3
    assert (tip - 13.5).abs().max() > 8.5 * math.tan(math.radians(17))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Augmentation)])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_nonsense_is_refused_with_its_value(field: str, value: float) -> None:
    with pytest.raises(BadSetting, match=f"augmentation.{field} is {value}"):
        dataclasses.replace(Augmentation(), **{field: value})
