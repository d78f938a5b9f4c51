"""The training loop. An epoch's randomness depends on seed and epoch alone, so a resumed run repeats it exactly."""

import copy
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from forwardpass_training.checkpoint import Checkpoint, Epoch, restore
from forwardpass_training.config import RunConfig
from forwardpass_training.data import Dataset, Split
from forwardpass_training.errors import BadSetting, CheckpointError, Diverged
from forwardpass_training.evaluate import HEADLINE, evaluate
from forwardpass_training.models import CharLstm

OnStep = Callable[[int, float], None]
"""Called after each step with (epochs finished, loss)."""
OnEpoch = Callable[[Checkpoint], None]
"""Called after each epoch, and once before the first, with the state to resume from."""

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "regression": functional.mse_loss,
    "binary": functional.binary_cross_entropy_with_logits,
    "multiclass": functional.cross_entropy,
}


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
    history: tuple[Epoch, ...] = ()
    if start:
        _restore(start, network, optimizer)
        history = start.history
    else:
        on_epoch(_snapshot(network, optimizer, history))
    split = dataset.train.to(device)
    while len(history) < config.epochs:
        began = time.perf_counter()
        train_loss = _train_epoch(config, network, optimizer, split, len(history), on_step)
        held_out = evaluate(network, config.task, dataset)
        if not math.isfinite(held_out.loss):
            raise _diverged(config, len(history), "held-out", held_out.loss)
        metric = held_out.metrics[HEADLINE[config.task]]
        history += (Epoch(train_loss, held_out.loss, metric, time.perf_counter() - began),)
        on_epoch(_snapshot(network, optimizer, history))
    return network


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
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate


def _train_epoch(
    config: RunConfig,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    epoch: int,
    on_step: OnStep,
) -> float:
    """One pass over the data; gives the mean loss of its targets."""
    generator = _seed_epoch(config.seed, epoch)
    network.train()
    total, targets = 0.0, 0
    steps = steps_per_epoch(config, split)
    for step, (loss, count) in enumerate(_losses(config, network, split, generator)):
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(config, epoch, f"step {step + 1}", value)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, (epoch + step / steps) / config.epochs)
        optimizer.step()
        total += value * count
        targets += count
        on_step(epoch, value)
    return total / targets


def _losses(config: RunConfig, network: nn.Module, split: Split, generator: Generator) -> Iterator[tuple[Tensor, int]]:
    """Each step's loss and how many targets it is the mean of; the caller steps between two of them."""
    if isinstance(network, CharLstm):
        return _text_losses(config, network, split)
    return _row_losses(config, network, split, generator)


def _row_losses(
    config: RunConfig, network: nn.Module, split: Split, generator: Generator
) -> Iterator[tuple[Tensor, int]]:
    """Rows in a new random order, `batch_size` at a time."""
    loss_of = LOSSES[config.task]
    order = torch.randperm(len(split), generator=generator).to(split.inputs.device)
    for rows in torch.split(order, config.batch_size or len(split)):
        yield loss_of(network(split.inputs[rows]), split.targets[rows]), len(rows)


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
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(network.parameters(), lr=config.learning_rate)
        case "adam":
            return torch.optim.Adam(network.parameters(), lr=config.learning_rate)


def _snapshot(network: nn.Module, optimizer: torch.optim.Optimizer, history: tuple[Epoch, ...]) -> Checkpoint:
    """The state as it is now; later steps do not change it."""
    return Checkpoint(copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict()), history)


def _restore(start: Checkpoint, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    restore(start, network)
    try:
        optimizer.load_state_dict(start.optimizer)
    except (ValueError, KeyError) as exc:
        raise CheckpointError(f"the checkpoint belongs to another optimiser: {exc}") from exc


def _diverged(config: RunConfig, epoch: int, where: str, value: float) -> Diverged:
    return Diverged(
        f"the loss is {value} at epoch {epoch + 1}, {where}, with learning rate {config.learning_rate:g}: "
        f"training diverged; run again with a smaller one, as --learning-rate {config.learning_rate / 10:g}"
    )
