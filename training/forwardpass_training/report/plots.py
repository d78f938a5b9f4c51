"""Pictures of a run to pass around, as PNG: loss curves, and the confusion matrix of a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from forwardpass_training.checkpoint import Epoch

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
TRAIN, HELD_OUT = "#9aa5b1", "#0b69a3"
COUNTS = LinearSegmentedColormap.from_list("counts", ["#ffffff", "#bae3ff", "#0b69a3", "#003e6b"])
DPI = 160
FEW_EPOCHS = 25
LOG_SPAN = 20.0


def save_curves(history: Sequence[Epoch], path: Path, *, title: str, loss: str, metric: str) -> None:
    """Two panels over epochs: the loss (training, held-out) and the held-out headline metric.

    Args:
        title: above both.
        loss: what the loss is, with its unit.
        metric: what the metric is.
    """
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold", x=0.012, ha="left")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    _curve(left, epochs, [epoch.train_loss for epoch in history], TRAIN, "training")
    _curve(left, epochs, [epoch.test_loss for epoch in history], HELD_OUT, "held-out")
    losses = np.array([(epoch.train_loss, epoch.test_loss) for epoch in history])
    if losses.min() > 0 and losses.max() / losses.min() > LOG_SPAN:
        left.set_yscale("log")
        left.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        left.yaxis.set_minor_locator(NullLocator())
    left.legend(frameon=False, labelcolor=INK)
    _dress(left, loss)
    _curve(right, epochs, [epoch.metric for epoch in history], HELD_OUT, metric)
    last = history[-1].metric
    right.annotate(
        f"{last:.4g}", (float(epochs[-1]), last), (0, 8), textcoords="offset points", ha="right", color=HELD_OUT
    )
    right.margins(y=0.15)
    _dress(right, f"{metric}, held-out")
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.2)


def save_confusion(confusion: NDArray[np.int64], labels: Sequence[str], path: Path, *, title: str) -> None:
    """Counts by true and predicted class; the colour is the share of the true class, so that rare classes show too."""
    classes = len(labels)
    side = 2.4 + 0.52 * classes
    figure = Figure(figsize=(side + 0.4, side), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # the square root spreads the few mistakes over the pale half of the scale
    axes.imshow(np.sqrt(shares), cmap=COUNTS, vmin=0, vmax=1)
    for true in range(classes):
        for predicted in range(classes):
            count = int(confusion[true, predicted])
            colour = "white" if shares[true, predicted] > 0.25 else INK if count else GRID
            weight = "bold" if true == predicted else "normal"
            axes.text(
                predicted, true, f"{count:,}", ha="center", va="center", color=colour, fontsize=9, fontweight=weight
            )
    axes.set_xticks(range(classes), labels=list(labels))
    axes.set_yticks(range(classes), labels=list(labels))
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.8)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.2)


def _curve(axes: Axes, epochs: NDArray[Any], values: Sequence[float], colour: str, label: str) -> None:
    marker = "o" if len(values) <= FEW_EPOCHS else None
    axes.plot(epochs, values, color=colour, linewidth=2, marker=marker, markersize=4, label=label)


def _dress(axes: Axes, quantity: str) -> None:
    axes.set_title(quantity, loc="left", color=INK, fontsize=10)
    axes.set_xlabel("epoch", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0)
