"""Robustness as a picture to pass around: accuracy by epsilon, a line for each attack and one for the worst of them."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from forwardpass_training.report.plots import DPI, GRID, HELD_OUT, INK, MUTED
from forwardpass_training.robustness import Robustness

LINES = ("#9aa5b1", "#7b8794", "#b08968", "#6d9886")


def save_robustness(found: Robustness, path: Path) -> None:
    """Draw it; the band round the worst is its 95 % interval."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    title = f"{found.recipe}: accuracy under attack"
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold", x=0.012, ha="left")
    axes = figure.subplots()
    epsilons = [0.0, *found.epsilons]
    for (name, accuracy), colour in zip(found.accuracy.items(), LINES, strict=False):
        axes.plot(epsilons, [found.clean, *accuracy], color=colour, linewidth=1.5, marker="o", markersize=3, label=name)
    low, high = np.array(found.intervals).T
    axes.fill_between(found.epsilons, low, high, color=HELD_OUT, alpha=0.18, linewidth=0)
    worst = [found.clean, *found.worst]
    axes.plot(epsilons, worst, color=HELD_OUT, linewidth=2.5, marker="o", markersize=5, label="every attack")
    axes.annotate(
        f"{worst[-1]:.1%}", (epsilons[-1], worst[-1]), (0, 8), textcoords="offset points", ha="right", color=HELD_OUT
    )
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"epsilon, share of the pixel range; {found.rows:,} held-out images", color=MUTED)
    axes.legend(frameon=False, labelcolor=INK)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0)
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.2)
