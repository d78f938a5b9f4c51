"""What a language model writes while it learns: a text at each of four temperatures, kept in the run folder.

The same epoch of the same run writes the same texts. Sampling draws from generators of its own, so that training goes
on as if nobody had looked.
"""

import math
from pathlib import Path

import torch

from forwardpass_training.data import Dataset
from forwardpass_training.errors import BadSetting
from forwardpass_training.folder import write_whole
from forwardpass_training.models import CharLstm
from forwardpass_training.models.sampling import SAMPLED, write

SAMPLES_DIR = "samples"
TEMPERATURES = (0.2, 0.5, 1.0, 1.2)
CHARACTERS = 400
SAMPLES_A_RUN = 10


def is_sampled(epoch: int, epochs: int) -> bool:
    """Whether texts are kept after this epoch, counted from 1: ten times a run, always at its end."""
    return epoch == epochs or epoch % max(1, epochs // SAMPLES_A_RUN) == 0


def write_samples(run_folder: Path, network: CharLstm, dataset: Dataset, *, epoch: int, seed: int) -> Path:
    """Write the texts of an epoch into `samples/epoch-…txt` below the run folder. Returns the file.

    Args:
        run_folder: of the run.
        network: as it would be served.
        dataset: whose vocabulary the network knows; the texts begin as a new line of it would.
        epoch: after which, counted from 1.
        seed: of the texts.
    """
    path = run_folder / SAMPLES_DIR / f"epoch-{epoch:04}.txt"
    path.parent.mkdir(exist_ok=True)
    vocabulary = dataset.vocabulary
    prompt = "\n" if "\n" in vocabulary else vocabulary[int(dataset.test.inputs[0])]
    texts = sample_texts(network, vocabulary, prompt, seed=seed)
    text = "\n\n".join(f"--- temperature {temperature:g} ---\n{text}" for temperature, text in texts.items()) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
    return path


def sample_texts(network: CharLstm, vocabulary: str, prompt: str, *, seed: int) -> dict[float, str]:
    """How a network goes on from a prompt at each of four temperatures, by the same uniform numbers."""
    return {
        temperature: go_on(network, vocabulary, prompt, characters=CHARACTERS, temperature=temperature, seed=seed)
        for temperature in TEMPERATURES
    }


def go_on(
    network: CharLstm,
    vocabulary: str,
    prompt: str,
    *,
    characters: int,
    temperature: float,
    seed: int,
    top_k: int = 0,
    top_p: float = 1.0,
) -> str:
    """How a network goes on from a prompt; equal arguments give equal texts.

    Raises:
        BadSetting: the prompt is empty or has a character that the network does not know, or a setting is out of range.
    """
    unknown = sorted(set(prompt) - set(vocabulary))
    if not prompt or unknown:
        raise BadSetting(
            f"the prompt has {', '.join(map(repr, unknown))}, which the network does not know"
            if unknown
            else "the prompt is empty; a text goes on from at least one character"
        )
    if characters < 1 or not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1:
        raise BadSetting(
            f"characters {characters}, temperature {temperature:g}, top_k {top_k}, top_p {top_p:g}: a text takes at "
            "least 1 character, a temperature from 0 up, a top_k from 0 up, and a top_p above 0, at most 1"
        )
    network.eval()
    device = network.head.weight.device
    read = torch.tensor([[vocabulary.index(character) for character in prompt]])
    forced = torch.cat([read[:, 1:], torch.full((1, characters), SAMPLED)], 1)
    uniform = torch.zeros(forced.shape)
    uniform[:, len(prompt) - 1 :] = torch.rand(1, characters, generator=torch.Generator().manual_seed(seed))
    tokens, _ = write(
        network,
        read[:, :1].to(device),
        forced.to(device),
        uniform.to(device),
        torch.full((1, 1), temperature, device=device),
        torch.full((1, 1), top_k, device=device),
        torch.full((1, 1), top_p, device=device),
        network.zero_state(1),
    )
    return "".join(vocabulary[token] for token in tokens[0, len(prompt) - 1 :].tolist())
