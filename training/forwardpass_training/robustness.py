"""Robustness: what a served classifier still gets right when its inputs are moved by an adversary, as a curve.

torch writes the gradient graph; after that it is ONNX Runtime alone, or a running server, on the artefact itself.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forwardpass_training import device, report, run
from forwardpass_training.adversary import white_of
from forwardpass_training.attack import Ball, Target
from forwardpass_training.attack_settings import AttackSettings
from forwardpass_training.errors import AttackFailed, BadSetting
from forwardpass_training.export import export
from forwardpass_training.exportable import Exportable
from forwardpass_training.folder import RunFolder
from forwardpass_training.gradient import differentiable, flipping, scored
from forwardpass_training.intervals import Interval, wilson
from forwardpass_training.verify import parity
from forwardpass_training.victims import OnnxFile, ServedModel, served_model

ROBUSTNESS_FILE, GRADIENT_FILE = "robustness.json", "gradient.onnx"
Array = NDArray[Any]

_MEASURED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What was found.

    Args:
        recipe: of the run.
        artefact: what was attacked: a file with its hash, or a served model with the versions that answered.
        settings: how hard it was tried.
        machine: where.
        rows: held-out rows attacked.
        clean: accuracy on them as they are.
        radii: how far elements could really move, in units of the input, for each epsilon.
        accuracy: under each attack, for each epsilon.
        worst: share of rows that no attack fooled at this or a smaller epsilon, for each epsilon.
        intervals: of `worst`, 95 % confidence.
        seconds: of each attack, over all epsilons.
        agreement: share of rows for which the network behind the gradients gives the artefact's class.
    """

    recipe: str
    artefact: Mapping[str, str]
    settings: AttackSettings
    machine: Mapping[str, Any]
    rows: int
    clean: float
    radii: tuple[float, ...]
    accuracy: Mapping[str, tuple[float, ...]]
    worst: tuple[float, ...]
    intervals: tuple[Interval, ...]
    seconds: Mapping[str, float]
    agreement: float

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Ascending."""
        return self.settings.epsilons

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def attack(
    run_folder: Path,
    *,
    settings: AttackSettings | None = None,
    file: Path | None = None,
    server: str | None = None,
    model: str | None = None,
    told: Callable[[str], None] | None = None,
) -> Robustness:
    """Attack what a finished run serves. Leaves `robustness.json` and the gradient graph in its folder.

    Args:
        run_folder: of a finished run of an image classifier; its held-out images are attacked.
        settings: how hard to try.
        file: the artefact; None: the run's network, exported.
        server: `host:port` of a server that serves the artefact; None: ONNX Runtime in this process.
        model: its name there; None: the recipe's.
        told: gets a line after each attack.

    Raises:
        BadSetting: the run is of no image classifier, or both a file and a server are given.
        AttackFailed: the artefact cannot be asked.
        TrainingError: the run or its data cannot be had, or not exported.
    """
    if server and file:
        raise BadSetting(f"attack either the file {file} or what {server} serves")
    asked = settings or AttackSettings()
    asked = dataclasses.replace(asked, epsilons=tuple(sorted(set(asked.epsilons))))
    folder = RunFolder.open(run_folder)
    config = folder.config()
    if config.task != "multiclass":
        raise BadSetting(f"attacks are on classifiers of images; {config.name} is {config.task}")
    exportable, test = run.exportable(run_folder), run.dataset(run_folder).test
    network, _ = scored(exportable)
    white = white_of(network)
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(asked.seed))[: asked.rows]
    x, classes = test.inputs[chosen].numpy(), test.targets[chosen].numpy()
    answer = exportable.output_names[0]
    if server is None and file is None:
        file = export(exportable, run_folder / "model.onnx")
    with _opened(file, server, model or config.name, answer) as victim:
        gradient = _gradient_of(exportable, run_folder)
        target = Target(
            answer=lambda given: victim.run(answer, given),
            gradient=lambda given, way: gradient.run("gradient", given, way.astype(np.float32)),
        )
        found = assail(target, x, classes, asked, high=white, told=told)
        scores = gradient.run("scores", x, np.zeros((len(x), found.classes), np.float32))
        robustness = Robustness(
            recipe=config.name,
            artefact=victim.describe(),
            settings=asked,
            machine=device.describe(torch.device("cpu")),
            rows=len(x),
            clean=float(found.right.mean()),
            radii=found.radii,
            accuracy={name: tuple(float(held.mean()) for held in rows) for name, rows in found.held.items()},
            worst=tuple(float(held.mean()) for held in found.worst()),
            intervals=tuple(wilson(int(held.sum()), len(x)) for held in found.worst()),
            seconds=found.seconds,
            agreement=float((scores.argmax(axis=1) == found.answered).mean()),
        )
    folder.write_json(ROBUSTNESS_FILE, robustness.to_json())
    report.draw(folder)
    return robustness


@dataclass(frozen=True, kw_only=True)
class Siege:
    """Which rows held, and which did not.

    Args:
        answered: class given to each row as it is.
        right: whether that is right.
        classes: that the target tells apart.
        held: for each attack and epsilon, the rows that were right and stayed so.
        radii: for each epsilon, in units of the input.
        seconds: for each attack.
    """

    answered: Array
    right: Array
    classes: int
    held: Mapping[str, Sequence[Array]]
    radii: tuple[float, ...]
    seconds: Mapping[str, float]

    def worst(self) -> list[Array]:
        """For each epsilon, the rows that no attack fooled at this or a smaller one, whose ball lies in the larger."""
        together = [np.logical_and.reduce(rows) for rows in zip(*self.held.values(), strict=True)]
        return list(np.logical_and.accumulate(together))


def assail(
    target: Target,
    x: Array,
    classes: Array,
    settings: AttackSettings,
    *,
    high: float,
    low: float = 0.0,
    told: Callable[[str], None] | None = None,
) -> Siege:
    """Run every attack at every epsilon, in their order, on the rows that the target gets right.

    Args:
        target: what is attacked.
        x: [rows, height, width] or [rows, height, width, planes].
        classes: [rows], the right ones.
        settings: how hard to try; epsilons ascending.
        high: largest value of an element.
        low: smallest value of an element.
        told: gets a line after each attack.
    """
    probabilities = target.answer(x)
    answered = probabilities.argmax(axis=1)
    right = answered == classes
    attacked = np.flatnonzero(right)
    held: dict[str, list[Array]] = {}
    seconds: dict[str, float] = {}
    integral = not np.issubdtype(x.dtype, np.floating)
    balls = [Ball(epsilon=e, low=low, high=high, integral=integral) for e in settings.epsilons]
    for name, strike in settings.named().items():
        began = time.perf_counter()
        for ball in balls:
            generator = np.random.default_rng(settings.seed)
            moved = strike(target, x[attacked], classes[attacked], ball, generator) if len(attacked) else x[:0]
            _check(moved, x[attacked], ball)
            survived = right.copy()
            if len(attacked):
                survived[attacked] = target.answer(moved).argmax(axis=1) == classes[attacked]
            held.setdefault(name, []).append(survived)
            if told:
                told(f"{name:<6} epsilon {ball.epsilon:<5g} accuracy {survived.mean():.4f}")
        seconds[name] = round(time.perf_counter() - began, 3)
    return Siege(
        answered=answered,
        right=right,
        classes=probabilities.shape[1],
        held=held,
        radii=tuple(ball.radius for ball in balls),
        seconds=seconds,
    )


def _check(moved: Array, x: Array, ball: Ball) -> None:
    """An attack that cheats would make a network look worse than it is."""
    far = np.abs(moved.astype(np.float64) - x.astype(np.float64)).max(initial=0.0)
    assert moved.dtype == x.dtype
    assert far <= ball.radius + 1e-6, f"moved by {far}, allowed {ball.radius}"
    assert moved.size == 0 or (moved.min() >= ball.low and moved.max() <= ball.high)


def _gradient_of(exportable: Exportable, run_folder: Path) -> OnnxFile:
    """The gradient graph, exported anew and proved."""
    following = differentiable(exportable)
    file = export(following, run_folder / GRADIENT_FILE)
    examples = following.examples(_MEASURED_ROWS, torch.Generator().manual_seed(0))
    largest = float(following.reference(*examples)[-1].abs().max())
    parity(file, following, tolerances=flipping("gradient", largest))
    return OnnxFile(file)


@contextmanager
def _opened(file: Path | None, server: str | None, model: str, answer: str) -> Iterator[OnnxFile | ServedModel]:
    if server is not None:
        with served_model(server, model, answer) as served:
            yield served
        return
    assert file is not None
    victim = OnnxFile(file)
    if len(victim.inputs) != 1 or answer not in victim.outputs:
        raise AttackFailed(f"{file} must take one input and answer {answer!r}; it answers {', '.join(victim.outputs)}")
    yield victim
