"""Variants as a table for a terminal: what each saves, what it costs, and whether it is offered."""

from collections.abc import Callable, Mapping

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from forwardpass_training.optimise import Optimisation
from forwardpass_training.variant_gates import Measured

MEGA, KIBI, MEBI = 1e6, 1 << 10, 1 << 20
NOTHING = "–"


def print_table(found: Optimisation, console: Console) -> None:
    """Print the table, and below it why variants are refused and what the figures mean."""
    console.print(_table(found))
    for each in found.variants:
        for reason in each.refused:
            console.print(f"{each.variant}: {reason}", markup=False, soft_wrap=True, highlight=False)
    foreign = {operator for each in found.variants for operator in each.foreign_operators}
    if foreign:
        console.print(f"* runs in ONNX Runtime alone: {', '.join(sorted(foreign))}", markup=False, soft_wrap=True)
    console.print(
        f"{found.headline} of {found.held_out:,} held out; one thread of {found.machine['processor']}. "
        "µs, CPU µs: of a run at that batch size, best of several rounds; MiB: peak above an empty process; "
        "batch Δ: largest difference between a row's answers alone and in company.",
        markup=False,
        soft_wrap=True,
        highlight=False,
    )


def _table(found: Optimisation) -> Table:
    table = Table(title=f"{found.recipe}: variants", title_justify="left", title_style="bold", pad_edge=False)
    baseline = found.variants[0]
    batches = list(baseline.latency_s)
    sizes = "/".join(map(str, batches))
    table.add_column("variant", no_wrap=True)
    for head in (
        found.headline.replace("_", " "),
        "change",
        "KiB",
        f"µs {sizes}",
        f"CPU µs {sizes}",
        "MFLOP",
        "int8",
        "MiB",
        "batch Δ",
    ):
        table.add_column(head, justify="right")
    table.add_column("offered")
    for each in found.variants:
        table.add_row(
            each.variant + "*" * bool(each.foreign_operators), *_cells(each, found.headline), _verdict(each, baseline)
        )
    return table


def _cells(each: Measured, headline: str) -> list[str]:
    return [
        _said(each.metrics.get(headline), "{:.4f}"),
        _said(each.quality_loss, "{:+.4f}", lambda loss: -loss if "nats" not in headline else loss),
        _said(each.file_bytes, "{:,.0f}", lambda size: size / KIBI),
        _by_batch(each.latency_s, MEGA),
        _by_batch(each.cpu_s, MEGA),
        _said(each.multiply_adds, "{:.3g}", lambda count: 2 * count / MEGA),
        _said(each.int8_share, "{:.0%}"),
        _said(max(each.memory_bytes.values(), default=None), "{:.1f}", lambda size: size / MEBI),
        _said(each.batch_difference, "{:.1g}"),
    ]


def _verdict(each: Measured, baseline: Measured) -> RenderableType:
    if each is baseline:
        return Text("default")
    return Text("yes", style="green") if each.offered else Text("refused", style="red")


def _said(value: float | None, form: str, convert: Callable[[float], float] = float) -> str:
    return NOTHING if value is None else form.format(convert(value))


def _by_batch(values: Mapping[int, float], factor: float) -> str:
    return " / ".join(f"{value * factor:,.0f}" for value in values.values()) or NOTHING
