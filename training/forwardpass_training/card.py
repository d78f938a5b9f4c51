"""The model card: what a network is for, what it learnt from and how good it is, in a page of Markdown.

It travels in the version folder as `card.md`, and in the ONNX file as `forwardpass.card`, which ModelMetadata tells.
"""

from typing import Any

from forwardpass_training.folder import RunFolder
from forwardpass_training.report import words
from forwardpass_training.report.findings import FINDINGS_FILE

CARD_FILE = "card.md"
CARD_BYTES_MAX = 4096
"""Every ModelMetadata answer carries it."""
LABELS = 20
PROMPT, WRITTEN = 40, 240
"""Characters of a language model's samples: of the prompt, and of each text."""

WHAT: dict[str, str] = {
    "regression": "Predicts numbers",
    "binary": "Tells two classes apart and gives the probability of the second",
    "multiclass": "Tells {classes} classes apart and gives the probability of each",
    "language": "Predicts the next character of a text, and gives logits",
}


def of_run(folder: RunFolder) -> str:
    """The card of a finished run, from its JSON files; at most CARD_BYTES_MAX bytes of UTF-8.

    Raises:
        RunFolderError: no finished run.
    """
    metrics, data, found = (folder.read_json(name) for name in ("metrics.json", "data.json", FINDINGS_FILE))
    return bounded(_card(metrics, data, found))


def bounded(text: str, limit: int = CARD_BYTES_MAX) -> str:
    """The text, cut at the end of a line and marked where it was too long."""
    if len(text.encode()) <= limit:
        return text
    mark = "…\n"
    kept = text.encode()[: limit - len(mark.encode())].decode(errors="ignore")
    return kept[: kept.rfind("\n") + 1] + mark


def _card(metrics: dict[str, Any], data: dict[str, Any], found: dict[str, Any]) -> str:
    task, labels, intervals = metrics["task"], found.get("labels", []), found.get("intervals", {})
    rows = "characters" if task == "language" else "rows"
    counts, machine = data["counts"], metrics["machine"]
    lines = [f"# {metrics['recipe']}", "", f"{WHAT[task].format(classes=len(labels))}."]
    if labels:
        more = f", … ({len(labels)} in all)" if len(labels) > LABELS else ""
        lines.append(f"Classes: {', '.join(labels[:LABELS])}{more}.")
    lines += [
        "",
        "## Data",
        f"{data['source']}. {counts['train']:,} {rows} to learn from, {counts['test']:,} held out.",
        f"SHA-256 of the tensors: {data['sha256']}",
        "",
        f"## Held-out metrics (95 % intervals over {rows})",
    ]
    for name, value in metrics["held_out"].items():
        interval = " ({} – {})".format(*map(words.figure, intervals[name])) if name in intervals else ""
        lines.append(f"- {words.title(name)}: {words.figure(value)}{interval}")
    lines += ["", "## Gates"] if metrics["gates"] else []
    lines += [f"- {'reached' if gate['passed'] else 'MISSED'}: {gate['gate']}" for gate in metrics["gates"]]
    lines += [
        "",
        "## Training",
        f"{metrics['parameters']:,} parameters, {metrics['epochs']:,} epochs, seed {metrics['seed']}, "
        f"{words.duration(metrics['train_s'])} on {machine['processor']} ({machine['device']}), "
        f"torch {machine['torch']}; finished {metrics['finished']}.",
        "",
        "## Limits",
        "The figures are of one seed, and of held-out data from the same source as the training data. "
        "Other data may be answered worse, and nothing here says by how much.",
    ]
    return "\n".join([*lines, *_texts(found), ""])


def _texts(found: dict[str, Any]) -> list[str]:
    """What a language model writes, indented as Markdown wants it verbatim."""
    texts: list[dict[str, Any]] = found.get("texts", [])
    lines = ["", f"## What it writes, going on from {found['prompt'][-PROMPT:]!r}"] if texts else []
    for each in texts:
        lines += ["", f"Temperature {each['temperature']:g}:", ""]
        lines += [f"    {line}".rstrip() for line in each["text"][:WRITTEN].splitlines()]
    return lines
