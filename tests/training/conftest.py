"""Three small networks, exported once for all tests: an export costs seconds, and one thread is enough for them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from forwardpass_training import run
from forwardpass_training.data import DataStore, mnist, shakespeare
from forwardpass_training.errors import DownloadFailed
from forwardpass_training.export import export
from forwardpass_training.exportable import Examples, Exportable
from forwardpass_training.models import CharLstmConfig, CnnConfig, DenseConfig, served
from forwardpass_training.recipes import digits_cnn
from forwardpass_training.run import Surroundings
from forwardpass_training.task import Task

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
COMPUTES_S = 600
"""Tests here compute, ten times as long on a slow and busy machine; the suite's own bound is for servers that hang."""

VOCABULARY, HIDDEN, LAYERS = 5, 4, 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test of this folder its time, the making of its fixtures included."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(COMPUTES_S))


@dataclass(frozen=True)
class Exported:
    """A network and the ONNX file written from it."""

    exportable: Exportable
    path: Path


def mlp() -> Exportable:
    """x [batch, 10] float32 → probability [batch, 1]."""
    torch.manual_seed(1)
    return _exportable(DenseConfig(inputs=10, hidden=(10,)), "binary", lambda b, g: (torch.randn(b, 10, generator=g),))


def cnn() -> Exportable:
    """image [batch, 8, 8] uint8 → probabilities [batch, 10]."""
    torch.manual_seed(2)
    config = CnnConfig(height=8, width=8, white=16, channels=4, hidden=8)

    def images(batch: int, generator: Generator) -> tuple[Tensor, ...]:
        return (torch.randint(0, 17, (batch, 8, 8), generator=generator, dtype=torch.uint8),)

    return _exportable(config, "multiclass", images)


def lstm() -> Exportable:
    """tokens [batch, time], h0, c0 [batch, 2, 4] → logits [batch, time, 5], h1, c1; prompts of 6 and single steps."""
    torch.manual_seed(3)

    def texts(time: int) -> Examples:
        def draw(batch: int, generator: Generator) -> tuple[Tensor, ...]:
            states = torch.randn(2, batch, LAYERS, HIDDEN, generator=generator).tanh()
            return torch.randint(0, VOCABULARY, (batch, time), generator=generator), states[0], states[1]

        return draw

    config = CharLstmConfig(vocabulary=VOCABULARY, hidden=HIDDEN, layers=LAYERS)
    return _exportable(config, "language", texts(6), step=texts(1))


def _exportable(
    config: DenseConfig | CnnConfig | CharLstmConfig, task: Task, examples: Examples, **further: Examples
) -> Exportable:
    outside = served(config.build(), task)
    return Exportable(
        module=outside.module,
        reference=outside.reference,
        input_names=outside.input_names,
        output_names=outside.output_names,
        dynamic=outside.dynamic,
        examples=examples,
        further_examples=further,
        metadata={"forwardpass.task": task, "forwardpass.labels": '["ä", "b"]', "forwardpass.data": '{"rows": 7}'},
    )


@pytest.fixture(scope="session")
def downloads() -> DataStore:
    """Where MNIST and tiny-shakespeare are; skips where they are neither here nor to be had. A wrong file fails."""
    store = DataStore.from_environment()
    try:
        for file in (*mnist.FILES, shakespeare.TEXT):
            store.path(file)
    except DownloadFailed as exc:
        pytest.skip(str(exc))
    return store


NETWORKS = {"mlp": mlp, "cnn": cnn, "lstm": lstm}


@pytest.fixture(scope="session")
def network() -> Callable[[str], Exportable]:
    """The same networks, by name, not exported; a new one at each call."""
    return lambda name: NETWORKS[name]()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """By name (`mlp`, `cnn`, `lstm`), each made when first asked for."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            exportable = NETWORKS[name]()
            made[name] = Exported(exportable, export(exportable, tmp_path_factory.mktemp(name) / "model.onnx"))
        return made[name]

    return get


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `digits_cnn`, three epochs long. Tests may add files to it."""
    config = replace(digits_cnn(), epochs=3)
    surroundings = Surroundings(store=DataStore.from_environment({}), device="cpu", threads=1)
    return run.start(config, tmp_path_factory.mktemp("runs"), surroundings).path
