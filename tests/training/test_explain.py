"""Explanations equal captum's, say how far they are from complete, and are published bounded and proved."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Generator

from forwardpass_training.errors import BadSetting
from forwardpass_training.explain import EXPLAIN_FILE, OUTPUTS, STEPS, by_autograd, explainable, tolerances
from forwardpass_training.export import export
from forwardpass_training.exportable import Exportable
from forwardpass_training.gradient import scored
from forwardpass_training.verify import measure

Network = Callable[[str], Exportable]
CAPTUM = 1e-5


@pytest.fixture(scope="module")
def file(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explanation of the small convolutional network, as ONNX."""
    return export(explainable(network("cnn")), tmp_path_factory.mktemp("explain") / EXPLAIN_FILE)


def answers(file: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_saliency_and_integrated_gradients_are_captums(network: Network, file: Path, batch: int) -> None:
    cnn = network("cnn")
    scores, _ = scored(cnn)
    (images,) = cnn.examples(batch, Generator().manual_seed(batch))
    got = answers(file, images)
    targets = torch.from_numpy(got["probabilities"]).argmax(-1)
    x = images.float().requires_grad_()
    saliency = Saliency(scores).attribute(x, target=targets)
    integrated = IntegratedGradients(scores).attribute(x, target=targets, n_steps=STEPS, method="riemann_middle")
    np.testing.assert_allclose(got["saliency"], saliency.detach().numpy(), rtol=0, atol=CAPTUM)
    np.testing.assert_allclose(got["integrated_gradients"], integrated.detach().numpy(), rtol=0, atol=CAPTUM)
    assert np.abs(got["integrated_gradients"]).max() > 100 * CAPTUM  # the agreement is not one of zeros


def test_completeness_error_is_the_sum_of_attributions_less_the_score_gained(network: Network, file: Path) -> None:
    cnn = network("cnn")
    scores, _ = scored(cnn)
    (images,) = cnn.examples(5, Generator().manual_seed(3))
    got = answers(file, images)
    with torch.no_grad():
        gained = (scores(images) - scores(torch.zeros_like(images))).numpy()
    best = got["probabilities"].argmax(-1)
    expected = got["integrated_gradients"].sum((1, 2)) - gained[np.arange(5), best]
    np.testing.assert_allclose(got["completeness_error"][:, 0], expected, atol=1e-5)


def test_more_steps_leave_a_smaller_completeness_error(network: Network) -> None:
    cnn = network("cnn")
    scores, activation = scored(cnn)
    (images,) = cnn.examples(16, Generator().manual_seed(4))
    few, many = (by_autograd(scores, activation, images, steps=steps)[-1].abs().mean() for steps in (2, 64))
    assert many < few / 4


def test_the_file_equals_autograd_and_no_row_depends_on_its_mates(network: Network, file: Path) -> None:
    report = measure(file, explainable(network("cnn")))
    assert report.passed, report


def test_a_network_with_one_output_is_explained_by_its_logit(network: Network) -> None:
    mlp = network("mlp")
    scores, _ = scored(mlp)
    (rows,) = mlp.examples(3, Generator().manual_seed(0))
    integrated = IntegratedGradients(scores).attribute(rows, n_steps=STEPS, method="riemann_middle").detach()
    explained = explainable(mlp)
    for outputs in (explained.reference(rows), explained.module(rows)):
        torch.testing.assert_close(outputs[2], integrated, rtol=0, atol=CAPTUM)


def test_the_weights_are_in_the_file_once(file: Path) -> None:
    weights = [onnx.numpy_helper.to_array(weight) for weight in onnx.load(file).graph.initializer]
    held = [weight.tobytes() for weight in weights if weight.size > 8 and weight.dtype == np.float32]
    assert len(held) >= 3  # of the convolution and of two dense layers
    assert len(set(held)) == len(held)


def test_the_model_says_its_outputs_and_keeps_the_labels(file: Path) -> None:
    model = onnx.load(file)
    assert [output.name for output in model.graph.output] == ["probabilities", *OUTPUTS]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["forwardpass.explain_steps"] == str(STEPS)
    assert json.loads(metadata["forwardpass.labels"]) == ["ä", "b"]


def test_no_steps_are_refused(network: Network) -> None:
    with pytest.raises(BadSetting, match="steps is 0"):
        explainable(network("cnn"), steps=0)


def test_a_gradient_that_is_wrong_is_not_taken_for_one_that_flipped(network: Network, file: Path) -> None:
    """The tolerance for flips is a share of the largest value; another network's explanation is far outside."""
    explained = explainable(network("cnn"))
    scores, activation = scored(network("cnn"))
    for parameter in scores.parameters():
        parameter.data.mul_(1.1)
    other = replace(explained, reference=lambda x: by_autograd(scores, activation, x, steps=STEPS))
    report = measure(file, other, tolerances=tolerances(explained))
    failed = {comparison.output for comparison in report.comparisons if comparison.difference.failure}
    assert {"saliency", "integrated_gradients"} <= failed
