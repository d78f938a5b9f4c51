"""Gates of variants, one by one: each refuses with its values, and none lets NaN pass."""

from dataclasses import replace

import numpy as np
import pytest

from forwardpass_training.errors import BadSetting
from forwardpass_training.variant_gates import Measured, VariantGates, batch_difference, dependence, refusals

GATES = VariantGates()
BASELINE = Measured(
    variant="fp32",
    says="as exported",
    metrics={"accuracy": 0.98},
    quality_loss=0.0,
    file_bytes=1000,
    cpu_s={1: 1e-4, 64: 2e-3},
)
SMALLER = replace(BASELINE, variant="int8", file_bytes=300)


def reasons(measured: Measured, gates: VariantGates = GATES, depends: str | None = None) -> list[str]:
    return list(refusals(measured, BASELINE, gates, "multiclass", depends))


def test_a_smaller_variant_of_equal_quality_is_offered() -> None:
    assert reasons(SMALLER) == []


def test_a_variant_that_is_cheaper_at_one_batch_size_is_offered() -> None:
    assert reasons(replace(BASELINE, cpu_s={1: 2e-4, 64: 1e-3})) == []


def test_a_variant_that_gains_nothing_is_refused_with_its_best_gain() -> None:
    (reason,) = reasons(replace(BASELINE, file_bytes=980, cpu_s={1: 2e-4, 64: 4e-3}))
    assert reason == "gains nothing: at best 1.02 times smaller; 1.1 is asked"


def test_lost_quality_is_refused_with_both_values() -> None:
    (reason,) = reasons(replace(SMALLER, metrics={"accuracy": 0.9771}, quality_loss=0.0029))
    assert reason == "accuracy 0.9771 is 0.0029 worse than float32's 0.9800; 0.002 is allowed"


def test_as_much_as_is_allowed_may_be_lost() -> None:
    lost = replace(SMALLER, metrics={"accuracy": 0.9771}, quality_loss=0.0029)
    assert reasons(lost, replace(GATES, max_quality_loss=0.01)) == []
    assert reasons(replace(lost, quality_loss=0.0), replace(GATES, max_quality_loss=0.0)) == []


def test_quality_that_is_not_a_number_is_refused() -> None:
    nan = float("nan")
    assert len(reasons(replace(SMALLER, metrics={"accuracy": nan}, quality_loss=nan))) == 1


def test_all_reasons_are_given() -> None:
    worst = replace(BASELINE, metrics={"accuracy": 0.5}, quality_loss=0.48)
    assert len(reasons(worst, depends="answers depend on batch-mates")) == 3


def answered(together: list[float]) -> dict[str, np.ndarray]:
    alone = np.array([[0.5], [0.25]], np.float32)
    return {
        "held_out/y": np.array([[9.0]]),
        "mates0/alone/y": alone,
        "mates0/together/y": np.array([[value] for value in together], np.float32),
    }


def test_answers_that_change_in_company_are_refused_by_output_place_and_value() -> None:
    assert dependence(answered([0.5, 0.25]), GATES) is None
    reason = str(dependence(answered([0.5, 0.252]), GATES))
    assert reason.startswith("answers depend on batch-mates: output 'y': got 0.25")
    assert "[1][0]" in reason


def test_an_answer_that_is_nan_in_company_is_refused() -> None:
    assert dependence(answered([0.5, float("nan")]), GATES) is not None
    assert batch_difference(answered([0.5, float("nan")])) is None


def test_the_largest_difference_is_told_even_within_the_gate() -> None:
    assert batch_difference(answered([0.5, 0.25])) == 0.0
    assert batch_difference(answered([0.5, 0.5])) == pytest.approx(0.25)


def test_a_negative_gate_is_a_mistake() -> None:
    with pytest.raises(BadSetting, match="must not be negative"):
        VariantGates(max_quality_loss=-0.1)
