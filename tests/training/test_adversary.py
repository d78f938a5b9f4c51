"""The adversary stays within its ball, makes things worse, leaves no trace, and grows as told."""

from typing import Any

import pytest
import torch
from torch import Generator, nn
from torch.nn import functional

from forwardpass_training.adversary import Adversary, worst_images
from forwardpass_training.errors import BadSetting
from forwardpass_training.models import ConvStackConfig
from forwardpass_training.models.conv_stack import Conv


def network() -> nn.Module:
    torch.manual_seed(0)
    return ConvStackConfig(height=8, width=8, white=16, convolutions=(Conv(8, 3),)).build().eval()


def attacked(net: nn.Module, images: torch.Tensor, targets: torch.Tensor, **how: Any) -> torch.Tensor:
    arguments: dict[str, Any] = {"epsilon": 0.2, "steps": 5, "generator": Generator().manual_seed(1), **how}
    return worst_images(net, functional.cross_entropy, images, targets, **arguments)


IMAGES = torch.randint(0, 17, (32, 8, 8), generator=Generator().manual_seed(2), dtype=torch.uint8)
TARGETS = torch.randint(0, 10, (32,), generator=Generator().manual_seed(3))


def test_no_pixel_moves_farther_than_epsilon_or_out_of_range() -> None:
    moved = attacked(network(), IMAGES, TARGETS)
    assert moved.dtype == torch.float32
    assert (moved - IMAGES.float()).abs().max() <= 0.2 * 16 + 1e-5
    assert moved.min() >= 0
    assert moved.max() <= 16


def test_the_loss_rises_beyond_that_of_random_noise_and_with_the_steps() -> None:
    net = network()
    noise = (torch.rand(IMAGES.shape, generator=Generator().manual_seed(4)) * 2 - 1) * 3.2
    candidates = [
        IMAGES.float(),
        (IMAGES + noise).clamp(0, 16),
        attacked(net, IMAGES, TARGETS, steps=1),
        attacked(net, IMAGES, TARGETS, steps=10),
    ]
    with torch.no_grad():
        losses = [float(functional.cross_entropy(net(images), TARGETS)) for images in candidates]
    assert losses[3] >= losses[2] > losses[1]
    assert losses[2] > losses[0] + 0.1


def test_it_leaves_no_gradient_and_repeats_itself() -> None:
    net = network()
    assert torch.equal(attacked(net, IMAGES, TARGETS), attacked(net, IMAGES, TARGETS))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not attacked(net, IMAGES, TARGETS).requires_grad


def test_it_grows_to_epsilon_and_takes_its_steps_in_turn() -> None:
    adversary = Adversary(epsilon=0.3, steps=(1, 2, 7), growing=0.5)
    assert adversary.at(0) == (0, 1)
    assert adversary.at(0.25) == (pytest.approx(0.15), 1)
    assert adversary.at(0.5) == (0.3, 2)
    assert adversary.at(0.9999) == (0.3, 7)
    assert Adversary(epsilon=0.3, growing=0).at(0)[0] == 0.3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 1.1}, "epsilon is 1.1"),
        ({"epsilon": 0.1, "steps": ()}, r"steps is \(\)"),
        ({"epsilon": 0.1, "steps": (2, 0)}, r"steps is \(2, 0\)"),
        ({"epsilon": 0.1, "growing": 1.5}, "growing is 1.5"),
    ],
)
def test_nonsense_is_refused_with_its_value(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        Adversary(**fields)


def test_a_network_that_does_not_tell_its_range_is_refused() -> None:
    with pytest.raises(BadSetting, match="Linear has none"):
        attacked(nn.Linear(8, 10), IMAGES, TARGETS)
