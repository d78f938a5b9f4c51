"""Attacks stay in the ball, find what is there to be found, and see through flat and lying gradients."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from forwardpass_training.attack import Ball, Target, cross_entropy, fgsm, iterative, margin
from forwardpass_training.attack_settings import ATTACKS, AttackSettings
from forwardpass_training.errors import BadSetting
from forwardpass_training.square import square

Array = NDArray[Any]
QUICK = AttackSettings(steps=5, restarts=2, queries=60)
BYTES = Ball(epsilon=0.1, low=0, high=255, integral=True)


def linear(weights: Array, *, sharpness: float = 1.0, gradient: str = "true") -> Target:
    """Two classes by the sign of x · weights; float32 as the networks are.

    Args:
        weights: [height, width].
        sharpness: of the softmax; large, it is 1 and 0 to the last bit.
        gradient: "true", or "zero" or "wrong": what a masked network would give.
    """

    def answer(x: Array) -> Array:
        score = (sharpness * (x.astype(np.float64) * weights).sum(axis=(1, 2))).astype(np.float32)
        logits = np.stack([-score, score], axis=1)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def slope(x: Array, direction: Array) -> Array:
        along = (direction[:, 1] - direction[:, 0])[:, None, None] * weights
        return {"true": along, "zero": 0 * along, "wrong": -along}[gradient]

    return Target(answer=answer, gradient=slope)


def pictures(gap: int, rows: int = 8) -> tuple[Array, Array, Array]:
    """Bytes [rows, 4, 4], their classes, and weights; every element is `gap` grey levels on the right side."""
    weights = np.where(np.arange(4) < 2, 1, -1) * np.ones((4, 1), int)
    signs = np.where(np.arange(rows) % 2, 1, -1)
    x = 128 + gap * signs[:, None, None] * weights
    return x.astype(np.uint8), (signs > 0).astype(np.int64), weights


def fooled(name: str, target: Target, x: Array, classes: Array, ball: Ball) -> Array:
    moved = QUICK.named()[name](target, x, classes, ball, np.random.default_rng(0))
    return target.answer(moved).argmax(axis=1) != classes


@pytest.mark.parametrize("name", ["fgsm", "pgd", "margin"])
def test_a_linear_classifier_falls_exactly_beyond_its_margin(name: str) -> None:
    x, classes, weights = pictures(gap=20)
    target = linear(weights)
    assert (target.answer(x).argmax(axis=1) == classes).all()
    assert fooled(name, target, x, classes, replace(BYTES, epsilon=21 / 255)).all()
    assert not fooled(name, target, x, classes, replace(BYTES, epsilon=19 / 255)).any()


def test_squares_find_what_is_near_without_a_gradient() -> None:
    x, classes, weights = pictures(gap=5)
    attack = square(queries=400)
    target = linear(weights, sharpness=0.02, gradient="wrong")
    moved = attack(target, x, classes, replace(BYTES, epsilon=60 / 255), np.random.default_rng(0))
    assert (target.answer(moved).argmax(axis=1) != classes).all()


def test_gradients_that_lie_stop_the_others_but_not_squares() -> None:
    x, classes, weights = pictures(gap=5)
    ball = replace(BYTES, epsilon=60 / 255)
    assert not fooled("fgsm", linear(weights, gradient="wrong"), x, classes, ball).any()
    assert fooled("square", linear(weights, gradient="zero"), x, classes, ball).any()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "margin"])
def test_a_softmax_that_is_sure_to_the_last_bit_hides_nothing(name: str) -> None:
    x, classes, weights = pictures(gap=20)
    target = linear(weights, sharpness=50.0)
    assert set(np.unique(target.answer(x))) == {0.0, 1.0}
    assert fooled(name, target, x, classes, replace(BYTES, epsilon=21 / 255)).all()


@given(
    st.sampled_from(ATTACKS),
    st.floats(0.001, 1.0),
    st.sampled_from([np.uint8, np.float32]),
    st.sampled_from([(5, 4), (3, 6, 3)]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_what_is_sent_is_of_the_input_s_type_and_never_leaves_ball_nor_range(
    name: Any, epsilon: float, dtype: Any, shape: tuple[int, ...], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    high = 255 if dtype is np.uint8 else 1
    ball = Ball(epsilon=epsilon, low=0, high=high, integral=dtype is np.uint8)
    x = (generator.random((4, *shape)) * high).astype(dtype)
    seen: list[Array] = []

    def answer(given: Array) -> Array:
        seen.append(given)
        return np.tile(np.array([[0.2, 0.8]], np.float32), (len(given), 1))  # always right: no row is ever done

    target = Target(answer=answer, gradient=lambda given, _: generator.standard_normal(given.shape))
    moved = QUICK.named()[name](target, x, np.ones(4, np.int64), ball, generator)
    for sent in (*seen, moved):
        assert sent.dtype == dtype
        assert sent.shape == x.shape
        assert np.abs(sent.astype(np.float64) - x.astype(np.float64)).max() <= ball.radius + 1e-6
        assert sent.min() >= 0
        assert sent.max() <= high


def test_rows_that_are_fooled_are_asked_no_more() -> None:
    x, classes, weights = pictures(gap=1)
    x[:4], _, _ = pictures(gap=60, rows=4)
    target = linear(weights)
    asked: list[int] = []

    def answer(given: Array) -> Array:
        asked.append(len(given))
        return target.answer(given)

    attack = iterative(steps=10, restarts=1, loss=cross_entropy)
    attack(replace(target, answer=answer), x, classes, replace(BYTES, epsilon=0.1), np.random.default_rng(0))
    assert asked[0] == 8
    assert asked[-1] == 4


def test_restarts_find_what_one_start_misses() -> None:
    """A gradient that points away everywhere but in one corner of the ball, where chance must lead."""
    x, classes, weights = pictures(gap=3, rows=200)
    honest, lying = linear(weights), linear(weights, gradient="wrong")

    def gradient(given: Array, direction: Array) -> Array:
        near = (np.abs(given.astype(float) - x[: len(given)]).mean(axis=(1, 2)) > 7)[:, None, None]
        return np.where(near, honest.gradient(given, direction), lying.gradient(given, direction))

    target = replace(honest, gradient=gradient)
    ball = replace(BYTES, epsilon=12 / 255)
    held = []
    for restarts in (1, 8):
        moved = iterative(steps=3, restarts=restarts, loss=margin)(target, x, classes, ball, np.random.default_rng(1))
        held.append((honest.answer(moved).argmax(axis=1) == classes).mean())
    assert held[1] < held[0]


def test_the_direction_of_cross_entropy_is_probabilities_less_one_up_to_scale() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [1e-9, 1.0, 3e-9]], np.float32)
    direction = cross_entropy(probabilities, np.array([0, 1]))
    np.testing.assert_allclose(direction[0], np.array([-0.3, 0.2, 0.1]) / 0.3, rtol=1e-6)
    np.testing.assert_allclose(direction[1], [0.25, -1, 0.75], rtol=1e-6)


def test_the_margin_s_direction_is_towards_the_runner_up() -> None:
    probabilities = np.array([[0.7, 0.1, 0.2], [0.7, 0.1, 0.2]])
    np.testing.assert_array_equal(margin(probabilities, np.array([0, 1])), [[-1, 0, 1], [1, -1, 0]])


@pytest.mark.parametrize(("epsilon", "radius"), [(0.3, 76.0), (1 / 255, 1.0), (0.003, 0.0), (1.0, 255.0)])
def test_bytes_move_by_whole_levels_and_never_farther(epsilon: float, radius: float) -> None:
    assert replace(BYTES, epsilon=epsilon).radius == radius


def test_equal_seeds_attack_alike() -> None:
    x, classes, weights = pictures(gap=40)
    for name, attack in QUICK.named().items():
        first, second = (attack(linear(weights), x, classes, BYTES, np.random.default_rng(5)) for _ in range(2))
        np.testing.assert_array_equal(first, second, err_msg=name)


def test_fgsm_needs_no_second_look() -> None:
    x, classes, weights = pictures(gap=20)
    moved = fgsm(linear(weights), x, classes, BYTES, np.random.default_rng(0))
    assert (np.abs(moved.astype(int) - x.astype(int)) == BYTES.radius).all()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"epsilons": (0.0,)}, "epsilons are"),
        ({"epsilons": (76.0,)}, "shares of the input's range"),
        ({"epsilons": ()}, "epsilons are"),
        ({"attacks": ("deepfool",)}, "attacks are deepfool; there are fgsm"),
        ({"attacks": ()}, "attacks are none"),
        ({"restarts": 0}, "restarts is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_their_value(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        AttackSettings(**setting)
