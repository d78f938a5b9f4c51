"""The loop: it learns, repeats itself bit by bit, resumes, and stops where numbers end."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forwardpass_training import train as train_module
from forwardpass_training.adversary import Adversary
from forwardpass_training.checkpoint import Checkpoint
from forwardpass_training.config import RunConfig
from forwardpass_training.data import Augmentation, Dataset, DataStore, DigitsData, ShakespeareData, Split, SumData
from forwardpass_training.data.shakespeare import split_text
from forwardpass_training.errors import BadSetting, CheckpointError, Diverged
from forwardpass_training.evaluate import evaluate
from forwardpass_training.models import CharLstmConfig, Conv, ConvStackConfig, DenseConfig
from forwardpass_training.recipes import digits_cnn, linear_regression, mlp_classifier, shakespeare_lstm
from forwardpass_training.train import learning_rate, steps_per_epoch, train

CPU = torch.device("cpu")
TEXT = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(2_000))


def tiny_text() -> tuple[RunConfig, Dataset]:
    dataset = split_text(TEXT, ShakespeareData())
    model = CharLstmConfig(vocabulary=len(dataset.vocabulary), hidden=8)
    return replace(shakespeare_lstm(), epochs=4, batch_size=5, window=20, model=model), dataset


def tiny_rows() -> tuple[RunConfig, Dataset]:
    config = replace(mlp_classifier(), epochs=4, data=SumData(train_rows=500, test_rows=100))
    return config, config.data.load(DataStore.from_environment({}))


def tiny_images() -> tuple[RunConfig, Dataset]:
    config = replace(digits_cnn(), epochs=4, data=DigitsData(test_share=0.9))
    return config, config.data.load(DataStore.from_environment({}))


def tiny_everything() -> tuple[RunConfig, Dataset]:
    """Every setting that draws random numbers or carries state from step to step."""
    config = replace(
        digits_cnn(),
        epochs=4,
        data=DigitsData(test_share=0.8, augmentation=Augmentation(degrees=10, zoom=0.1, shift_px=0.5, elastic_px=0.3)),
        model=ConvStackConfig(height=8, width=8, white=16, convolutions=(Conv(8, 3),), hidden=(16,), dropout=0.2),
        learning_rate=1e-2,
        schedule="one_cycle",
        weight_decay=0.01,
        label_smoothing=0.1,
        clip_norm=1.0,
        average=0.9,
        validation_share=0.2,
        patience=3,
        adversary=Adversary(epsilon=0.05, steps=(1, 2)),
    )
    return config, config.data.load(DataStore.from_environment({}))


Tiny = Callable[[], tuple[RunConfig, Dataset]]
TINY: list[Tiny] = [tiny_text, tiny_rows, tiny_images, tiny_everything]


def trained(config: RunConfig, dataset: Dataset, start: Checkpoint | None = None) -> tuple[nn.Module, list[Checkpoint]]:
    kept: list[Checkpoint] = []
    return train(config, dataset, CPU, start=start, on_epoch=kept.append), kept


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_bit_identical(first: nn.Module, second: nn.Module) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("tiny", TINY)
def test_equal_seeds_give_equal_weights_and_others_do_not(tiny: Tiny) -> None:
    config, dataset = tiny()
    config = replace(config, epochs=2)
    first, second = trained(config, dataset)[0], trained(config, dataset)[0]
    assert_bit_identical(first, second)
    other = trained(replace(config, seed=1), dataset)[0]
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "setting", ["clip_norm", "average", "label_smoothing", "weight_decay", "adversary", "schedule"]
)
def test_every_setting_has_an_effect(setting: str) -> None:
    config, dataset = tiny_everything()
    config = replace(config, epochs=2)
    off: dict[str, Any] = {"clip_norm": None, "adversary": None, "schedule": "constant"}
    without = replace(config, **{setting: off.get(setting, 0.0)})
    first, second = trained(config, dataset)[0], trained(without, dataset)[0]
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("tiny", TINY)
@pytest.mark.parametrize("stopped_after", [0, 2, 3])
def test_a_resumed_run_ends_with_the_same_bits(tiny: Tiny, stopped_after: int) -> None:
    config, dataset = tiny()
    straight, kept = trained(config, dataset)
    torch.manual_seed(12345)  # another process has another state of torch's generator
    resumed, _ = trained(config, dataset, kept[stopped_after])
    assert_bit_identical(straight, resumed)


def test_a_shorter_run_taken_further_ends_with_the_same_bits() -> None:
    config, dataset = tiny_rows()
    straight, _ = trained(config, dataset)
    _, kept = trained(replace(config, epochs=2), dataset)
    further, _ = trained(config, dataset, kept[-1])
    assert_bit_identical(straight, further)


def test_a_checkpoint_does_not_change_while_training_goes_on() -> None:
    config, dataset = tiny_rows()
    fingerprints: list[float] = []

    def fingerprint(state: Checkpoint) -> float:
        moments = sum(float(slot["exp_avg"].sum()) for slot in state.optimizer["state"].values())
        return moments + sum(float(tensor.sum()) for tensor in state.network.values())

    kept: list[Checkpoint] = []

    def keep(state: Checkpoint) -> None:
        kept.append(state)
        fingerprints.append(fingerprint(state))

    train(config, dataset, CPU, on_epoch=keep)
    assert [fingerprint(state) for state in kept] == fingerprints
    assert [state.epochs for state in kept] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("tiny", [tiny_text, tiny_rows, tiny_images])
def test_the_loss_falls(tiny: Tiny) -> None:
    _, kept = trained(*tiny())
    history = kept[-1].history
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].test_loss < history[0].test_loss * 1.01


def test_a_finished_run_is_not_trained_further() -> None:
    config, dataset = tiny_rows()
    network, kept = trained(config, dataset)
    again, nothing = trained(config, dataset, kept[-1])
    assert nothing == []
    assert_bit_identical(network, again)


def test_divergence_stops_with_step_rate_and_a_way_out() -> None:
    config = replace(linear_regression(), learning_rate=1e6)
    dataset = config.data.load(DataStore.from_environment({}))
    kept: list[Checkpoint] = []
    with pytest.raises(Diverged, match=r"epoch \d+, step 1, with learning rate 1e\+06: .* --learning-rate 100000"):
        train(config, dataset, CPU, on_epoch=kept.append)
    assert all(math.isfinite(epoch.test_loss) for state in kept for epoch in state.history)


def test_divergence_in_the_last_step_of_an_epoch_is_not_kept() -> None:
    config = replace(linear_regression(), epochs=1, learning_rate=3e38)
    dataset = config.data.load(DataStore.from_environment({}))
    kept: list[Checkpoint] = []
    with pytest.raises(Diverged, match="epoch 1, held-out"):
        train(config, dataset, CPU, on_epoch=kept.append)
    assert [state.epochs for state in kept] == [0]


def test_a_checkpoint_of_another_network_is_refused() -> None:
    config, dataset = tiny_rows()
    _, kept = trained(config, dataset)
    with pytest.raises(CheckpointError, match="another network"):
        trained(replace(config, model=DenseConfig(inputs=10, hidden=(20,))), dataset, kept[0])


def test_a_text_too_short_for_one_step_is_refused() -> None:
    config, dataset = tiny_text()
    with pytest.raises(BadSetting, match="1799 characters are too few for 100 texts side by side with a window of 20"):
        steps_per_epoch(replace(config, batch_size=100), dataset.train)


def test_a_ragged_last_batch_is_trained_and_weighed_by_its_rows() -> None:
    config, dataset = tiny_rows()
    config = replace(config, epochs=1, batch_size=499, learning_rate=1e-12)
    losses: list[float] = []
    kept: list[Checkpoint] = []
    train(config, dataset, CPU, on_step=lambda epoch, loss: losses.append(loss), on_epoch=kept.append)
    assert len(losses) == 2 == steps_per_epoch(config, dataset.train)
    assert kept[-1].history[0].train_loss == pytest.approx((losses[0] * 499 + losses[1]) / 500)


def test_the_rate_follows_its_schedule() -> None:
    config = linear_regression()
    assert learning_rate(config, 0.7) == config.learning_rate
    cosine = replace(config, schedule="cosine")
    rates = [learning_rate(cosine, done) for done in (0, 0.5, 1)]
    assert rates == pytest.approx([config.learning_rate, config.learning_rate / 2, 0])


def test_one_cycle_rises_then_falls_to_nothing() -> None:
    config = replace(linear_regression(), schedule="one_cycle")
    rates = [learning_rate(config, done / 100) for done in range(101)]
    peak = rates.index(max(rates))
    assert peak == 20
    assert rates[peak] == config.learning_rate
    assert rates[0] == pytest.approx(config.learning_rate / 25)
    assert rates[-1] == pytest.approx(0)
    assert sorted(rates[:21]) == rates[:21]
    assert sorted(rates[20:], reverse=True) == rates[20:]


def test_weight_decay_shrinks_matrices_and_spares_biases() -> None:
    """A gradient of zero leaves decay alone at work: one step at rate r and decay d scales a matrix by 1 − r d."""
    for optimizer in ("sgd", "adam"):
        config = replace(mlp_classifier(), optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
        network = config.model.build()
        before = weights(network)
        step = train_module._optimizer(config, network)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        step.step()
        for name, now in weights(network).items():
            torch.testing.assert_close(now, before[name] * (0.95 if name.endswith("weight") else 1.0))


def test_the_average_is_what_answers_and_what_is_watched() -> None:
    config, dataset = tiny_rows()
    config = replace(config, average=0.999)
    network, kept = trained(config, dataset)
    last = kept[-1]
    assert last.average is not None
    assert all(torch.equal(last.average[name], tensor) for name, tensor in network.state_dict().items())
    assert any(not torch.equal(last.network[name], tensor) for name, tensor in network.state_dict().items())
    assert evaluate(network, config.task, dataset).loss == last.history[-1].test_loss


def test_a_run_without_progress_stops_early_and_goes_back_to_its_best_epoch() -> None:
    config, dataset = tiny_rows()
    # at this rate the loss gets worse after the first epochs, and rises on
    config = replace(config, epochs=50, learning_rate=1.0, validation_share=0.3, patience=3)
    network, kept = trained(config, dataset)
    losses = [epoch.test_loss for epoch in kept[-1].history]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3 < 50
    assert evaluate(network, config.task, dataset.for_choosing(0.3)).loss == losses[best]
    again, nothing = trained(config, dataset, kept[-1])
    assert nothing == []
    assert_bit_identical(network, again)


def test_the_held_out_rows_choose_nothing() -> None:
    """With rows kept aside, a run is the same whatever the held-out split says."""
    config, dataset = tiny_rows()
    config = replace(config, epochs=8, learning_rate=0.5, validation_share=0.3, patience=2)
    liars = replace(dataset, test=Split(dataset.test.inputs, 1 - dataset.test.targets))
    assert_bit_identical(trained(config, dataset)[0], trained(config, liars)[0])


@pytest.mark.parametrize("tiny", [tiny_text, tiny_rows])
def test_rows_kept_aside_are_not_learnt_from(tiny: Tiny) -> None:
    _, dataset = tiny()
    watched = dataset.for_choosing(0.25)
    assert len(watched.train) + len(watched.test) == len(dataset.train)
    assert len(watched.test) == pytest.approx(len(dataset.train) / 4, abs=1)
    if dataset.vocabulary:
        assert torch.equal(torch.cat([watched.train.inputs, watched.test.inputs]), dataset.train.inputs)
    else:
        rows = {tuple(row.tolist()) for row in watched.train.inputs}
        assert not rows & {tuple(row.tolist()) for row in watched.test.inputs}
    assert dataset.for_choosing(0) is dataset


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    config, dataset = tiny_rows()
    config = replace(config, epochs=1, batch_size=None, optimizer="sgd", learning_rate=1.0, clip_norm=1e-3)
    network, kept = trained(config, dataset)
    moved = [now - kept[0].network[name] for name, now in network.state_dict().items()]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_state_is_carried_from_window_to_window() -> None:
    """A rule that only the past beyond the window tells: without the carried state it cannot be learnt."""
    text = "".join("abc"[(i // 40) % 2] + "c" * 3 for i in range(0, 6_000, 4))  # a or b, in runs; c between
    dataset = split_text(text, ShakespeareData())
    model = CharLstmConfig(vocabulary=3, hidden=16, layers=1)
    config = replace(
        shakespeare_lstm(), epochs=12, batch_size=4, window=4, learning_rate=2e-2, schedule="constant", model=model
    )
    _, kept = trained(config, dataset)
    # a window of four characters holds one of a and b: guessing it costs ln 2 on one in four, 0.173 nats
    assert kept[-1].history[-1].test_loss < 0.1
