"""Our metrics against scikit-learn's, and the cases where a denominator is 0."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from forwardpass_training import metrics

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.integers(2, 200)
approx = pytest.approx
few = settings(max_examples=30)  # scikit-learn takes 10 ms for each of its figures


def drawn(seed: int, rows: int, classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Random probabilities [rows, classes] and targets [rows]."""
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.ones(classes), rows), generator.integers(classes, size=rows)


@given(seed=SEEDS, rows=ROWS)
def test_regression_agrees(seed: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    targets = generator.normal(size=(rows, 1))
    predictions = targets + generator.normal(size=(rows, 1))
    found = metrics.regression(predictions, targets)
    assert found["mse"] == approx(reference.mean_squared_error(targets, predictions))
    assert found["mae"] == approx(reference.mean_absolute_error(targets, predictions))
    assert found["r2"] == approx(reference.r2_score(targets, predictions))


@few
@given(seed=SEEDS, rows=ROWS)
def test_binary_agrees(seed: int, rows: int) -> None:
    probabilities, targets = drawn(seed, rows, 2)
    found = metrics.binary(probabilities[:, 1], targets)
    predictions = probabilities[:, 1] > 0.5
    assert found["accuracy"] == approx(reference.accuracy_score(targets, predictions))
    assert found["precision"] == approx(reference.precision_score(targets, predictions, zero_division=0))
    assert found["recall"] == approx(reference.recall_score(targets, predictions, zero_division=0))
    assert found["f1"] == approx(reference.f1_score(targets, predictions, zero_division=0))
    assert found["log_loss"] == approx(reference.log_loss(targets, probabilities, labels=[0, 1]))


@few
@given(seed=SEEDS, rows=ROWS, classes=st.integers(2, 12))
def test_multiclass_agrees(seed: int, rows: int, classes: int) -> None:
    probabilities, targets = drawn(seed, rows, classes)
    predictions, labels = probabilities.argmax(1), list(range(classes))
    found = metrics.multiclass(probabilities, targets)
    kwargs = {"labels": labels, "average": "macro", "zero_division": 0}
    assert found["accuracy"] == approx(reference.accuracy_score(targets, predictions))
    assert found["precision_macro"] == approx(reference.precision_score(targets, predictions, **kwargs))
    assert found["recall_macro"] == approx(reference.recall_score(targets, predictions, **kwargs))
    assert found["f1_macro"] == approx(reference.f1_score(targets, predictions, **kwargs))
    assert found["log_loss"] == approx(reference.log_loss(targets, probabilities, labels=labels))
    for score in (reference.precision_score, reference.recall_score, reference.f1_score):
        assert score(targets, predictions, average="micro") == approx(found["accuracy"])
    per_class = reference.precision_recall_fscore_support(targets, predictions, labels=labels, zero_division=0)
    confusion = metrics.confusion_matrix(predictions, targets, classes=classes)
    np.testing.assert_allclose(metrics.per_class(confusion), per_class[:3])
    np.testing.assert_array_equal(
        metrics.confusion_matrix(predictions, targets, classes=classes),
        reference.confusion_matrix(targets, predictions, labels=labels),
    )


def test_language_is_the_mean_in_three_units() -> None:
    found = metrics.language(np.log(np.array([2.0, 8.0], np.float32)), np.array([True, False]))
    assert found["nats_per_character"] == approx(2 * np.log(2))
    assert found["bits_per_character"] == approx(2)
    assert found["perplexity"] == approx(4)
    assert found["accuracy"] == 0.5


def test_many_small_float32_values_are_summed_without_loss() -> None:
    nats = np.full(10_000_000, 0.1, np.float32)
    found = metrics.language(nats, np.ones(1, bool))
    assert found["nats_per_character"] == approx(np.float32(0.1), rel=1e-9)


def test_a_certain_and_wrong_answer_has_a_finite_loss() -> None:
    assert metrics.log_loss(np.array([[1.0, 0.0]]), np.array([1])) == approx(708.4, abs=0.1)


def test_constant_targets_have_an_r2() -> None:
    ones = np.ones((4, 1))
    assert metrics.regression(ones, ones)["r2"] == 1
    assert metrics.regression(ones * 2, ones)["r2"] == 0


def test_nothing_predicted_positive_is_precision_0_not_nan() -> None:
    found = metrics.binary(np.zeros(4), np.ones(4, np.int64))
    assert (found["accuracy"], found["precision"], found["recall"], found["f1"]) == (0, 0, 0, 0)


@given(seed=SEEDS, rows=ROWS, distinct=st.integers(1, 50))
def test_roc_auc_agrees_ties_included(seed: int, rows: int, distinct: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(distinct, size=rows) / distinct
    positive = generator.random(rows) < 0.5
    positive[:2] = True, False
    assert metrics.roc_auc(scores, positive) == approx(reference.roc_auc_score(positive, scores))


@few
@given(seed=SEEDS, classes=st.integers(3, 12))
def test_roc_auc_of_many_classes_is_the_mean_of_one_against_the_rest(seed: int, classes: int) -> None:
    probabilities, targets = drawn(seed, 200, classes)
    targets[:classes] = np.arange(classes)
    theirs = reference.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    assert metrics.multiclass(probabilities, targets)["roc_auc_macro"] == approx(theirs)


def test_roc_auc_of_one_class_alone_is_that_of_guessing() -> None:
    assert metrics.roc_auc(np.array([0.1, 0.9]), np.array([True, True])) == 0.5
    found = metrics.multiclass(np.eye(3)[[0, 0, 1]], np.array([0, 0, 1]))  # class 2 never occurs
    assert found["roc_auc_macro"] == approx((1 + 1 + 0.5) / 3)


@given(seed=SEEDS, rows=ROWS)
def test_calibration_agrees(seed: int, rows: int) -> None:
    from sklearn.calibration import calibration_curve

    generator = np.random.default_rng(seed)
    confidence, hits = generator.random(rows), generator.random(rows) < 0.7
    found = metrics.calibration(confidence, hits, bins=10)
    accuracy, mean = calibration_curve(hits, confidence, n_bins=10)
    filled = found.rows > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], mean)
    assert found.error == approx(np.sum(found.rows[filled] * np.abs(accuracy - mean)) / rows)


def test_calibration_of_who_is_always_sure_is_the_share_of_mistakes() -> None:
    sure = metrics.calibration(np.ones(10), np.arange(10) < 7)
    assert sure.error == approx(0.3)
    assert sure.rows.tolist() == [0] * 14 + [10]
    assert metrics.binary(np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1]))["ece"] == 0
    assert metrics.binary(np.array([0.25, 0.75]), np.array([0, 1]))["ece"] == approx(
        0.25
    )  # both are 0.75 sure, and right


def test_a_network_that_answers_nan_has_metrics_that_say_so() -> None:
    found = metrics.multiclass(np.full((4, 3), np.nan), np.array([0, 1, 2, 0]))
    assert np.isnan(found["ece"])
    assert np.isnan(found["log_loss"])
