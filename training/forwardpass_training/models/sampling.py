"""Writing with a language model in plain torch: the twin of the served generator, and what its parity is measured by.

A text is decided by its model, its prompt, its settings and its uniform numbers: the character at a position is the one
at which the cumulative probability, in vocabulary order, passes that position's number. Nothing else is random.
"""

import torch
from torch import Tensor

from forwardpass_training.models.char_lstm import CharLstm, State

COLDEST = 1e-30
"""In the place of temperature 0: every logit below the largest becomes minus infinity when divided by it."""
FIRST = 1e-30
"""In the place of the uniform number 0, whose place lies before the first character of any probability."""

SAMPLED = -1
"""In `forced`: the network chooses this token."""


@torch.no_grad()
def write(
    network: CharLstm,
    token: Tensor,
    forced: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    state: State,
) -> tuple[Tensor, State]:
    """Advance every text by as many tokens as `forced` has columns.

    Args:
        network: in eval mode.
        token: int64 [batch, 1], the last token read or written, which the network has not seen yet.
        forced: int64 [batch, steps], the token that must come next (the rest of a prompt), or `SAMPLED`.
        uniform: float32 [batch, steps], each from 0 to below 1.
        temperature: float32 [batch, 1]; 0 takes the likeliest token.
        top_k: int64 [batch, 1], choose among so many of the likeliest; 0: all.
        top_p: float32 [batch, 1], choose among the likeliest that together have this probability; 1: all.
        state: h and c, each [batch, layers, hidden].

    Returns:
        The tokens, int64 [batch, steps], forced ones included, and the state.
    """
    tokens = []
    for step in range(forced.shape[1]):
        logits, *state = network(token, *state)
        sampled = sample(logits[:, 0], uniform[:, step : step + 1], temperature, top_k, top_p)
        wanted = forced[:, step : step + 1]
        token = torch.where(wanted == SAMPLED, sampled, wanted)
        tokens.append(token)
    return torch.cat(tokens, 1), state


def sample(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """One token for each row: logits [batch, vocabulary], settings as in `write`, each [batch, 1] → int64 [batch, 1].

    Top-k comes first; top-p is of the probability that it leaves. Tokens exactly as likely as the last one kept are
    kept too.
    """
    weights = torch.softmax(logits / temperature.clamp(min=COLDEST), 1)
    weights = weights * (weights >= _least_kept(weights, top_k, top_p))
    cumulative = weights.cumsum(1)
    return (cumulative < uniform.clamp(min=FIRST) * cumulative[:, -1:]).sum(1, keepdim=True)


def _least_kept(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The probability of the least likely token kept, [batch, 1]."""
    descending = weights.sort(1, descending=True).values
    in_k = torch.arange(weights.shape[1]) < torch.where(top_k == 0, weights.shape[1], top_k)
    cumulative = (descending * in_k).cumsum(1)
    before = cumulative - descending * in_k
    in_p = before < torch.where(top_p >= 1, torch.inf, top_p) * cumulative[:, -1:]
    return torch.where(in_k & in_p, descending, torch.inf).amin(1, keepdim=True)
