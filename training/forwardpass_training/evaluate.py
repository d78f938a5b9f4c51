"""Held-out evaluation: the loss and the metrics of a task, and the confusion matrix where there are classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from forwardpass_training import metrics
from forwardpass_training.data import Dataset, Split
from forwardpass_training.models import CharLstm, Dense, activation
from forwardpass_training.task import Task

ROWS_AT_ONCE = 1_000

HEADLINE: dict[Task, str] = {
    "regression": "r2",
    "binary": "accuracy",
    "multiclass": "accuracy",
    "language": "nats_per_character",
}
"""The one metric by which a task is usually told."""

LOWER_IS_BETTER = frozenset({"nats_per_character"})
"""Of the headlines, those that fall as a network gets better."""


@dataclass(frozen=True)
class Evaluation:
    """How a network does on held-out data.

    Attributes:
        loss: the training loss, on held-out rows.
        metrics: by name, see `metrics`.
        answers: what the network says of each row: numbers [rows, outputs], the probability of class 1 [rows], of each
            class [rows, classes]; of a text, the nats of each character [characters].
        targets: what is true of it: numbers [rows, outputs], classes [rows]; of a text, whether the likeliest character
            was right [characters].
        confusion: counts [true class, predicted class]; None where there are no classes.
    """

    loss: float
    metrics: dict[str, float]
    answers: NDArray[Any]
    targets: NDArray[Any]
    confusion: NDArray[np.int64] | None = None


def evaluate(network: nn.Module, task: Task, dataset: Dataset) -> Evaluation:
    """Evaluate on the held-out split. The network is left in eval mode, on the device where it is."""
    network.eval()
    device = next(network.parameters()).device
    split = dataset.test.to(device)
    with torch.no_grad():
        if isinstance(network, CharLstm):
            return _language(network, split)
        # float64 from here: the metrics are then those of the network, not of our arithmetic
        outputs = torch.cat([network(rows) for rows in torch.split(split.inputs, ROWS_AT_ONCE)]).double()
        answers = activation(task)(outputs).cpu().numpy()
    targets = split.targets.cpu().numpy()
    match task:
        case "regression":
            with np.errstate(over="ignore", invalid="ignore"):  # a diverged network says so by its loss
                found = metrics.regression(answers, targets)
            if isinstance(network, Dense) and network.is_affine:
                found["distance_to_least_squares"] = distance_to_least_squares(network, dataset.train)
            return Evaluation(found["mse"], found, answers, targets)
        case "binary":
            probabilities, classes = answers[:, 0], targets[:, 0].astype(np.int64)
            found = metrics.binary(probabilities, classes)
            predictions = (probabilities > 0.5).astype(np.int64)
            confusion = metrics.confusion_matrix(predictions, classes, classes=2)
            return Evaluation(found["log_loss"], found, probabilities, classes, confusion)
        case "multiclass":
            found = metrics.multiclass(answers, targets)
            confusion = metrics.confusion_matrix(answers.argmax(axis=1), targets, classes=answers.shape[1])
            return Evaluation(found["log_loss"], found, answers, targets, confusion)
        case "language":
            raise TypeError(f"a {type(network).__name__} is not a language model")


def _language(network: CharLstm, split: Split) -> Evaluation:
    """The whole text in one pass, state carried from beginning to end, as a reader would meet it."""
    h, c = network.zero_state(batch=1)
    nats, hits = [], []
    pieces = zip(torch.split(split.inputs, ROWS_AT_ONCE), torch.split(split.targets, ROWS_AT_ONCE), strict=True)
    for tokens, targets in pieces:
        logits, h, c = network(tokens.unsqueeze(0), h, c)
        nats.append(functional.cross_entropy(logits[0], targets, reduction="none"))
        hits.append(logits[0].argmax(-1) == targets)
    surprise, right = torch.cat(nats).cpu().numpy(), torch.cat(hits).cpu().numpy()
    found = metrics.language(surprise, right)
    return Evaluation(found["nats_per_character"], found, surprise, right)


def distance_to_least_squares(network: Dense, split: Split) -> float:
    """The largest absolute difference, over weights and bias, to the least-squares solution of `split`."""
    affine = network.layers[-1]
    assert isinstance(affine, nn.Linear)
    rows = split.inputs.double().cpu()
    design = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    exact = torch.linalg.lstsq(design, split.targets.double().cpu()).solution  # [inputs + 1, outputs]
    found: Tensor = torch.cat([affine.weight.detach().T, affine.bias.detach().unsqueeze(0)]).double().cpu()
    return float((found - exact).abs().max())
