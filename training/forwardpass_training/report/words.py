"""What each metric is called and means, for people; and numbers as people write them."""

from collections.abc import Mapping
from typing import Any

METRICS: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "share answered right; precision, recall and F1 averaged over rows (micro) equal it"),
    "precision": ("Precision", "of rows answered as class 1, the share that is"),
    "recall": ("Recall", "of rows of class 1, the share answered so"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "precision_macro": ("Precision, macro", "mean over classes"),
    "recall_macro": ("Recall, macro", "mean over classes"),
    "f1_macro": ("F1, macro", "mean over classes"),
    "roc_auc": ("ROC AUC", "chance that a row of class 1 scores above one of class 0"),
    "roc_auc_macro": ("ROC AUC, macro", "each class against the rest, mean over classes"),
    "log_loss": ("Log loss", "mean −ln p of the true class, nats"),
    "ece": ("Calibration error", "mean distance between confidence and accuracy, 15 bins (ECE)"),
    "mse": ("Mean squared error", "in squared units of the target"),
    "mae": ("Mean absolute error", "in units of the target"),
    "r2": ("R²", "share of the targets' variance that is explained"),
    "distance_to_least_squares": ("Distance to least squares", "largest difference of a weight to the exact solution"),
    "nats_per_character": ("Nats per character", "mean −ln p of the true character"),
    "bits_per_character": ("Bits per character", "the same, −log₂ p"),
    "perplexity": ("Perplexity", "characters it is as unsure between, e to the nats"),
    "epsilon": ("Privacy, ε", "differential privacy spent on the training rows"),
}


def title(metric: str) -> str:
    """`f1_macro` → `F1, macro`; a metric of your own by its name."""
    if metric == "accuracy":
        return "Accuracy"
    return METRICS.get(metric, (metric.replace("_", " ").capitalize(), ""))[0]


def meaning(metric: str, task: str) -> str:
    """One line; empty where nothing is known of it."""
    if (metric, task) == ("accuracy", "language"):
        return "how often the likeliest character was right"
    return METRICS.get(metric, ("", ""))[1]


def number(value: Any) -> str:
    """Four digits that count, thousands apart; a list as its numbers."""
    if isinstance(value, list | tuple):
        return ", ".join(map(number, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1_000 and value == int(value)):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def figure(value: float) -> str:
    """A measured figure: four digits that count, zeros included."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:#.4g}"


def percent(share: float) -> str:
    """A share as 98.3 %, the sign never on a line of its own."""
    return f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def settings_of(config: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Each setting of a config's JSON as a line: `model.hidden` → `128`. Of a nested config, its kind."""
    lines: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            lines |= {path + key: value.get("kind", ""), **settings_of(value, f"{path}{key}.")}
        elif key not in ("kind", "gates"):
            lines[path + key] = _setting(value)
    return lines


def _setting(value: Any) -> str:
    """A list of configs as their values, without their kinds."""
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "–"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_setting(each)}" for key, each in value.items() if key != "kind") + ")"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """8.3 s, 4 min 24 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes as B, KiB or MiB."""
    if count < 1 << 10:
        return f"{count} B"
    return f"{count / (1 << 10):,.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):,.1f} MiB"
