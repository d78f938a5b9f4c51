"""From a network to a text: a reader of the server gets what PyTorch writes from the same uniform numbers."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from forwardpass import AsyncClient
from forwardpass_training.export import OPSET
from forwardpass_training.export import write as write_graph
from forwardpass_training.exportable import Exportable
from forwardpass_training.generator import of_network
from forwardpass_training.generator_graph import build
from forwardpass_training.models import CharLstm, CharLstmConfig, served
from forwardpass_training.models.sampling import SAMPLED, write
from forwardpass_training.publish import publish_export
from forwardpass_training.verify import measure

if TYPE_CHECKING:
    from tests.integration.conftest import Serve

VOCABULARY = "\n abcdefghijklmnopqrstuvwxyzåßé"
PROMPT, CHARACTERS = "the quick å ", 150
Settings = dict[str, Any]

READERS: list[Settings] = [{"temperature": temperature, "seed": 7} for temperature in (0.2, 0.5, 1.0, 1.2)]
OTHERS: list[Settings] = [
    {"temperature": 0.1 * number, "seed": -number, **({}, {"top_k": 3}, {"top_p": 0.7})[number % 3]}
    for number in range(63)
]


@pytest.fixture
def network(root: Path, tmp_path: Path) -> CharLstm:
    """A network of large random weights, published as `babble`."""
    torch.set_num_threads(1)  # more wait for each other at every step of so small a network
    torch.manual_seed(0)
    network = CharLstmConfig(vocabulary=len(VOCABULARY), hidden=24).build().eval()
    for parameter in network.parameters():
        parameter.data.mul_(4)
    outside = served(network, "language")

    def step(batch: int, generator: Generator) -> tuple[Tensor, ...]:
        h, c = torch.randn(2, batch, 2, 24, generator=generator).tanh()
        return torch.randint(len(VOCABULARY), (batch, 1), generator=generator), h, c

    stepwise = Exportable(
        module=outside.module,
        reference=outside.reference,
        input_names=outside.input_names,
        output_names=outside.output_names,
        dynamic=outside.dynamic,
        examples=step,
        further_examples={"step": step},
        metadata={},
    )
    exportable = of_network(network, stepwise, VOCABULARY)
    file = write_graph(build(network, opset=OPSET), exportable, tmp_path / "model.onnx")
    publish_export(file, exportable, measure(file, exportable), root, model="babble", metrics={})
    return network


def by_torch(network: CharLstm, readers: list[Settings]) -> list[str]:
    """All texts in one batch, and in one go."""
    rows, read = len(readers), torch.tensor([VOCABULARY.index(character) for character in PROMPT])
    forced = torch.full((rows, len(PROMPT) - 1 + CHARACTERS), SAMPLED)
    forced[:, : len(PROMPT) - 1] = read[1:]
    uniform = torch.zeros(forced.shape)
    for row, settings in enumerate(readers):
        bits = np.random.Philox(key=settings["seed"] & ((1 << 64) - 1)).random_raw(CHARACTERS) >> np.uint64(40)
        uniform[row, len(PROMPT) - 1 :] = torch.from_numpy(bits.astype(np.float32) * np.float32(2**-24))

    def column(name: str, off: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[settings.get(name, off)] for settings in readers], dtype=dtype)

    tokens, _ = write(
        network,
        read[0].repeat(rows, 1),
        forced,
        uniform,
        column("temperature", 1.0, torch.float32),
        column("top_k", 0, torch.int64),
        column("top_p", 1.0, torch.float32),
        network.zero_state(rows),
    )
    return ["".join(VOCABULARY[token] for token in row[len(PROMPT) - 1 :]) for row in tokens.tolist()]


def test_a_reader_s_text_is_pytorch_s_alone_again_and_beside_63_others(
    root: Path, serve: "Serve", network: CharLstm
) -> None:
    process = serve()
    process.client()  # waits until the server serves
    address = next(line["address"] for line in process.lines if line["message"] == "serving")
    wanted = by_torch(network, READERS + OTHERS)
    assert len(set(wanted)) > 50

    async def ask() -> None:
        async with AsyncClient(address, deadline_s=120) as client:

            async def text(settings: Settings) -> str:
                return "".join(
                    [piece async for piece in client.generate("babble", PROMPT, max_tokens=CHARACTERS, **settings)]
                )

            async def texts(*asked: Settings) -> list[str]:
                reading: list[Coroutine[Any, Any, str]] = [text(settings) for settings in asked]
                return await asyncio.gather(*reading)

            for number, reader in enumerate(READERS):
                for _ in range(2):
                    assert await texts(reader) == [wanted[number]]
                assert await texts(reader, *OTHERS) == [wanted[number], *wanted[len(READERS) :]]

    asyncio.run(ask())
