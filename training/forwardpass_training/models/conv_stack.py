"""A stack of convolutions, each with its own kernel, stride and pooling, then dense layers. Pixels come in as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro.conf
from torch import Tensor, nn

from forwardpass_training.errors import BadSetting
from forwardpass_training.models.model import ImageModelConfig, planes_of

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Conv:
    """One convolution: filters, pixels of its side, step, zeros round the image, pooling after it."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: int = 1


@dataclass(frozen=True, kw_only=True)
class ConvStackConfig(ImageModelConfig):
    """(Conv → BatchNorm → ReLU → MaxPool) × n → (Dense → ReLU) × m → Dense."""

    convolutions: Annotated[tuple[Conv, ...], tyro.conf.Suppress]
    """From the image inwards."""
    hidden: tuple[int, ...] = ()
    """Units of each dense layer before the last."""
    normalise: bool = True
    """Batch normalisation after each convolution; folded into it when served."""
    activation: Literal["relu", "tanh"] = "relu"
    """After each layer but the last. tanh is bounded, which suits private training (Papernot et al. 2020)."""
    dropout: float = 0.0
    """Share of the inputs of each dense layer left out in each training step."""

    def build(self) -> "ConvStack":
        """The network, freshly initialised from torch's global generator.

        Raises:
            BadSetting: the images are too small for the convolutions.
        """
        # filters with their planes innermost: a training step takes three quarters of the time on a CPU
        network: ConvStack = ConvStack(self).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network


class ConvStack(nn.Module):
    """image [batch, height, width(, planes)] uint8 → logits [batch, classes] float32."""

    input_name = "image"

    def __init__(self, config: ConvStackConfig) -> None:
        super().__init__()
        height, width, planes, classes = config.sizes()
        self.white = config.white
        self.features = nn.Sequential(*_convolutions(config, planes), nn.Flatten())
        self.head = nn.Sequential(*_dense(config, self._flat(planes, height, width), classes))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(planes_of(image, self.white)))
        return logits

    def _flat(self, planes: int, height: int, width: int) -> int:
        """Numbers that the convolutions leave of an image."""
        with torch.no_grad():
            try:
                # in eval mode: a normalisation must not count this image
                flat = self.features.eval()(torch.zeros(1, planes, height, width)).shape[1]
            except RuntimeError as exc:
                raise BadSetting(f"images of {height} x {width} are too small for these convolutions: {exc}") from exc
        self.features.train()
        return int(flat)


def _convolutions(config: ConvStackConfig, planes: int) -> Sequence[nn.Module]:
    layers: list[nn.Module] = []
    for conv in config.convolutions:
        # a bias before a normalisation would be subtracted again
        bias = not config.normalise
        layers.append(nn.Conv2d(planes, conv.channels, conv.kernel, conv.stride, conv.padding, bias=bias))
        layers += [nn.BatchNorm2d(conv.channels)] if config.normalise else []
        layers.append(ACTIVATIONS[config.activation]())
        layers += [nn.MaxPool2d(conv.pool)] if conv.pool > 1 else []
        planes = conv.channels
    return layers


def _dense(config: ConvStackConfig, inputs: int, classes: int) -> Sequence[nn.Module]:
    layers: list[nn.Module] = []
    for units in (*config.hidden, classes):
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
        layers += [nn.Linear(inputs, units), ACTIVATIONS[config.activation]()]
        inputs = units
    return layers[:-1]  # logits, as they are
