"""The tutorials' convolutional network: one convolution, one pooling, two dense layers. Pixels come in as bytes."""

from dataclasses import dataclass

from torch import Tensor, nn

from forwardpass_training.data import Dataset
from forwardpass_training.errors import BadSetting

KERNEL, POOL = 3, 2


@dataclass(frozen=True, kw_only=True)
class CnnConfig:
    """Conv 3x3 ReLU → MaxPool 2 → Dense ReLU → Dense."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    white: int = 255
    """The largest pixel value; pixels are divided by it, inside the network."""
    channels: int = 32
    """Filters of the convolution."""
    hidden: int = 128
    """Units of the dense layer."""
    classes: int = 10
    """Classes told apart."""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < KERNEL + POOL - 1:
            raise BadSetting(
                f"images of {self.height} x {self.width} are too small for a 3x3 convolution and a pooling by 2"
            )

    def check_fits(self, dataset: Dataset) -> None:
        """Raises BadSetting where the network cannot take the data."""
        shape = tuple(dataset.train.inputs.shape[1:])
        if shape != (self.height, self.width):
            raise BadSetting(f"the network takes images of {(self.height, self.width)} pixels, the data has {shape}")
        if len(dataset.labels) != self.classes:
            raise BadSetting(f"the network tells {self.classes} classes apart, the data has {len(dataset.labels)}")

    def build(self) -> "Cnn":
        """The network, freshly initialised from torch's global generator."""
        return Cnn(self)


class Cnn(nn.Module):
    """image [batch, height, width] uint8 → logits [batch, classes] float32."""

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        self.white = config.white
        pooled = [(pixels - KERNEL + 1) // POOL for pixels in (config.height, config.width)]
        self.layers = nn.Sequential(
            nn.Conv2d(1, config.channels, KERNEL),  # [batch, channels, height - 2, width - 2]
            nn.ReLU(),
            nn.MaxPool2d(POOL),  # [batch, channels, (height - 2) / 2, (width - 2) / 2]
            nn.Flatten(),
            nn.Linear(config.channels * pooled[0] * pooled[1], config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image.unsqueeze(1).float() / self.white)
        return logits
