"""The training loop. An epoch's randomness depends on seed and epoch alone, so a resumed run repeats it exactly."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from forwardpass_training.adversary import Loss, worst_images
from forwardpass_training.checkpoint import Checkpoint, Epoch, restore
from forwardpass_training.config import RunConfig
from forwardpass_training.data import Dataset, Split
from forwardpass_training.errors import BadSetting, CheckpointError, Diverged
from forwardpass_training.evaluate import HEADLINE, evaluate
from forwardpass_training.models import CharLstm
from forwardpass_training.privacy import PrivateOptimizer, drawn_by_chance

OnStep = Callable[[int, float], None]
"""Called after each step with (epochs finished, loss)."""
OnEpoch = Callable[[Checkpoint], None]
"""Called after each epoch, and once before the first, with the state to resume from."""

RISING = 0.2
"""Share of a one-cycle run over which the rate rises, from FIRST_RATE of its largest."""
FIRST_RATE = 0.04


def train(
    config: RunConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    start: Checkpoint | None = None,
    on_step: OnStep = lambda _epochs, _loss: None,
    on_epoch: OnEpoch = lambda _checkpoint: None,
) -> nn.Module:
    """Train to `config.epochs`, from scratch or from where `start` ended. Returns the network, on `device`.

    Raises:
        Diverged: a loss is not finite; nothing is reported of that epoch.
        CheckpointError: `start` belongs to another network.
    """
    torch.manual_seed(config.seed)
    network = config.model.build().to(device)
    optimizer = _optimizer(config, network)
    state = Checkpoint(network.state_dict(), optimizer.state_dict())
    if start:
        state = start
        _restore(start, network, optimizer)
    average = copy.deepcopy(network) if config.average else None
    if average and state.average:
        restore(state.average, average)
    private = None
    if config.privacy:
        assert config.batch_size
        private = PrivateOptimizer(config.privacy, network, optimizer, config.batch_size)
        optimizer = private.optimizer
    if not start:
        on_epoch(_snapshot(network, optimizer, average, state))
    watched = dataset.for_choosing(config.validation_share)
    watched = replace(watched, train=watched.train.to(device))
    while not is_finished(config, state.history):
        began = time.perf_counter()
        generator = _seed_epoch(config.seed, state.epochs)
        if private:
            private.draw_noise_from(generator)
        train_loss = _train_epoch(config, network, optimizer, average, watched, state.epochs, generator, on_step)
        held_out = evaluate(average or network, config.task, watched)
        if not math.isfinite(held_out.loss):
            raise _diverged(config, state.epochs, "held-out", held_out.loss)
        metric = held_out.metrics[HEADLINE[config.task]]
        epoch = Epoch(train_loss, held_out.loss, metric, time.perf_counter() - began)
        best = state.best
        if config.patience and all(epoch.test_loss < before.test_loss for before in state.history):
            best = (average or network).state_dict()
        state = _snapshot(network, optimizer, average, replace(state, history=(*state.history, epoch), best=best))
        on_epoch(state)
    if private:
        private.release()
    return restore(state.answering, network)


def is_finished(config: RunConfig, history: Sequence[Epoch]) -> bool:
    """Whether all epochs are trained, or patience with the watched loss has run out."""
    if config.patience and history:
        losses = [epoch.test_loss for epoch in history]
        if len(losses) - 1 - losses.index(min(losses)) >= config.patience:
            return True
    return len(history) >= config.epochs


def steps_per_epoch(config: RunConfig, split: Split) -> int:
    """How many steps an epoch takes.

    Raises:
        BadSetting: a text too short for a single step.
    """
    if config.task != "language":
        return math.ceil(len(split) / (config.batch_size or len(split)))
    assert config.batch_size
    assert config.window
    steps = len(split) // (config.batch_size * config.window)
    if steps == 0:
        raise BadSetting(
            f"{len(split)} characters are too few for {config.batch_size} texts side by side with a window of "
            f"{config.window}; lower --batch-size or --window"
        )
    return steps


def learning_rate(config: RunConfig, done: float) -> float:
    """The rate of the next step, when `done` (0 to 1) of the run is behind."""
    match config.schedule:
        case "constant":
            return config.learning_rate
        case "cosine":
            return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
        case "one_cycle" if done < RISING:
            return config.learning_rate * (FIRST_RATE + (1 - FIRST_RATE) * done / RISING)
        case "one_cycle":
            return config.learning_rate * (1 + math.cos(math.pi * (done - RISING) / (1 - RISING))) / 2


def loss_of(config: RunConfig) -> Loss:
    """The loss of a task on rows: (outputs, targets) → mean."""
    spread = config.label_smoothing
    match config.task:
        case "regression":
            return functional.mse_loss
        case "binary":
            return lambda logits, targets: functional.binary_cross_entropy_with_logits(
                logits, targets * (1 - spread) + spread / 2
            )
        case "multiclass":
            return lambda logits, targets: functional.cross_entropy(logits, targets, label_smoothing=spread)
        case "language":
            raise TypeError("a language model learns from text, not from rows")


def _train_epoch(
    config: RunConfig,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    dataset: Dataset,
    epoch: int,
    generator: Generator,
    on_step: OnStep,
) -> float:
    """One pass over the data; gives the mean loss of its targets."""
    network.train()
    total, targets = 0.0, 0
    steps = steps_per_epoch(config, dataset.train)
    for step, (loss, count) in enumerate(_losses(config, network, dataset, epoch, generator)):
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(config, epoch, f"step {step + 1}", value)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, (epoch + step / steps) / config.epochs)
        optimizer.step()
        if average:
            _follow(average, network, config.average, epoch * steps + step)
        total += value * count
        targets += count
        on_step(epoch, value)
    return total / targets


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the network; at first quickly, so that it forgets where the network began."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    pairs = zip(average.state_dict().values(), network.state_dict().values(), strict=True)
    for slow, now in pairs:
        if slow.is_floating_point():
            slow.lerp_(now, share)
        else:
            slow.copy_(now)


def _losses(
    config: RunConfig, network: nn.Module, dataset: Dataset, epoch: int, generator: Generator
) -> Iterator[tuple[Tensor, int]]:
    """Each step's loss and how many targets it is the mean of; the caller steps between two of them."""
    if isinstance(network, CharLstm):
        return _text_losses(config, network, dataset.train)
    return _row_losses(config, network, dataset, epoch, generator)


def _row_losses(
    config: RunConfig, network: nn.Module, dataset: Dataset, epoch: int, generator: Generator
) -> Iterator[tuple[Tensor, int]]:
    """Rows in a new random order, `batch_size` at a time, distorted and made hard as the config says."""
    loss, split = loss_of(config), dataset.train
    batches = _batches(config, len(split), generator)
    for step, rows in enumerate(batches):
        inputs, targets = dataset.augmentation(split.inputs[rows], generator), split.targets[rows]
        if config.adversary:
            epsilon, ascents = config.adversary.at((epoch + step / len(batches)) / config.epochs)
            network.eval()  # looking for the worst image must not move statistics, nor leave units out
            inputs = worst_images(network, loss, inputs, targets, epsilon=epsilon, steps=ascents, generator=generator)
            network.train()
        if config.privacy:
            # Opacus's hooks want a gradient to flow all the way to the input
            inputs = inputs.float().requires_grad_()
        yield loss(network(inputs), targets), len(rows)


def _batches(config: RunConfig, rows: int, generator: Generator) -> Sequence[Tensor]:
    """Row numbers of each step: every row once, or, where the run is private, by chance."""
    if config.privacy:
        assert config.batch_size
        steps = math.ceil(rows / config.batch_size)
        return [drawn_by_chance(rows, config.batch_size, generator) for _ in range(steps)]
    return torch.split(torch.randperm(rows, generator=generator), config.batch_size or rows)


def _text_losses(config: RunConfig, network: CharLstm, split: Split) -> Iterator[tuple[Tensor, int]]:
    """The text cut into `batch_size` long pieces, read side by side; every position is a target, state is carried."""
    assert config.batch_size
    assert config.window
    length = steps_per_epoch(config, split) * config.window
    shape = (config.batch_size, length)
    inputs, targets = (stream[: math.prod(shape)].view(shape) for stream in (split.inputs, split.targets))
    h, c = network.zero_state(config.batch_size)
    for begin in range(0, length, config.window):
        window = slice(begin, begin + config.window)
        # the state's value is carried over, its history is not: the gradient ends at the window's first character
        logits, h, c = network(inputs[:, window], h.detach(), c.detach())
        loss = functional.cross_entropy(logits.flatten(0, 1), targets[:, window].flatten())
        yield loss, config.batch_size * config.window


def _seed_epoch(seed: int, epoch: int) -> Generator:
    """Seed torch for one epoch, and give the generator of its row order: a function of its arguments alone."""
    (global_seed, order_seed) = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint32).tolist()
    torch.manual_seed(global_seed)
    return torch.Generator().manual_seed(order_seed)


def _optimizer(config: RunConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Weight decay shrinks matrices and filters; a bias or a scale says nothing about complexity."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate)
        case "adam":
            return torch.optim.AdamW(groups, lr=config.learning_rate)


def _snapshot(
    network: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None, state: Checkpoint
) -> Checkpoint:
    """The state as it is now; later steps do not change it."""
    return Checkpoint(
        copy.deepcopy(network.state_dict()),
        copy.deepcopy(optimizer.state_dict()),
        state.history,
        copy.deepcopy(average.state_dict()) if average else None,
        copy.deepcopy(state.best),
    )


def _restore(start: Checkpoint, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    restore(start.network, network)
    try:
        optimizer.load_state_dict(start.optimizer)
    except (ValueError, KeyError) as exc:
        raise CheckpointError(f"the checkpoint belongs to another optimiser: {exc}") from exc


def _diverged(config: RunConfig, epoch: int, where: str, value: float) -> Diverged:
    return Diverged(
        f"the loss is {value} at epoch {epoch + 1}, {where}, with learning rate {config.learning_rate:g}: "
        f"training diverged; run again with a smaller one, as --learning-rate {config.learning_rate / 10:g}"
    )
