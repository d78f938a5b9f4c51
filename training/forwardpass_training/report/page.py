"""The page itself: JSON files of a run folder → `report.html`. No torch, no data; what is not there is left out."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from forwardpass_training.data.download import sha256_of
from forwardpass_training.folder import RunFolder, write_whole
from forwardpass_training.metrics import Calibration, per_class
from forwardpass_training.report import charts, words
from forwardpass_training.report.charts import Series
from forwardpass_training.report.findings import FINDINGS_FILE

REPORT_FILE = "report.html"

LOSSES = {
    "regression": "mean squared error",
    "binary": "cross-entropy, nats",
    "multiclass": "cross-entropy, nats",
    "language": "cross-entropy, nats per character",
}
HEADLINES = {"regression": "r2", "binary": "accuracy", "multiclass": "accuracy", "language": "nats_per_character"}
MATRIX_CLASSES = 20
PAIRS = 15
OTHERS = {
    "parity": "parity.json",
    "explained": "explain.json",
    "robustness": "robustness.json",
    "variants": "optimise.json",
    "statistics": "reference_statistics.json",
}
"""What other commands leave in the folder, by the name that the template uses."""

Values = dict[str, Any]


def draw(folder: RunFolder) -> Path:
    """Write `report.html` from whatever the folder of a finished run holds by now. Returns its path.

    Raises:
        RunFolderError: no finished run, or a damaged file.
    """
    page = _environment().get_template("page.html").render(_view(folder))
    path = folder.path / REPORT_FILE
    write_whole(path, lambda file: file.write(page.encode()))
    return path


def _environment() -> Environment:
    loader = PackageLoader(__package__, ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": words.number,
        "title_of": words.title,
        "size": words.size,
        "figure": words.figure,
        "percent": words.percent,
    }
    environment.globals["css"] = Markup(loader.get_source(environment, "page.css")[0])
    return environment


def _view(folder: RunFolder) -> Values:
    """Everything that the template names."""
    metrics, config, data = (folder.read_json(name) for name in ("metrics.json", "config.json", "data.json"))
    found = _optional(folder, FINDINGS_FILE) or {}
    others = {name: _optional(folder, file) for name, file in OTHERS.items()}
    task, headline = metrics["task"], HEADLINES[metrics["task"]]
    return {
        **others,
        "name": metrics["recipe"],
        "task": task,
        "metrics": metrics,
        "data": data,
        "found": found,
        "headline": headline,
        "intervals": found.get("intervals", {}),
        "held_out": [
            {
                "name": name,
                "value": value,
                "interval": found.get("intervals", {}).get(name),
                "says": words.meaning(name, task),
            }
            for name, value in metrics["held_out"].items()
        ],
        "duration": words.duration(metrics["train_s"]),
        "settings": words.settings_of(config),
        "curves": _curves(metrics, task, headline),
        "classes": _classes(metrics["confusion"], found.get("labels")),
        "confusion": _confusion(metrics["confusion"], found.get("labels")),
        "charts": {name: Markup(svg) for name, svg in _charts(found, others["robustness"]).items()},
        "parity_rows": _parity(others["parity"]),
        "files": _files(folder.path),
    }


def _optional(folder: RunFolder, name: str) -> Values | None:
    found: Values | None = folder.read_json(name) if (folder.path / name).is_file() else None
    return found


def _curves(metrics: Values, task: str, headline: str) -> list[tuple[str, Markup]]:
    history = metrics["history"]
    last = history[-1]
    losses = [
        Series(name="training", look="quiet", ys=[epoch["train_loss"] for epoch in history]),
        Series(name="held-out", look="main", ys=[epoch["test_loss"] for epoch in history]),
    ]
    drawn = charts.lines(
        losses,
        x_title="epoch",
        says=f"Loss over {len(history)} epochs; at the end {last['train_loss']:.4g} in training, "
        f"{last['test_loss']:.4g} held out.",
    )
    curves = [(f"Loss: {LOSSES[task]}", Markup(drawn))]
    if task != "language":  # whose headline is the loss
        figure = Series(name=headline, look="main", ys=[epoch["metric"] for epoch in history])
        says = f"{words.title(headline)} held out over {len(history)} epochs; at the end {last['metric']:.4g}."
        curves.append(
            (f"{words.title(headline)}, held-out", Markup(charts.lines([figure], x_title="epoch", says=says)))
        )
    return curves


def _classes(confusion: list[list[int]] | None, labels: list[str] | None) -> list[Values]:
    if not confusion:
        return []
    counts = np.array(confusion)
    scores = zip(labels or map(str, range(len(counts))), counts.sum(axis=1).tolist(), *per_class(counts), strict=True)
    return [
        {"label": label, "rows": rows, "precision": precision, "recall": recall, "f1": f1}
        for label, rows, precision, recall, f1 in scores
    ]


def _confusion(confusion: list[list[int]] | None, labels: list[str] | None) -> Values:
    """A matrix while it can be read, and otherwise the pairs most often confused."""
    if not confusion:
        return {}
    counts = np.array(confusion)
    names = labels or [str(number) for number in range(len(counts))]
    if len(counts) > MATRIX_CLASSES:
        wrong = counts - np.diag(np.diag(counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
        places = [divmod(place, len(counts)) for place in order.tolist()]
        pairs = [(names[true], names[answered], int(wrong[true, answered])) for true, answered in places]
        return {"pairs": [pair for pair in pairs if pair[2]]}
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # the square root spreads the few mistakes over the pale half of the scale
    cells = [
        list(zip(row, (100 * np.sqrt(share)).round(1), strict=True))
        for row, share in zip(confusion, shares, strict=True)
    ]
    return {"names": names, "rows": list(zip(names, cells, strict=True))}


def _charts(found: Values, robustness: Values | None) -> dict[str, str]:
    drawn = {}
    if bins := found.get("calibration"):
        calibration = Calibration(*(np.array(bins[key]) for key in ("rows", "confidence", "accuracy")))
        says = f"Accuracy over confidence; they differ by {calibration.error:.2%} on average."
        drawn["reliability"] = charts.reliability(calibration, bins["spread"], says=says)
        rows = calibration.rows.tolist()
        sure = rows[-1] / sum(rows)
        edges = [number / len(rows) for number in range(len(rows) + 1)]
        says = f"How many rows have which confidence: {sure:.1%} of them above {edges[-2]:.2f}."
        drawn["confidence"] = charts.histogram(edges, rows, x_title="confidence", says=says)
    if balance := found.get("balance"):
        least, most = min(balance["train"]), max(balance["train"])
        says = f"Training rows of each class, from {least:,} to {most:,}."
        drawn["balance"] = charts.bars(found["labels"], balance["train"], says=says, unit="training rows by class")
    if points := found.get("scatter"):
        says = f"Predicted against true, {len(points['true'])} held-out rows; on the diagonal both are equal."
        drawn["scatter"] = charts.scatter(points["true"], points["predicted"], x_title="true", says=says)
        edges, counts = found["errors"]["edges"], found["errors"]["counts"]
        says = f"Errors from {edges[0]:.3g} to {edges[-1]:.3g}."
        drawn["errors"] = charts.histogram(edges, counts, x_title="predicted − true", says=says)
    if shares := found.get("loss_by_character"):
        names = [_visible(each["character"]) for each in shares]
        values = [100 * each["share"] for each in shares]
        says = f"The loss sits on: {', '.join(f'{n} {v:.1f} %' for n, v in zip(names, values, strict=True))}."
        drawn["characters"] = charts.bars(names, values, says=says, unit="% of the loss, by true character", form=".1f")
    if robustness:
        drawn["robustness"] = _robustness(robustness)
    return drawn


def _robustness(found: Values) -> str:
    epsilons = [0.0, *found["settings"]["epsilons"]]
    looks = ("quiet", "second", "third", "fourth")
    series = [
        Series(name=name, look=looks[number % len(looks)], ys=[found["clean"], *accuracy], xs=epsilons)
        for number, (name, accuracy) in enumerate(found["accuracy"].items())
    ]
    series.append(Series(name="worst of all", look="main", ys=[found["clean"], *found["worst"]], xs=epsilons))
    says = f"Accuracy {found['clean']:.1%} untouched; " + ", ".join(
        f"{worst:.1%} at epsilon {epsilon:g}" for epsilon, worst in zip(epsilons[1:], found["worst"], strict=True)
    )
    return charts.lines(series, x_title="epsilon, share of the pixel range", says=says, y=(0.0, 1.0))


def _parity(parity: Values | None) -> list[Values]:
    """The largest difference for each kind of call, batch size and opponent."""
    rows: dict[tuple[str, int, str], Values] = {}
    for each in parity["comparisons"] if parity else []:
        key = each["case"], each["batch"], each["against"]
        row = rows.setdefault(
            key, dict(zip(("case", "batch", "against"), key, strict=True), error=0.0, used=0.0, failed=[])
        )
        difference = each["difference"]
        row["error"] = max(row["error"], difference["max_abs_error"] or 0.0)
        row["used"] = max(row["used"], difference["tolerance_used"] or 0.0)
        row["failed"] += [f"{each['output']}: {difference['failure']}"] if difference["failure"] else []
    return list(rows.values())


def _files(path: Path) -> list[Values]:
    """Every ONNX file that the run has led to, with size and hash."""
    found = sorted(path.glob("*.onnx")) + sorted(path.glob("variants/*.onnx"))
    return [
        {"name": str(file.relative_to(path)), "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in found
        if file.is_file()
    ]


def _visible(character: str) -> str:
    return {" ": "space", "\n": "newline", "\t": "tab"}.get(character, character)
