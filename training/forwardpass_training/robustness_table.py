"""Robustness as a table for a terminal."""

from rich.console import Console
from rich.table import Table

from forwardpass_training.robustness import Robustness


def print_table(found: Robustness, console: Console) -> None:
    """Accuracy by epsilon and attack, and below it what was attacked and how."""
    table = Table(title=f"{found.recipe}: accuracy under attack", title_justify="left", title_style="bold")
    for head in ("epsilon", "moved by", *found.accuracy, "every attack", "95 % interval"):
        table.add_column(head, justify="right")
    table.add_row("0", "0", *(f"{found.clean:.4f}" for _ in found.accuracy), f"{found.clean:.4f}", "")
    for index, (epsilon, radius) in enumerate(zip(found.epsilons, found.radii, strict=True)):
        low, high = found.intervals[index]
        under = [f"{accuracy[index]:.4f}" for accuracy in found.accuracy.values()]
        table.add_row(f"{epsilon:g}", f"{radius:g}", *under, f"{found.worst[index]:.4f}", f"{low:.4f} – {high:.4f}")
    console.print(table)
    settings = found.settings
    console.print(
        f"{', '.join(f'{key} {value}' for key, value in found.artefact.items())}; {found.rows:,} held-out rows; "
        f"{settings.steps} steps, {settings.restarts} random starts, {settings.queries} queries of square; "
        f"{sum(found.seconds.values()):.0f} s on one thread of {found.machine['processor']}",
        markup=False,
        soft_wrap=True,
        highlight=False,
    )
    if found.agreement < 1:
        console.print(
            f"the network behind the gradients gives the attacked artefact's class for {found.agreement:.2%} of the "
            "rows only: it is another one, and its gradients a guess",
            soft_wrap=True,
        )
