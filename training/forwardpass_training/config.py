"""The settings of a run, as one frozen value: a recipe returns it, flags override it, `config.json` keeps it."""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import isabstract
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro.conf

from forwardpass_training import data, models, own
from forwardpass_training.adversary import Adversary
from forwardpass_training.data import DataConfig
from forwardpass_training.errors import BadSetting
from forwardpass_training.models import ModelConfig
from forwardpass_training.privacy import SMALLEST_BATCH, Privacy
from forwardpass_training.task import Task


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A held-out metric and the bound that it must meet."""

    metric: str
    at_least: float = -math.inf
    at_most: float = math.inf

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether the metric is there and within the bound; NaN is not."""
        return self.at_least <= metrics.get(self.metric, math.nan) <= self.at_most

    def __str__(self) -> str:
        bounds = [f">= {self.at_least:g}"] if self.at_least > -math.inf else []
        bounds += [f"<= {self.at_most:g}"] if self.at_most < math.inf else []
        return f"{self.metric} {' and '.join(bounds)}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's weights on a given machine."""

    name: Annotated[str, tyro.conf.Suppress]
    """The recipe, and the name of the model when published."""
    task: Annotated[Task, tyro.conf.Suppress]
    """What the network is for."""
    epochs: int
    """Passes over the training data."""
    batch_size: int | None
    """Rows a step (language: texts read side by side); None: all of them, which is plain gradient descent."""
    optimizer: Literal["sgd", "adam"]
    """Rule of the steps."""
    learning_rate: float
    """Size of the steps; the largest that the schedule reaches."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    """The rate over the run: as it is; falling to 0 along half a cosine; or rising for a fifth of the run, then so."""
    weight_decay: float = 0.0
    """Share of the learning rate by which each step shrinks weight matrices (decoupled from the gradient)."""
    label_smoothing: float = 0.0
    """Classification: share of a target's certainty that is spread evenly over all classes."""
    clip_norm: float | None = None
    """The largest norm of a step's gradient; longer ones are shortened to it. None: as they come."""
    average: float = 0.0
    """Decay, per step, of a moving average of the weights, which then is what is evaluated and served; 0: none."""
    validation_share: float = 0.0
    """Share of the training rows kept aside to watch the run by; 0: it is watched by the held-out rows."""
    patience: int | None = None
    """Stop after so many epochs without a better loss on the rows kept aside, and go back to the best epoch."""
    adversary: Adversary | None = None
    """Images only: learn from the worst image near each, for robustness."""
    privacy: Privacy | None = None
    """Rows only: clip and blur each step, so that the network gives away little about any row."""
    seed: int = 0
    """Of the initial weights and of the order of the rows; the data has its own."""
    window: int | None = None
    """Language only: characters through which the gradient flows back in one step."""
    data: DataConfig
    """What to learn from."""
    model: ModelConfig
    """The network."""
    gates: Annotated[tuple[Gate, ...], tyro.conf.Suppress] = ()
    """What the held-out metrics must reach."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise BadSetting(f"epochs is {self.epochs}; train for at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise BadSetting(f"batch_size is {self.batch_size}; it must be at least 1, or None for all rows at once")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise BadSetting(f"learning_rate is {self.learning_rate}; it must be a number above 0")
        if not 0 <= self.seed < 2**63:
            raise BadSetting(f"seed is {self.seed}; it must lie in 0 … 2⁶³ − 1")
        for name in ("label_smoothing", "average", "validation_share"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise BadSetting(f"{name} is {share}; it must lie from 0 to below 1")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise BadSetting(f"weight_decay is {self.weight_decay}; it must be a number from 0 upwards")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise BadSetting(f"clip_norm is {self.clip_norm}; it must be above 0, or None for gradients as they come")
        if self.patience is not None and (self.patience < 1 or not self.validation_share):
            raise BadSetting(
                f"patience is {self.patience} with a validation_share of {self.validation_share}; stopping early takes "
                "at least 1 epoch of patience, and rows kept aside, since the held-out rows must not choose"
            )
        if self.label_smoothing and self.task not in ("binary", "multiclass"):
            raise BadSetting(f"label_smoothing is {self.label_smoothing}, and {self.name} ({self.task}) has no classes")
        if self.adversary and self.task != "multiclass":
            raise BadSetting(f"an adversary needs images to classify; {self.name} is {self.task}")
        if self.task == "language" and (self.batch_size is None or self.window is None or self.window < 1):
            raise BadSetting(
                "a language model needs a batch_size and a window of at least 1; "
                f"they are {self.batch_size} and {self.window}"
            )
        if self.task != "language" and self.window is not None:
            raise BadSetting(f"window is {self.window}, which only a language model has; {self.name} is {self.task}")
        if self.privacy:
            self._check_private()
        self.model.check()

    def _check_private(self) -> None:
        if self.task == "language" or self.batch_size is None or self.batch_size < SMALLEST_BATCH:
            raise BadSetting(
                f"private training takes rows, at least {SMALLEST_BATCH} a step; {self.name} is {self.task} with a "
                f"batch_size of {self.batch_size}"
            )
        if self.patience or self.adversary or self.clip_norm is not None:
            raise BadSetting(
                "private training clips by itself (privacy.clip_norm), and what patience or an adversary looks at "
                "would not be accounted for: leave clip_norm, patience and adversary out"
            )


PACKAGE = f"{__package__}."

OURS: dict[str, type] = {
    cls.__name__: cls
    for room, base in ((data, DataConfig), (models, ModelConfig))
    for cls in vars(room).values()
    if isinstance(cls, type) and issubclass(cls, base) and not isabstract(cls)
}
"""Configs of data and models that `config.json` names without their module."""


def to_json(config: Any) -> Any:
    """A config as plain values; nested dataclasses carry their class as `kind`: a name of ours, or `module:Class`."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
        if "kind" in values:
            raise BadSetting(
                f"{type(config).__name__} has a field `kind`, which config.json keeps for the class; rename it"
            )
        return {"kind": _kind(type(config)), **values}
    if isinstance(config, tuple):
        return [to_json(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, float) and not math.isfinite(config):
        return str(config)  # JSON has no infinity
    return config


def from_json(values: Any) -> RunConfig:
    """The inverse of `to_json`, for a `RunConfig`.

    Raises:
        BadSetting: a field is missing, unknown, or of the wrong type; the text gives its path.
    """
    config = _read(values, RunConfig, "config")
    assert isinstance(config, RunConfig)
    return config


def _read(value: Any, wanted: Any, path: str) -> Any:
    """`value` as the annotated type `wanted`, or BadSetting naming `path`."""
    if get_origin(wanted) is Annotated:
        return _read(value, get_args(wanted)[0], path)
    if get_origin(wanted) in (types.UnionType, Union):
        return _read_union(value, get_args(wanted), path)
    if wanted in (ModelConfig, DataConfig):
        return _read_kind(value, wanted, path)
    if get_origin(wanted) is Literal and value in get_args(wanted):
        return value
    if get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(_read(item, get_args(wanted)[0], f"{path}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _read_dataclass(value, wanted, path)
    if wanted is float and (type(value) in (int, float) or value in ("inf", "-inf")):
        return float(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted in (int, str, bool, types.NoneType) and type(value) is wanted:
        return value
    raise BadSetting(f"{path} is {value!r}, which is not {getattr(wanted, '__name__', wanted)}")


def _read_union(value: Any, options: tuple[Any, ...], path: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    (wanted,) = [option for option in options if option is not types.NoneType]
    return _read(value, wanted, path)


def _kind(cls: type) -> str:
    """How `config.json` names a class: ours by name, and the user's with their module."""
    if cls.__module__.startswith(PACKAGE):
        return cls.__name__
    return f"{cls.__module__}:{cls.__qualname__}"


def _read_kind(value: Any, base: type, path: str) -> Any:
    """A config of a class that `value` names: one of ours, or one of the user's, whose module is then imported."""
    kind = value.get("kind") if isinstance(value, dict) else None
    cls = OURS.get(kind) if isinstance(kind, str) else None
    if cls is None and isinstance(kind, str) and ":" in kind:
        cls = own.load(kind)
    if not (isinstance(cls, type) and issubclass(cls, base) and dataclasses.is_dataclass(cls)):
        known = sorted(name for name, cls in OURS.items() if issubclass(cls, base))
        raise BadSetting(f"{path}.kind is {kind!r}; known are {', '.join(known)}, or module:Class for one of yours")
    return _read_dataclass(value, cls, path)


def _read_dataclass(value: Any, wanted: type, path: str) -> Any:
    if not isinstance(value, dict):
        raise BadSetting(f"{path} is {value!r}, not the fields of {wanted.__name__}")
    hints = get_type_hints(wanted, include_extras=True)
    given = {name: field for name, field in value.items() if name != "kind"}
    # settings that came later have defaults under which older configs mean what they meant
    needed = {field.name for field in dataclasses.fields(wanted) if _has_no_default(field)}
    for verb, names in (("lacks", needed - given.keys()), ("does not know", given.keys() - hints.keys())):
        if names:
            raise BadSetting(f"{path} {verb} {', '.join(sorted(names))}; it was written by another version")
    return wanted(**{name: _read(field, hints[name], f"{path}.{name}") for name, field in given.items()})


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
