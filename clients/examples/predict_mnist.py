"""Ask a served digit classifier what a picture shows.

python clients/examples/predict_mnist.py                       a seven drawn here
python clients/examples/predict_mnist.py --picture digit.npy   28 x 28, uint8, light strokes on dark
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from forwardpass import Client


def draw_seven() -> npt.NDArray[Any]:
    """uint8 [28, 28]: a bar on top, and a slanted stem."""
    picture = np.zeros((28, 28), np.uint8)
    picture[6:9, 7:21] = 255
    for row in range(9, 23):
        column = 19 - (row - 9) * 8 // 14
        picture[row, column - 1 : column + 2] = 255
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="mnist_cnn")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    picture = draw_seven() if arguments.picture is None else np.load(arguments.picture, allow_pickle=False)

    with Client(arguments.url) as client:
        labels = client.metadata(arguments.model).labels
        result = client.infer(arguments.model, {"image": picture[None]})  # [28, 28] → [1, 28, 28]: a batch of one

    probabilities = result["probabilities"][0]
    best = int(probabilities.argmax())
    name = labels[best] if labels else str(best)
    print(f"{name} ({probabilities[best]:.1%}), says version {result.model_version} of {result.model_name}")


if __name__ == "__main__":
    main()
