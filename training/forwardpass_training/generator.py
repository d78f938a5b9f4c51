"""The generator of a language model: one ONNX file in which a call advances many texts by several characters each.

What it takes and gives is `models.sampling.write`, in the names and the order below. A server that knows this contract
serves it as text (a prompt in, pieces of text out) whatever the network inside; what else it must know is said in the
file, under `forwardpass.generation`: the string of each token, and which output is the next call's which input.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from forwardpass_server.lifecycle.repository import VersionFolder
from forwardpass_training import run
from forwardpass_training.data import DataStore
from forwardpass_training.errors import BadSetting
from forwardpass_training.export import OPSET, write
from forwardpass_training.exportable import Exportable, Tensors
from forwardpass_training.folder import RunFolder
from forwardpass_training.generator_graph import build
from forwardpass_training.models import CharLstm
from forwardpass_training.models.sampling import SAMPLED
from forwardpass_training.models.sampling import write as write_text
from forwardpass_training.publish import configure, passed_gates, publish_export
from forwardpass_training.report import draw
from forwardpass_training.verify import ParityReport, measure

SUFFIX = "_generator"
"""`shakespeare_lstm` is served as text by the model `shakespeare_lstm_generator`."""

GENERATOR_FILE = "generator.onnx"
PARITY_FILE = "generator_parity.json"

INPUTS = ("token", "forced", "uniform", "temperature", "top_k", "top_p", "h0", "c0")
OUTPUTS = ("tokens", "h1", "c1")
STATES = {"h0": "h1", "c0": "c1"}

STEPS_MAX = 32
"""Characters a call. More gain nothing (8 already reach 97 % of the speed of 32), and a text that arrives waits for the
call under way."""
SLOTS = 64
"""Texts advanced together, unless the model's config.pbtxt says otherwise."""

CLEAR = 1e-4
"""By how much a uniform number or a top-p may be moved before an example changes: far more than another processor's
rounding moves a probability, so that an example's characters are the same everywhere."""

_EXAMPLE_STEPS = 8


def generating(run_folder: Path, store: DataStore | None = None) -> Exportable:
    """The generator of a finished run, with its twin in torch.

    Raises:
        BadSetting: the run's network is no language model.
        TrainingError: the run or its data cannot be had.
    """
    network = run.network(run_folder)
    if not isinstance(network, CharLstm):
        raise BadSetting(f"{run_folder} holds a {type(network).__name__}, which writes no text; a generator needs one")
    stepwise = run.exportable(run_folder, store)
    vocabulary = run.dataset(run_folder, store).vocabulary
    return of_network(network, stepwise, vocabulary)


def of_network(network: CharLstm, stepwise: Exportable, vocabulary: str) -> Exportable:
    """The generator of a network.

    Args:
        network: in eval mode, on the CPU.
        stepwise: the same network as it is served to those who sample themselves; gives the held-out examples.
        vocabulary: its characters, by token.
    """
    generation = {
        "format": 1,
        "vocabulary": list(vocabulary),
        "states": [{"input": before, "output": after} for before, after in STATES.items()],
        "steps_max": STEPS_MAX,
        "replacement": None,
    }

    def twin(*inputs: Tensor) -> Tensors:
        token, forced, uniform, temperature, top_k, top_p, h, c = inputs
        tokens, (h, c) = write_text(network, token, forced, uniform, temperature, top_k, top_p, (h, c))
        return tokens, h.contiguous(), c.contiguous()

    examples = _Examples(twin, stepwise, len(vocabulary))
    return Exportable(
        module=network,
        reference=twin,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic={name: {0: "batch"} for name in INPUTS} | {name: {0: "batch", 1: "steps"} for name in INPUTS[1:3]},
        examples=examples.temperature_only,
        further_examples={"restricted": examples.restricted, "prompt": examples.prompt, "step": examples.step},
        metadata={
            **stepwise.metadata,
            "forwardpass.task": "generate",
            "forwardpass.generation": json.dumps(generation),
        },
        states=STATES,
        companions=stepwise.companions,
    )


def export_generator(run_folder: Path, *, store: DataStore | None = None) -> tuple[Path, Exportable, ParityReport]:
    """Write the generator of a finished run, and compare it with torch. Leaves both findings in the run folder.

    Raises:
        BadSetting: the run's network is no language model.
        ExportFailed: ONNX refuses the graph.
        TrainingError: the run or its data cannot be had.
    """
    exportable = generating(run_folder, store)
    network = exportable.module
    assert isinstance(network, CharLstm)
    file = write(build(network, opset=OPSET), exportable, run_folder / GENERATOR_FILE)
    report = measure(file, exportable)
    report.write(run_folder / PARITY_FILE)
    return file, exportable, report


def publish_generator(
    run_folder: Path, root: Path, *, model: str | None = None, force: bool = False, store: DataStore | None = None
) -> VersionFolder:
    """Export a finished run's generator, prove it, and put it into a repository as the model's next version.

    Args:
        run_folder: of a finished run.
        root: of the model repository; made when it is not there.
        model: name to publish under; None: the recipe's, with `_generator`.
        force: publish although held-out metrics miss the recipe's gates; parity is never waived.
        store: where the run's data is found.

    Raises:
        ShipError: a gate is missed, the export fails, parity fails, or the repository refuses; nothing is published.
        BadSetting: the run's network is no language model.
        RunError: the folder holds no finished run.
        DataError: the run's held-out data cannot be had.
    """
    folder = RunFolder.open(run_folder)
    metrics, notes = passed_gates(folder, force=force)
    file, exportable, report = export_generator(run_folder, store=store)
    draw(folder)
    report.check()
    name = model or f"{folder.config().name}{SUFFIX}"
    configure(root, name, _CONFIG)
    return publish_export(file, exportable, report, root, model=name, metrics=metrics, notes=notes)


_CONFIG = f"""# a request is a text, answered in pieces as it is written; so many texts are advanced together
max_batch_size: {SLOTS}
model_transaction_policy {{ decoupled: true }}
"""


class _Examples:
    """Texts that go on from held-out prompts, under settings that differ from row to row."""

    def __init__(self, twin: Callable[..., Tensors], stepwise: Exportable, vocabulary: int) -> None:
        self._twin = twin
        self._states_of = stepwise.further_examples["step"]
        self._vocabulary = vocabulary

    def temperature_only(self, batch: int, generator: Generator) -> Tensors:
        return self._draw(batch, generator, steps=_EXAMPLE_STEPS)

    def restricted(self, batch: int, generator: Generator) -> Tensors:
        """Rows with top-k, with top-p, with both, and with neither, beside each other."""
        return self._draw(batch, generator, steps=_EXAMPLE_STEPS, restricted=True)

    def prompt(self, batch: int, generator: Generator) -> Tensors:
        """Rows that are still reading their prompts, of different lengths, beside rows that write."""
        return self._draw(batch, generator, steps=STEPS_MAX, prompt=STEPS_MAX // 2)

    def step(self, batch: int, generator: Generator) -> Tensors:
        return self._draw(batch, generator, steps=1)

    def _draw(
        self, batch: int, generator: Generator, *, steps: int, restricted: bool = False, prompt: int = 0
    ) -> Tensors:
        def whole(limit: int, columns: int = 1) -> Tensor:
            return torch.randint(limit, (batch, columns), generator=generator)

        token, h, c = self._states_of(batch, generator)
        length = whole(prompt + 1) if prompt else torch.zeros(batch, 1, dtype=torch.int64)
        forced = torch.where(torch.arange(steps) < length, whole(self._vocabulary, steps), SAMPLED)
        temperature = torch.tensor((0.0, 0.2, 0.5, 1.0, 1.2))[whole(5)]
        top_k, top_p = torch.zeros(batch, 1, dtype=torch.int64), torch.ones(batch, 1)
        if restricted:
            top_k, top_p = torch.tensor((0, 1, 5, 20))[whole(4)], torch.tensor((1.0, 0.5, 0.9))[whole(3)]
        settings = _Settings(forced, torch.rand(batch, steps, generator=generator), temperature, top_k, top_p)
        while (unclear := self._unclear(token, settings, h, c)).any():
            again = torch.rand(batch, steps, generator=generator)
            settings = dataclasses.replace(settings, uniform=torch.where(unclear, again, settings.uniform))
        return (token, *settings.tensors(), h, c)

    def _unclear(self, token: Tensor, settings: "_Settings", h: Tensor, c: Tensor) -> Tensor:
        """Rows [batch, 1] whose text hangs by less than `CLEAR`."""
        text, *_ = self._twin(token, *settings.tensors(), h, c)
        others = (self._twin(token, *moved.tensors(), h, c)[0] for moved in settings.moved())
        return torch.stack([(text != other).any(1, keepdim=True) for other in others]).any(0)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """How texts are to go on; fields as in `models.sampling.write`."""

    forced: Tensor
    uniform: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    def tensors(self) -> Tensors:
        return self.forced, self.uniform, self.temperature, self.top_k, self.top_p

    def moved(self) -> list["_Settings"]:
        """The same, with the uniform numbers or top-p a little larger or smaller, each within its range."""
        below_one = 1 - 2**-24
        found = []
        for change in (-CLEAR, CLEAR):
            uniform = (self.uniform + change).clamp(0, below_one)
            top_p = torch.where(self.top_p < 1, (self.top_p + change).clamp(max=below_one), self.top_p)
            found += [dataclasses.replace(self, uniform=uniform), dataclasses.replace(self, top_p=top_p)]
        return found
