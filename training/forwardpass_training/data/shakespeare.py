"""Tiny Shakespeare: 1,115,394 characters of the plays, 65 distinct, as collected for char-rnn."""

from dataclasses import dataclass

import torch

from forwardpass_training.data.dataset import DataConfig, Dataset, Provenance, Split, digest
from forwardpass_training.data.store import DataStore, RemoteFile
from forwardpass_training.errors import BadSetting

TEXT = RemoteFile(
    "tinyshakespeare/input.txt",
    1_115_394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ShakespeareData(DataConfig):
    """The text as one stream: the first part to train on, the last held out."""

    test_share: float = 0.1
    """Share of the characters, at the end of the text, held out."""
    train_characters: int | None = None
    """Train on the first so many characters only; None: everything that is not held out."""

    def load(self, store: DataStore) -> Dataset:
        """Tokens int64 [characters - 1]; a token is the index of its character in the sorted vocabulary."""
        return split_text(store.path(TEXT).read_text(encoding="utf-8"), self)


def split_text(text: str, config: ShakespeareData) -> Dataset:
    """Turn a text into tokens and split it, in order; targets are the text one character later."""
    if not 0 < config.test_share < 1:
        raise BadSetting(f"test_share is {config.test_share}; it must lie between 0 and 1")
    vocabulary = "".join(sorted(set(text)))
    token_of = {character: token for token, character in enumerate(vocabulary)}
    tokens = torch.tensor([token_of[character] for character in text])
    boundary = int(len(tokens) * (1 - config.test_share))
    train_tokens, test_tokens = tokens[:boundary][: config.train_characters], tokens[boundary:]
    train = Split(train_tokens[:-1], train_tokens[1:])
    test = Split(test_tokens[:-1], test_tokens[1:])
    provenance = Provenance(
        f"tiny Shakespeare (karpathy/char-rnn); the last {config.test_share:.0%} of the text held out",
        {"train": len(train_tokens), "test": len(test_tokens)},
        digest(train, test),
        {TEXT.name: TEXT.sha256},
    )
    return Dataset(train, test, provenance, vocabulary=vocabulary)
