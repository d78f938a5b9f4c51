"""How inputs and answers look when all is well: `reference_statistics.json`, which travels with the model.

A server compares its traffic with it and sees drift without labels. All of it is of held-out rows, which the network
has not seen, as it has not seen its traffic; so nothing is told of the training rows either. Histograms have fixed
edges: `counts[0]` lies below `edges[0]`, `counts[-1]` at or above `edges[-1]`.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forwardpass_training.data import Dataset
from forwardpass_training.evaluate import Evaluation
from forwardpass_training.models import served
from forwardpass_training.task import Task

STATISTICS_FILE = "reference_statistics.json"
FORMAT = 1

BINS = 10
FEATURES = 256
"""Of a row at most, the first ones: more would be no statistics but a second model."""
BLOCKS = 4
"""An image is divided into so many blocks along each side."""

Values = dict[str, Any]
Array = NDArray[Any]


def of(task: Task, dataset: Dataset, network: nn.Module, held_out: Evaluation) -> Values:
    """Plain values.

    Args:
        task: of the network.
        dataset: whose held-out rows are described.
        network: for the names of its input and output.
        held_out: its evaluation, for its answers.

    Returns:
        `rows`; `inputs`, by name, one of `features` (each with mean, std, edges, counts), `blocks` (mean brightness of
        each block of an image as a share of `white`, likewise, row by row), `tokens` (share of each); `outputs`, by
        name: `shares` of classes answered and the histogram of `confidence`, or `features` of numbers.
    """
    names = served(network, task)
    return {
        "format": FORMAT,
        "split": "held-out",
        "rows": len(dataset.test),
        "data_sha256": dataset.provenance.sha256,
        "inputs": {names.input_names[0]: _input(dataset)},
        "outputs": _output(task, dataset, names.output_names[0], held_out),
    }


def _input(dataset: Dataset) -> Values:
    inputs = dataset.test.inputs
    if dataset.vocabulary:
        counts = torch.bincount(inputs, minlength=len(dataset.vocabulary))
        return {"kind": "tokens", "shares": (counts / counts.sum()).tolist()}
    if inputs.dtype == torch.uint8 and inputs.ndim in (3, 4):
        white = float(dataset.train.inputs.max()) or 1.0
        edges = [n / BINS for n in range(1, BINS)]
        blocks = [_histogram(values, edges) for values in _block_means(inputs, white).T]
        return {"kind": "blocks", "white": white, "grid": [BLOCKS, BLOCKS], "blocks": blocks}
    return {"kind": "features", **_features(inputs.reshape(len(inputs), -1).numpy())}


def _output(task: Task, dataset: Dataset, name: str, held_out: Evaluation) -> Values:
    answers = held_out.answers
    match task:
        case "language":  # the answers are logits, of which the evaluation keeps only what they gave the truth
            return {}
        case "regression":
            return {name: {"kind": "features", **_features(answers.reshape(len(answers), -1))}}
        case "binary" | "multiclass":
            shares = answers if answers.ndim == 2 else np.stack([1 - answers, answers], axis=1)
            answered = np.bincount(shares.argmax(axis=1), minlength=shares.shape[1]) / len(shares)
            edges = [n / BINS for n in range(1, BINS)]
            return {
                name: {
                    "kind": "classes",
                    "labels": list(dataset.labels),
                    "shares": answered.tolist(),
                    "confidence": _histogram(shares.max(axis=1), edges),
                }
            }


def _features(values: Array) -> Values:
    """Each column between its deciles, so that every bin holds as much; a column of few values has fewer bins."""
    columns = values[:, :FEATURES].astype(np.float64).T
    deciles = [np.unique(np.quantile(column, [n / BINS for n in range(1, BINS)])).tolist() for column in columns]
    described = [_histogram(column, edges) for column, edges in zip(columns, deciles, strict=True)]
    return {"features": described, "features_left_out": max(0, values.shape[1] - FEATURES)}


def _histogram(values: Array, edges: list[float]) -> Values:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"mean": float(values.mean()), "std": float(values.std()), "edges": edges, "counts": counts.tolist()}


def _block_means(images: Tensor, white: float) -> Array:
    """[rows, blocks]: mean brightness, 0 to 1, of BLOCKS × BLOCKS blocks as equal as the pixels allow."""
    pixels = images if images.ndim == 4 else images.unsqueeze(-1)
    means = [
        block.float().mean(dim=(1, 2, 3)) / white
        for band in torch.tensor_split(pixels, min(BLOCKS, pixels.shape[1]), dim=1)
        for block in torch.tensor_split(band, min(BLOCKS, pixels.shape[2]), dim=2)
    ]
    return torch.stack(means, dim=1).double().numpy()
