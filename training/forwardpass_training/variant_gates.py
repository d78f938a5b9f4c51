"""What a variant was measured to be, and the gates that decide whether it is offered. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from forwardpass_training.difference import Array, difference
from forwardpass_training.errors import BadSetting
from forwardpass_training.evaluate import HEADLINE
from forwardpass_training.task import Task

QUALITY_LOSS: dict[Task, float] = {"regression": 0.001, "binary": 0.002, "multiclass": 0.002, "language": 0.01}
"""What a variant may lose of the headline metric, where the caller does not say: R², accuracy, accuracy, nats."""


@dataclass(frozen=True, kw_only=True)
class VariantGates:
    """What a variant must pass to be offered."""

    max_quality_loss: float | None = None
    """Of the headline metric on held-out data: accuracy, R², or nats per character. None: as the task allows."""
    max_batch_difference: float = 1e-4
    """Between a row's answers alone and in company: |a − b| <= this + this · |b|."""
    min_gain: float = 1.1
    """How many times smaller, or cheaper in CPU time at some batch size, it must be."""

    def __post_init__(self) -> None:
        if (self.max_quality_loss or 0) < 0 or self.max_batch_difference < 0:
            raise BadSetting(f"gates must not be negative: {self}")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One variant.

    Args:
        variant: its name.
        says: what it is.
        refused: why it is not offered; empty when it is.
        metrics: held-out metrics.
        quality_loss: of the headline metric against float32; negative when it is better.
        batch_difference: largest difference between answers alone and in company.
        file_bytes: size of the file.
        sha256: of the file.
        load_s: creating a session.
        latency_s: wall seconds of a run by batch size, one thread.
        cpu_s: CPU seconds of a run by batch size.
        memory_bytes: peak of the process above an empty one, by batch size.
        multiply_adds: of one prediction.
        int8_share: of them, with weights of eight bits.
        foreign_operators: beyond ONNX's own.
    """

    variant: str
    says: str
    refused: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    quality_loss: float | None = None
    batch_difference: float | None = None
    file_bytes: int | None = None
    sha256: str | None = None
    load_s: float | None = None
    latency_s: Mapping[int, float] = field(default_factory=dict)
    cpu_s: Mapping[int, float] = field(default_factory=dict)
    memory_bytes: Mapping[int, int] = field(default_factory=dict)
    multiply_adds: int | None = None
    int8_share: float | None = None
    foreign_operators: tuple[str, ...] = ()

    @property
    def offered(self) -> bool:
        return not self.refused


def refusals(
    measured: Measured, baseline: Measured, gates: VariantGates, task: Task, depends: str | None
) -> Iterator[str]:
    """Why a variant is not offered, gate by gate, with the values.

    Args:
        measured: the variant.
        baseline: float32.
        gates: what to pass.
        task: decides the quality gate where `gates` leaves it open.
        depends: how its answers depend on batch-mates; None when they do not.
    """
    headline = HEADLINE[task]
    allowed = QUALITY_LOSS[task] if gates.max_quality_loss is None else gates.max_quality_loss
    assert measured.quality_loss is not None
    if not measured.quality_loss <= allowed:  # and not `>`, which lets NaN pass
        yield (
            f"{headline} {measured.metrics[headline]:.4f} is {measured.quality_loss:.4f} worse than float32's "
            f"{baseline.metrics[headline]:.4f}; {allowed:g} is allowed"
        )
    if depends:
        yield depends
    gains = {"smaller": _ratio(baseline.file_bytes, measured.file_bytes)}
    gains |= {f"cheaper at batch {b}": _ratio(baseline.cpu_s[b], measured.cpu_s[b]) for b in baseline.cpu_s}
    best = max(gains, key=lambda gain: gains[gain])
    if gains[best] < gates.min_gain:
        yield f"gains nothing: at best {gains[best]:.2f} times {best}; {gates.min_gain:g} is asked"


def batch_difference(answered: Mapping[str, Array]) -> float | None:
    """The largest difference between answers to the same rows alone and together.

    Args:
        answered: `<group>/alone/<output>` and `<group>/together/<output>`; other keys are passed over.
    """
    found = [difference(together, alone, atol=0, rtol=0).max_abs_error for _, alone, together in _company(answered)]
    return max((error for error in found if error is not None), default=None)


def dependence(answered: Mapping[str, Array], gates: VariantGates) -> str | None:
    """How answers depend on batch-mates, beyond what the gate allows; None when they do not. Arguments as above."""
    bound = gates.max_batch_difference
    for output, alone, together in _company(answered):
        apart = difference(together, alone, atol=bound, rtol=bound)
        if apart.failure:
            return f"answers depend on batch-mates: output {output!r}: {apart.failure}"
    return None


def _company(answered: Mapping[str, Array]) -> Iterator[tuple[str, Array, Array]]:
    """Each output, its answers to the same rows alone, and together."""
    for key, alone in answered.items():
        group, _, output = key.partition("/alone/")
        if output:
            yield output, alone, answered[f"{group}/together/{output}"]


def _ratio(before: float | None, after: float | None) -> float:
    return before / after if before and after else 0.0
