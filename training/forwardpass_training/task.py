"""What a network is for. Loss, metrics and the served activation follow from it."""

from typing import Literal

Task = Literal["regression", "binary", "multiclass", "language"]
