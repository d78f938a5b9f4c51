"""Private training: what it promises, what it does to a step, and what it refuses."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator

from forwardpass_training import run
from forwardpass_training.adversary import Adversary
from forwardpass_training.config import Gate
from forwardpass_training.data import DataStore, DigitsData, SumData
from forwardpass_training.errors import BadSetting
from forwardpass_training.models import Conv, ConvStackConfig, DenseConfig
from forwardpass_training.privacy import Privacy, drawn_by_chance
from forwardpass_training.recipes import digits_cnn, mlp_classifier, mnist_cnn_private
from forwardpass_training.run import Surroundings
from forwardpass_training.train import train

pytest.importorskip("opacus", reason="pip install 'forwardpass[privacy]'")

CPU = torch.device("cpu")
STORE = DataStore.from_environment({})


def test_epsilon_of_plain_gaussian_noise_is_that_of_the_textbook() -> None:
    """All rows in every step: Rényi divergence α t / 2σ², turned into ε by Mironov 2017 (an upper bound of today's)."""
    steps, noise, delta = 10, 5.0, 1e-5
    found = Privacy(noise=noise, delta=delta).epsilon(rows=1000, batch_size=1000, steps=steps)
    orders = [1 + step / 100 for step in range(1, 10_000)]
    textbook = min(steps * order / (2 * noise**2) + math.log(1 / delta) / (order - 1) for order in orders)
    assert 0.75 * textbook < found <= textbook


def test_epsilon_grows_with_steps_and_rows_and_falls_with_noise() -> None:
    def epsilon(noise: float = 1.0, batch_size: int = 100, steps: int = 100) -> float:
        return Privacy(noise=noise).epsilon(rows=10_000, batch_size=batch_size, steps=steps)

    assert epsilon(steps=0) == 0
    assert epsilon(steps=10) < epsilon() < epsilon(steps=1000)
    assert epsilon(batch_size=50) < epsilon() < epsilon(batch_size=500)
    assert epsilon(noise=2.0) < epsilon() < epsilon(noise=0.5)


def test_rows_are_drawn_by_chance() -> None:
    generator = Generator().manual_seed(0)
    draws = [drawn_by_chance(1000, 100, generator) for _ in range(200)]
    sizes = torch.tensor([len(rows) for rows in draws], dtype=torch.float64)
    assert sizes.mean() == pytest.approx(100, abs=3)
    assert sizes.std() == pytest.approx(math.sqrt(90), rel=0.2)
    counts = torch.bincount(torch.cat(draws), minlength=1000)
    assert counts.max() < 45  # of 200 steps at 1 in 10: 20 on average, deviation 4.2
    assert all(len(rows) == len(set(rows.tolist())) for rows in draws)


def test_no_row_moves_the_weights_beyond_its_share() -> None:
    """Without noise to speak of, a step is at most the clipping norm, times the rows drawn over those expected."""
    privacy = Privacy(noise=1e-9, clip_norm=0.01)
    config = replace(
        mlp_classifier(),
        data=SumData(train_rows=64, test_rows=10),
        epochs=1,
        batch_size=64,
        optimizer="sgd",
        learning_rate=1.0,
        privacy=privacy,
    )
    dataset = config.data.load(STORE)
    huge = replace(dataset, train=replace(dataset.train, inputs=dataset.train.inputs * 1e4))
    before = {}
    network = train(config, huge, CPU, on_epoch=lambda state: before.update(state.network) if not before else None)
    moved = torch.cat([(now - before[name]).flatten() for name, now in network.state_dict().items()])
    assert 0 < float(moved.norm()) <= 0.01 * 1.001


def private_digits() -> Any:
    return replace(
        digits_cnn(),
        epochs=3,
        batch_size=100,
        data=DigitsData(test_share=0.5),
        average=0.9,
        model=ConvStackConfig(
            height=8, width=8, white=16, convolutions=(Conv(8, 3),), normalise=False, activation="tanh"
        ),
        privacy=Privacy(noise=1.0),
        gates=(Gate(metric="epsilon", at_most=1.0),),
    )


def test_a_resumed_private_run_draws_the_same_rows_and_the_same_noise() -> None:
    config = private_digits()
    dataset = config.data.load(STORE)
    kept: list[Any] = []
    straight = train(config, dataset, CPU, on_epoch=kept.append)
    torch.manual_seed(99)
    resumed = train(config, dataset, CPU, start=kept[1])
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    other = train(replace(config, seed=1), dataset, CPU)
    assert any(not torch.equal(a, b) for a, b in zip(straight.parameters(), other.parameters(), strict=True))


def test_a_run_reports_its_epsilon_and_a_gate_bounds_it(tmp_path: Any) -> None:
    surroundings = Surroundings(store=STORE, device="cpu", threads=1)
    config = private_digits()
    folder = run.start(config, tmp_path, surroundings)
    found = run.metrics(folder.path)
    expected = config.privacy.epsilon(rows=898, batch_size=100, steps=3 * 9)
    assert found["held_out"]["epsilon"] == pytest.approx(expected)
    assert found["gates"] == [{"gate": "epsilon <= 1", "passed": False}]
    again = run.reevaluate(folder.path, surroundings)[1].metrics
    assert again == pytest.approx(found["held_out"], rel=1e-6)  # filters laid out differently round differently


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 8}, "at least 16 a step"),
        ({"batch_size": None}, "at least 16 a step"),
        ({"clip_norm": 1.0}, "clips by itself"),
        ({"adversary": Adversary(epsilon=0.1)}, "clips by itself"),
        ({"patience": 2, "validation_share": 0.1}, "clips by itself"),
    ],
)
def test_what_would_break_the_promise_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        replace(mnist_cnn_private(), **change)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"noise": 0.0}, "noise is 0.0"),
        ({"noise": math.nan}, "noise is nan"),
        ({"noise": 1.0, "clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"noise": 1.0, "delta": 0.0}, "delta is 0.0"),
        ({"noise": 1.0, "delta": 1.0}, "delta is 1.0"),
    ],
)
def test_nonsense_is_refused_with_its_value(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        Privacy(**fields)


def test_a_network_that_mixes_rows_is_refused() -> None:
    config = private_digits()
    config = replace(config, model=replace(config.model, normalise=True))
    with pytest.raises(BadSetting, match=r"cannot be trained privately: BatchNorm|cannot be trained privately: .*Norm"):
        train(config, config.data.load(STORE), CPU)


def test_dense_networks_can_be_private_too() -> None:
    config = replace(mlp_classifier(), epochs=1, batch_size=50, model=DenseConfig(inputs=10, hidden=(4,)))
    config = replace(config, data=SumData(train_rows=200, test_rows=50), privacy=Privacy(noise=1.0))
    train(config, config.data.load(STORE), CPU)
