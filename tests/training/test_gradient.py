"""The traced gradient equals autograd's, for every kind of layer that recipes and their users stack."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from forwardpass_training.errors import ExportFailed
from forwardpass_training.exportable import Exportable
from forwardpass_training.gradient import InputGradient, scored

Network = Callable[[str], Exportable]
IMAGE = (1, 14, 14)

STACKS: dict[str, tuple[tuple[int, ...], list[nn.Module]]] = {
    "dense": ((6,), [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 3)]),
    "normalised, pooled": (
        IMAGE,
        [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Dropout()],
    ),
    "strided, grouped": (
        IMAGE,
        [nn.Conv2d(1, 4, 4, stride=3), nn.SiLU(), nn.Conv2d(4, 8, 3, groups=4), nn.LeakyReLU()],
    ),
    "dilated, averaged": (
        IMAGE,
        [nn.Conv2d(1, 4, 3, dilation=2), nn.PReLU(), nn.AvgPool2d(3, 2), nn.AdaptiveAvgPool2d(1)],
    ),
}


def stack(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(7)
    shape, layers = STACKS[name]
    network = nn.Sequential(*layers, nn.Flatten()).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features)
            layer.running_var = torch.rand(layer.num_features) + 0.5
    return network, shape


def by_autograd(network: nn.Module, x: Tensor, direction: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((network(x) * direction).sum(), x)
    return gradient


@pytest.mark.parametrize("name", STACKS)
def test_scores_and_gradient_are_autograds_at_every_batch_size(name: str) -> None:
    network, shape = stack(name)
    traced = InputGradient(network, torch.randn(3, *shape))
    for batch in (1, 8):
        x = torch.randn(batch, *shape)
        expected = network(x).detach()
        direction = torch.randn(expected.shape)
        scores, gradient = traced(x, direction)
        torch.testing.assert_close(scores, expected)
        torch.testing.assert_close(gradient, by_autograd(network, x, direction))


def test_the_trace_keeps_its_weights_when_the_network_goes_on_training() -> None:
    network, shape = stack("dense")
    x, direction = torch.randn(2, *shape), torch.randn(2, 3)
    traced = InputGradient(network, torch.randn(3, *shape))
    before = traced(x, direction)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.testing.assert_close(traced(x, direction), before)


def test_an_average_over_windows_of_different_sizes_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(3, 2, ceil_mode=True), nn.Flatten()).eval()
    with pytest.raises(ExportFailed, match="windows differ in size"):
        InputGradient(network, torch.randn(3, *IMAGE))


def test_scores_are_what_comes_before_the_softmax(network: Network) -> None:
    cnn = network("cnn")
    scores, activation = scored(cnn)
    (images,) = cnn.examples(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(activation(scores(images)), cnn.reference(images)[0])
    assert not torch.allclose(scores(images).sum(-1), torch.ones(4))


def test_a_network_with_several_inputs_is_refused_by_their_names(network: Network) -> None:
    with pytest.raises(ExportFailed, match="tokens, h0, c0 → logits, h1, c1"):
        scored(network("lstm"))


class Halves(nn.Module):
    """Integer arithmetic: bytes and floats give different answers."""

    def forward(self, image: Tensor) -> Tensor:
        return (image / 2 if image.is_floating_point() else image // 2).flatten(1).float()


def test_a_network_that_treats_bytes_otherwise_than_floats_is_refused_with_the_difference(network: Network) -> None:
    odd = dataclasses.replace(network("cnn"), module=Halves().eval())
    with pytest.raises(ExportFailed, match=r"answers differently \(by 0.5\)"):
        scored(odd)


def test_a_network_of_tokens_is_refused(network: Network) -> None:
    embedding = nn.Sequential(nn.Flatten(), nn.Embedding(17, 2)).eval()
    with pytest.raises(ExportFailed, match="float32, so it has no gradient"):
        scored(dataclasses.replace(network("cnn"), module=embedding))
