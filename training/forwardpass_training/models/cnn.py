"""The tutorials' convolutional network: one convolution, one pooling, two dense layers. Pixels come in as bytes."""

from dataclasses import dataclass

from torch import Tensor, nn

from forwardpass_training.errors import BadSetting
from forwardpass_training.models.model import ImageModelConfig, planes_of

KERNEL, POOL = 3, 2


@dataclass(frozen=True, kw_only=True)
class CnnConfig(ImageModelConfig):
    """Conv 3x3 ReLU → MaxPool 2 → Dense ReLU → Dense."""

    channels: int = 32
    """Filters of the convolution."""
    hidden: int = 128
    """Units of the dense layer."""
    dropout: float = 0.0
    """Share of the dense layer's units left out in each training step."""

    def __post_init__(self) -> None:
        if min(self.height or KERNEL + POOL, self.width or KERNEL + POOL) < KERNEL + POOL - 1:
            raise BadSetting(
                f"images of {self.height} x {self.width} are too small for a 3x3 convolution and a pooling by 2"
            )

    def build(self) -> "Cnn":
        """The network, freshly initialised from torch's global generator."""
        return Cnn(self)


class Cnn(nn.Module):
    """image [batch, height, width] uint8 → logits [batch, classes] float32."""

    input_name = "image"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        height, width, planes, classes = config.sizes()
        self.white = config.white
        pooled = [(pixels - KERNEL + 1) // POOL for pixels in (height, width)]
        self.layers = nn.Sequential(
            nn.Conv2d(planes, config.channels, KERNEL),  # [batch, channels, height - 2, width - 2]
            nn.ReLU(),
            nn.MaxPool2d(POOL),  # [batch, channels, (height - 2) / 2, (width - 2) / 2]
            nn.Flatten(),
            nn.Linear(config.channels * pooled[0] * pooled[1], config.hidden),
            nn.ReLU(),
            *([nn.Dropout(config.dropout)] if config.dropout else []),
            nn.Linear(config.hidden, classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(planes_of(image, self.white))
        return logits
