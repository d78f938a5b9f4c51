"""A language model over characters: stacked LSTMs that predict the next character at every position.

State is explicit and batch-first, h and c each [batch, layers, hidden], as it travels on the wire.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from forwardpass_training.data import Dataset
from forwardpass_training.errors import BadSetting
from forwardpass_training.models.model import ModelConfig

State = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class CharLstmConfig(ModelConfig):
    """Characters, one-hot or embedded → LSTM × layers → Dense(vocabulary)."""

    vocabulary: int = 65
    """Distinct characters."""
    hidden: int = 128
    """Units of each LSTM."""
    layers: int = 2
    """LSTMs, one on the other."""
    embedding: int | None = None
    """Numbers that stand for a character, learnt; None: one-hot."""
    dropout: float = 0.0
    """Share of each LSTM's outputs left out in each training step."""
    recurrent_dropout: float = 0.0
    """Share of the weights that lead from one character to the next left out in each training step (DropConnect, as in
    Merity et al. 2017)."""

    def fitted(self, dataset: Dataset) -> "CharLstmConfig":
        """See `ModelConfig.fitted`."""
        if len(dataset.vocabulary) != self.vocabulary:
            characters = len(dataset.vocabulary)
            raise BadSetting(
                f"the network knows {self.vocabulary} characters (model.vocabulary), the text {characters}"
            )
        return self

    def build(self) -> "CharLstm":
        """The network, freshly initialised from torch's global generator."""
        return CharLstm(self)


class CharLstm(nn.Module):
    """tokens [batch, time] int64, h and c [batch, layers, hidden] float32 → logits [batch, time, vocabulary], h, c."""

    def __init__(self, config: CharLstmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding) if config.embedding else None
        self.lstm = nn.LSTM(
            config.embedding or config.vocabulary,
            config.hidden,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, config.vocabulary)
        for layer in range(config.layers):
            # forget gates begin open, as in the tutorials' Keras (Jozefowicz et al. 2015); rows: input, forget, …
            forget = slice(config.hidden, 2 * config.hidden)
            nn.init.ones_(getattr(self.lstm, f"bias_ih_l{layer}").data[forget])

    def forward(self, tokens: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # nn.LSTM keeps its states [layers, batch, hidden] even when batch_first
        states = (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        features, h, c = self._recur(self._features(tokens), states)
        return self.head(self.dropout(features)), h.transpose(0, 1), c.transpose(0, 1)

    def token_table(self) -> Tensor:
        """What the first LSTM sees of each token, float32 [vocabulary, features]."""
        if self.embedding is None:
            return torch.eye(self.config.vocabulary, device=self.head.weight.device)
        return self.embedding.weight

    def _features(self, tokens: Tensor) -> Tensor:
        """[batch, time] → [batch, time, features]"""
        if self.embedding is None:
            return functional.one_hot(tokens, self.config.vocabulary).float()
        features: Tensor = self.embedding(tokens)
        return features

    def _recur(self, features: Tensor, states: State) -> tuple[Tensor, Tensor, Tensor]:
        """The LSTMs; while training, with other recurrent weights left out in every call."""
        if not (self.training and self.config.recurrent_dropout):
            features, (h, c) = self.lstm(features, states)
            return features, h, c
        weights = [
            functional.dropout(weight, self.config.recurrent_dropout) if name.startswith("weight_hh") else weight
            for name, weight in self.lstm.named_parameters()
        ]
        lstm = self.lstm
        return torch.lstm(features, states, weights, True, lstm.num_layers, lstm.dropout, True, False, True)

    def zero_state(self, batch: int) -> State:
        """h and c at the beginning of a text."""
        device = self.head.weight.device
        shape = (batch, self.config.layers, self.config.hidden)
        return torch.zeros(shape, device=device), torch.zeros(shape, device=device)
