"""Explain: a graph that answers as the network does and says why: saliency and integrated gradients of each input.

    probabilities, or whatever the network serves
    saliency               |∂ score / ∂ x|: where a small change moves the score most (Simonyan et al. 2013)
    integrated_gradients   how much of the score each element of x accounts for, against an empty input of zeros
                           (Sundararajan et al. 2017): the mean gradient at STEPS midpoints of the way, times x
    completeness_error     sum of integrated_gradients minus (score − score of the empty input); 0 were STEPS infinite

The score explained is that of the likeliest class, before the softmax; of a network with one output, that output (its
logit, where it is a probability). The gradients are operators of the graph: no torch serves it.
"""

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from forwardpass_server.lifecycle.repository import Tolerance, VersionFolder
from forwardpass_training import report, run
from forwardpass_training.errors import BadSetting
from forwardpass_training.export import export
from forwardpass_training.exportable import Exportable, Tensors
from forwardpass_training.folder import RunFolder
from forwardpass_training.gradient import InputGradient, flipping, scored
from forwardpass_training.publish import configure, publish_export
from forwardpass_training.verify import ParityReport, measure

STEPS = 32
SUFFIX = "_explain"
"""`mnist_cnn` is explained by the model `mnist_cnn_explain`."""

EXPLAIN_FILE = "explain.onnx"
OUTPUTS = SALIENCY, ATTRIBUTIONS, ERROR = "saliency", "integrated_gradients", "completeness_error"

MAX_BATCH_SIZE = 4
"""Rows a run when served. A row costs `steps` gradients (mnist_cnn, 32 steps: 8.8 ms of one EPYC core) and batching
gains nothing (4 rows: 36 ms), so a larger batch would only make its callers wait for each other."""

MEAN_FLIPPED_SHARE = 0.02
"""`gradient.FLIPPED_SHARE` of a mean over points, since a unit flips at one of them."""

_MEASURED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What `explain` made and measured.

    Args:
        file: the ONNX file.
        steps: points of the integration.
        rows: held-out rows over which the errors were taken.
        median_error: median over rows of |completeness_error|, in units of the score.
        max_error: the largest.
        median_gap: median over rows of |score − score of the empty input|, what the error is to be compared with.
        parity: the file against torch.autograd.
    """

    file: Path
    steps: int
    rows: int
    median_error: float
    max_error: float
    median_gap: float
    parity: ParityReport

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "file": self.file.name, "parity": self.parity.to_json()}

    def __str__(self) -> str:
        return (
            f"explanations against torch.autograd: {self.parity}\n"
            f"completeness error of {self.rows} held-out rows at {self.steps} steps: median {self.median_error:.3g}, "
            f"largest {self.max_error:.3g}; the median score they account for is {self.median_gap:.3g}"
        )


class Explained(nn.Module):
    """x [batch, …] → answers [batch, scores], saliency and attributions [batch, …], completeness error [batch, 1].

    Args:
        network: x → scores.
        activation: scores → answers.
        example: three rows of x.
        steps: points on the way from the empty input.
    """

    def __init__(self, network: nn.Module, activation: nn.Module, example: Tensor, *, steps: int) -> None:
        super().__init__()
        self.activation = activation
        self.gradient = InputGradient(network, example.float())
        with torch.no_grad():
            self.empty_scores = nn.Buffer(network(torch.zeros_like(example[:1]).float()))
        shares = torch.cat([_midpoints(steps), torch.ones(1)])  # the last point is x itself
        self.shares = nn.Buffer(shares.reshape(-1, *[1] * example.ndim))

    def forward(self, given: Tensor) -> Tensors:
        x = given.float()
        # of the graph that also knows the gradient, so that the weights are in the file once
        scores, _ = self.gradient(x, self.empty_scores.expand(len(x), -1))
        chosen = functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
        points = (self.shares * x).flatten(0, 1)  # [(steps + 1) · batch, …]
        directions = chosen.expand(len(self.shares), *chosen.shape).flatten(0, 1)
        _, gradients = self.gradient(points, directions)
        gradients = gradients.unflatten(0, (len(self.shares), -1))
        attributions = gradients[:-1].mean(0) * x
        gap = ((scores - self.empty_scores) * chosen).sum(-1, keepdim=True)
        return self.activation(scores), gradients[-1].abs(), attributions, _total(attributions) - gap


def by_autograd(network: nn.Module, activation: nn.Module, given: Tensor, *, steps: int) -> Tensors:
    """The same four outputs by torch.autograd, one point after another: shares nothing with the traced graph."""
    x = given.float()
    with torch.no_grad():
        scores, empty = network(x), network(torch.zeros_like(x[:1]))
    classes = scores.argmax(-1, keepdim=True)

    def gradient(point: Tensor) -> Tensor:
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(network(point).gather(-1, classes).sum(), point)
        return found

    attributions = torch.stack([gradient(share * x) for share in _midpoints(steps)]).mean(0) * x
    gap = (scores - empty).gather(-1, classes)
    return activation(scores), gradient(x).abs(), attributions, _total(attributions) - gap


def explainable(exportable: Exportable, *, steps: int = STEPS) -> Exportable:
    """A network with its explanation, to be exported, verified and published like any other.

    Raises:
        BadSetting: steps below 1.
        ExportFailed: there is no gradient to take: several inputs, or a network that does not take floats.
    """
    expected = expectation(exportable, steps=steps)
    network, activation = scored(exportable)
    (example,) = exportable.examples(3, torch.Generator().manual_seed(0))
    explained = Explained(network, activation, example, steps=steps)
    return dataclasses.replace(expected, module=explained.eval().requires_grad_(False))


def expectation(exportable: Exportable, *, steps: int = STEPS) -> Exportable:
    """What the explanation of a network must answer, without the graph that answers it, whose tracing takes seconds.

    The `module` is still the network's own.

    Raises:
        BadSetting: steps below 1.
        ExportFailed: there is no gradient to take.
    """
    if steps < 1:
        raise BadSetting(f"steps is {steps}; integrated gradients need at least 1")
    network, activation = scored(exportable)
    return dataclasses.replace(
        exportable,
        reference=lambda x: by_autograd(network, activation, x, steps=steps),
        output_names=(*exportable.output_names, *OUTPUTS),
        metadata={**exportable.metadata, "forwardpass.explain_steps": str(steps)},
    )


def explain(run_folder: Path, *, steps: int = STEPS) -> Explanation:
    """Export the explanation graph of a finished run, and measure it. Leaves `explain.onnx` and `explain.json` there.

    Raises:
        ExportFailed: this network has no gradient with respect to its input, or none that can be exported.
        TrainingError: the run or its data cannot be had.
    """
    explained = explainable(run.exportable(run_folder), steps=steps)
    file = export(explained, run_folder / EXPLAIN_FILE)
    outputs = explained.reference(*explained.examples(_MEASURED_ROWS, torch.Generator().manual_seed(1)))
    attributions, error = outputs[-2].flatten(1), outputs[-1]
    gap = attributions.sum(-1, keepdim=True) - error
    explanation = Explanation(
        file=file,
        steps=steps,
        rows=_MEASURED_ROWS,
        median_error=float(error.abs().median()),
        max_error=float(error.abs().max()),
        median_gap=float(gap.abs().median()),
        parity=measure(file, explained, tolerances=tolerances(explained)),
    )
    folder = RunFolder.open(run_folder)
    folder.write_json("explain.json", explanation.to_json())
    report.draw(folder)
    return explanation


def publish_explanation(
    run_folder: Path, explanation: Explanation, root: Path, *, model: str | None = None
) -> VersionFolder:
    """Put the graph into a repository as `<model>_explain`, proved by golden examples and bounded to small batches.

    The bound is Triton's own `max_batch_size`, in a `config.pbtxt` written when the model has none yet.

    Args:
        run_folder: that `explain` worked on.
        explanation: what it made.
        root: of the repository.
        model: the model explained; the recipe's name when None.

    Raises:
        ParityFailed: the file and torch.autograd disagree.
        PublishFailed: the repository refuses.
    """
    explanation.parity.check()
    folder = RunFolder.open(run_folder)
    name = f"{model or folder.config().name}{SUFFIX}"
    expected = expectation(run.exportable(run_folder), steps=explanation.steps)
    bound = f"# each row costs {explanation.steps} gradients, and batching them gains nothing\n"
    configure(root, name, f"{bound}max_batch_size: {MAX_BATCH_SIZE}\n")
    return publish_export(
        explanation.file,
        expected,
        explanation.parity,
        root,
        model=name,
        metrics={
            "completeness_error_median": explanation.median_error,
            "completeness_error_max": explanation.max_error,
        },
        notes={"explains": model or folder.config().name},
        tolerances=explanation.parity.tolerances,
    )


def tolerances(explained: Exportable) -> dict[str, Tolerance]:
    """Of the outputs that are gradients: they flip; those that are a mean over points, less."""
    answers = explained.reference(*explained.examples(_MEASURED_ROWS, torch.Generator().manual_seed(2)))
    largest = dict(zip(explained.output_names, (float(answer.abs().max()) for answer in answers), strict=True))
    return {
        **flipping(SALIENCY, largest[SALIENCY]),
        **flipping(ATTRIBUTIONS, largest[ATTRIBUTIONS], MEAN_FLIPPED_SHARE),
        **flipping(ERROR, largest[ATTRIBUTIONS], MEAN_FLIPPED_SHARE),
    }


def _midpoints(steps: int) -> Tensor:
    return (torch.arange(steps) + 0.5) / steps


def _total(attributions: Tensor) -> Tensor:
    """[batch, …] → [batch, 1]"""
    return attributions.flatten(1).sum(-1, keepdim=True)
