"""From a network to a text: a reader of the server gets what PyTorch writes from the same uniform numbers."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from forwardpass import AsyncClient, Client
from forwardpass_training.export import OPSET, export
from forwardpass_training.export import write as write_graph
from forwardpass_training.exportable import Exportable
from forwardpass_training.generator import of_network
from forwardpass_training.generator_graph import build
from forwardpass_training.models import CharLstm, CharLstmConfig, served
from forwardpass_training.models.sampling import SAMPLED, write
from forwardpass_training.publish import configure, publish_export, sequence_config
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
def network() -> CharLstm:
    """A network of large random weights."""
    torch.set_num_threads(1)  # more wait for each other at every step of so small a network
    torch.manual_seed(0)
    network = CharLstmConfig(vocabulary=len(VOCABULARY), hidden=24).build().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.mul_(4)
    return network


def stepwise(network: CharLstm) -> Exportable:
    """The network as it is served to those who sample themselves."""
    outside = served(network, "language")

    def step(batch: int, generator: Generator) -> tuple[Tensor, ...]:
        h, c = torch.randn(2, batch, 2, 24, generator=generator).tanh()
        return torch.randint(len(VOCABULARY), (batch, 2), generator=generator), h, c

    return Exportable(
        module=outside.module,
        reference=outside.reference,
        input_names=outside.input_names,
        output_names=outside.output_names,
        dynamic=outside.dynamic,
        examples=step,
        further_examples={
            "step": lambda batch, generator: (step(batch, generator)[0][:, :1], *step(batch, generator)[1:])
        },
        metadata={},
        states=outside.states,
    )


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
    root: Path, serve: "Serve", network: CharLstm, tmp_path: Path
) -> None:
    exportable = of_network(network, stepwise(network), VOCABULARY)
    file = write_graph(build(network, opset=OPSET), exportable, tmp_path / "model.onnx")
    publish_export(file, exportable, measure(file, exportable), root, model="babble", metrics={})
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


def test_sequences_of_characters_are_read_as_pytorch_reads_them(
    root: Path, serve: "Serve", network: CharLstm, tmp_path: Path
) -> None:
    exportable = stepwise(network)
    file = export(exportable, tmp_path / "model.onnx")
    configure(root, "steps", sequence_config(exportable.states))
    publish_export(file, exportable, measure(file, exportable), root, model="steps", metrics={})
    process = serve()
    process.client()
    address = next(line["address"] for line in process.lines if line["message"] == "serving")
    texts = [torch.randint(len(VOCABULARY), (1, 9), generator=Generator().manual_seed(seed)) for seed in (1, 2)]
    wanted = [network(text, *network.zero_state(1))[0].numpy() for text in texts]
    with (
        Client(address, deadline_s=60) as client,
        client.sequence("steps") as first,
        client.sequence("steps") as second,
    ):
        for place, size in ((0, 4), (4, 1), (5, 4)):
            for sequence, text, logits in zip((first, second), texts, wanted, strict=True):
                piece = slice(place, place + size)
                answer = sequence.infer({"tokens": text[:, piece].numpy()})
                assert list(answer) == ["logits"]
                np.testing.assert_allclose(answer["logits"], logits[:, piece], atol=1e-4)
