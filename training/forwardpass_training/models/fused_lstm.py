"""The serving twin of `CharLstm`: the same weights behind ONNX's fused LSTM operator, any time length in one graph.

torch.export traces nn.LSTM with the time axis fixed at the example's length (pytorch issues 191855, 115092), so the
exported module names the ONNX operator itself. The operator has no eager value: compare against `CharLstm`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from forwardpass_training.models.char_lstm import CharLstm

# torch stacks the gates' rows as input, forget, cell, output; ONNX as input, output, forget, cell
ONNX_GATES = (0, 3, 1, 2)


class FusedCharLstm(nn.Module):
    """tokens [batch, time] int64, h0 and c0 [batch, layers, hidden] float32 → logits [batch, time, vocabulary], h1, c1.

    A token outside the vocabulary is refused by the graph (a Gather), not read as something else.
    """

    def __init__(self, twin: CharLstm) -> None:
        super().__init__()
        self.config = twin.config
        self.table = nn.Buffer(twin.token_table().detach().clone())
        self.layers = nn.ModuleList(_Layer(twin.lstm, layer) for layer in range(self.config.layers))
        self.head = nn.Linear(self.config.hidden, self.config.vocabulary)
        self.head.load_state_dict(twin.head.state_dict())
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = functional.embedding(tokens, self.table).transpose(0, 1)  # [time, batch, features]
        h1, c1 = [], []
        for index, layer in enumerate(self.layers):
            x, h, c = layer(x, h0[:, index].unsqueeze(0), c0[:, index].unsqueeze(0))
            h1.append(h)
            c1.append(c)
        logits = self.head(x.transpose(0, 1))
        return logits, torch.cat(h1).transpose(0, 1), torch.cat(c1).transpose(0, 1)


class _Layer(nn.Module):
    """One ONNX LSTM: x [time, batch, inputs], h and c [1, batch, hidden] → y [time, batch, hidden], h, c."""

    def __init__(self, lstm: nn.LSTM, layer: int) -> None:
        super().__init__()
        self.hidden = lstm.hidden_size
        weights = {
            name: getattr(lstm, f"{name}_l{layer}").detach()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        self.w = nn.Buffer(_reorder(weights["weight_ih"]).unsqueeze(0))  # [1, 4 hidden, inputs]
        self.r = nn.Buffer(_reorder(weights["weight_hh"]).unsqueeze(0))  # [1, 4 hidden, hidden]
        self.b = nn.Buffer(torch.cat([_reorder(weights["bias_ih"]), _reorder(weights["bias_hh"])]).unsqueeze(0))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        time, batch = x.shape[:2]
        state = (1, batch, self.hidden)
        y, h, c = torch.onnx.ops.symbolic_multi_out(
            "::LSTM",
            (x, self.w, self.r, self.b, None, h, c),
            {"hidden_size": self.hidden},
            dtypes=(x.dtype, x.dtype, x.dtype),
            shapes=((time, 1, batch, self.hidden), state, state),
        )
        return y.squeeze(1), h, c


def _reorder(rows: Tensor) -> Tensor:
    """Gate blocks along axis 0, from torch's order to ONNX's."""
    blocks = rows.chunk(4)
    return torch.cat([blocks[gate] for gate in ONNX_GATES])
