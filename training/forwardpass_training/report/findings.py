"""What the report shows of the data and of single rows: `report.json`, so that the page is drawn again without torch.

Figures are computed from held-out rows only; each list is bounded, so that a page stays a page.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from forwardpass_training.config import RunConfig
from forwardpass_training.data import Dataset, Split
from forwardpass_training.evaluate import Evaluation
from forwardpass_training.intervals import intervals, wilson
from forwardpass_training.metrics import calibration
from forwardpass_training.models import CharLstm
from forwardpass_training.report import pictures
from forwardpass_training.samples import sample_texts

FINDINGS_FILE = "report.json"

SAMPLES, MISTAKES, EXPLAINED = 12, 12, 10
POINTS = 400
FEATURES = 12
CONTEXT_CHARACTERS, SURPRISES = 60, 8
PROMPT_CHARACTERS = 60


def find(config: RunConfig, dataset: Dataset, network: nn.Module, held_out: Evaluation) -> dict[str, Any]:
    """Plain values for the page.

    Args:
        config: of the run.
        dataset: its data.
        network: trained; used, not changed.
        held_out: its evaluation.
    """
    found: dict[str, Any] = {
        "labels": list(dataset.labels),
        "intervals": intervals(config.task, held_out.answers, held_out.targets),
    }
    match config.task:
        case "language":
            assert isinstance(network, CharLstm)
            return found | _text(network, dataset, held_out)
        case "regression":
            return found | _samples(dataset) | _regression(dataset, held_out)
        case "binary" | "multiclass":
            found |= {"balance": {"train": _counts(dataset.train, dataset), "test": _counts(dataset.test, dataset)}}
            found |= _samples(dataset) | _classification(dataset, held_out)
            return found | (_saliency(dataset, network, held_out) if is_image(dataset.test.inputs) else {})


def is_image(inputs: Tensor) -> bool:
    """Whether rows are bytes [height, width] or [height, width, planes]."""
    return inputs.dtype == torch.uint8 and (inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[-1] <= 4))


def _counts(split: Split, dataset: Dataset) -> list[int]:
    counts: list[int] = torch.bincount(split.targets.long().flatten(), minlength=len(dataset.labels)).tolist()
    return counts


def _shown(inputs: Tensor, white: float) -> dict[str, Any]:
    """One row as something to look at: a picture, the first features, or nothing."""
    if is_image(inputs.unsqueeze(0)):
        return {"picture": pictures.of_image(inputs.numpy(), white)}
    if inputs.ndim == 1:
        return {
            "features": [float(value) for value in inputs[:FEATURES]],
            "features_left_out": max(0, len(inputs) - FEATURES),
        }
    return {}


def _white(dataset: Dataset) -> float:
    return float(dataset.train.inputs[:1_000].max()) if is_image(dataset.train.inputs) else 1.0


def _samples(dataset: Dataset) -> dict[str, Any]:
    """Training rows as the data has them, drawn at random."""
    rows = torch.randperm(len(dataset.train), generator=Generator().manual_seed(0))[:SAMPLES]
    white = _white(dataset)
    samples = []
    for inputs, target in zip(dataset.train.inputs[rows], dataset.train.targets[rows], strict=True):
        true = dataset.labels[int(target)] if dataset.labels else [float(value) for value in target.flatten()]
        samples.append({**_shown(inputs, white), "true": true})
    return {"samples": samples}


def _classification(dataset: Dataset, held_out: Evaluation) -> dict[str, Any]:
    probabilities = _of_classes(held_out.answers)
    answered, targets = probabilities.argmax(axis=1), held_out.targets
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bins = calibration(confidence, hits)
    right = np.rint(bins.accuracy * bins.rows).astype(int).tolist()
    # of wrong rows, those least expected to be wrong; where none is, those right by the narrowest margin
    of_truth = probabilities[np.arange(len(targets)), targets]
    rows = np.argsort(of_truth, kind="stable")[:MISTAKES]
    if not hits.all():
        rows = rows[~hits[rows]]
    white = _white(dataset)
    return {
        "calibration": {
            "rows": bins.rows.tolist(),
            "confidence": bins.confidence.tolist(),
            "accuracy": bins.accuracy.tolist(),
            "error": bins.error,
            "spread": [
                wilson(n, rows) if rows else (0.0, 0.0) for n, rows in zip(right, bins.rows.tolist(), strict=True)
            ],
        },
        "wrong": int((~hits).sum()),
        "mistakes": [
            {
                **_shown(dataset.test.inputs[row], white),
                "row": row,
                "true": dataset.labels[int(targets[row])],
                "answered": dataset.labels[int(answered[row])],
                "confidence": float(confidence[row]),
                "of_truth": float(of_truth[row]),
            }
            for row in rows.tolist()
        ],
    }


def _saliency(dataset: Dataset, network: nn.Module, held_out: Evaluation) -> dict[str, Any]:
    """|∂ score / ∂ pixel| of the class answered, for the first held-out image of each class."""
    targets, probabilities = held_out.targets, _of_classes(held_out.answers)
    _, firsts = np.unique(targets, return_index=True)
    rows = firsts[:EXPLAINED].tolist()
    images = dataset.test.inputs[rows]
    device = next(network.parameters()).device
    given = images.to(device).float().requires_grad_()
    network.eval()
    with torch.enable_grad():
        scores = network(given)
        chosen = scores.abs() if scores.shape[-1] == 1 else scores.max(dim=-1).values
        (gradient,) = torch.autograd.grad(chosen.sum(), given)
    white = _white(dataset)
    return {
        "saliency": [
            {
                "picture": pictures.of_image(image.numpy(), white),
                "heat": pictures.of_heat(strength.abs().cpu().numpy()),
                "true": dataset.labels[int(targets[row])],
                "answered": dataset.labels[int(probabilities[row].argmax())],
                "confidence": float(probabilities[row].max()),
            }
            for row, image, strength in zip(rows, images, gradient, strict=True)
        ]
    }


def _regression(dataset: Dataset, held_out: Evaluation) -> dict[str, Any]:
    """Predicted against true, the errors' histogram, and the rows with the largest; several outputs count as one."""
    predicted, true = (np.asarray(values, np.float64) for values in (held_out.answers, held_out.targets))
    errors = predicted - true
    counts, edges = np.histogram(errors, bins=20)
    shown = np.random.default_rng(0).permutation(errors.size)[:POINTS]
    worst = np.argsort(-np.abs(errors).reshape(len(errors), -1).max(axis=1), kind="stable")[:MISTAKES].tolist()
    return {
        "scatter": {"true": true.flatten()[shown].tolist(), "predicted": predicted.flatten()[shown].tolist()},
        "errors": {"edges": edges.tolist(), "counts": counts.tolist()},
        "mistakes": [
            {
                **_shown(dataset.test.inputs[row], _white(dataset)),
                "row": row,
                "true": true[row].flatten().tolist(),
                "answered": predicted[row].flatten().tolist(),
            }
            for row in worst
        ],
    }


def _text(network: CharLstm, dataset: Dataset, held_out: Evaluation) -> dict[str, Any]:
    """What the network writes, what surprised it most, and which characters its loss sits on."""
    vocabulary, tokens = dataset.vocabulary, dataset.test.targets

    def read(begin: int, end: int) -> str:
        return "".join(vocabulary[token] for token in tokens[max(begin, 0) : end].tolist())

    nats = np.asarray(held_out.answers, np.float64)
    surprises = [
        {
            "before": read(place - CONTEXT_CHARACTERS, place),
            "true": read(place, place + 1),
            "after": read(place + 1, place + CONTEXT_CHARACTERS // 3),
            "nats": float(nats[place]),
        }
        for place in _apart(np.argsort(-nats, kind="stable"), CONTEXT_CHARACTERS, SURPRISES)
    ]
    loss = np.bincount(tokens.numpy(), weights=nats, minlength=len(vocabulary))
    heaviest = np.argsort(-loss, kind="stable")[:12].tolist()
    prompt = read(0, PROMPT_CHARACTERS)
    return {
        "surprises": surprises,
        "loss_by_character": [
            {"character": vocabulary[token], "share": loss[token] / loss.sum()} for token in heaviest
        ],
        "prompt": prompt,
        "texts": [
            {"temperature": temperature, "text": text}
            for temperature, text in sample_texts(network, vocabulary, prompt, seed=0).items()
        ],
    }


def _apart(places: NDArray[np.int64], distance: int, wanted: int) -> list[int]:
    """The first places that are not near one taken before."""
    taken: list[int] = []
    for place in places[: wanted * distance].tolist():
        if len(taken) < wanted and all(abs(place - other) >= distance for other in taken):
            taken.append(place)
    return taken


def _of_classes(answers: NDArray[Any]) -> NDArray[Any]:
    """[rows, classes], also where the answer is the probability of class 1 alone [rows]."""
    return answers if answers.ndim == 2 else np.stack([1 - answers, answers], axis=1)
