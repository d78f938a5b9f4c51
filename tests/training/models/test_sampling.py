"""Writing: what decides a text, and what must not."""

import pytest
import torch
from torch import Tensor

from forwardpass_training.models import CharLstm, CharLstmConfig
from forwardpass_training.models.sampling import SAMPLED, sample, write

LARGEST_UNIFORM = 1 - 2**-24
PROBABILITIES = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3, 0.0])


def drawn(
    uniform: float, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, of: Tensor = PROBABILITIES
) -> int:
    one = torch.ones(1, 1)
    k = torch.full((1, 1), top_k)
    return int(sample(of.log().unsqueeze(0), uniform * one, temperature * one, k, top_p * one))


def reachable(**settings: float) -> set[int]:
    at = [0.0, *(torch.arange(1, 1000) / 1000).tolist(), LARGEST_UNIFORM]
    return {drawn(uniform, **settings) for uniform in at}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.05, 0), (0.15, 2), (0.49, 2), (0.55, 3), (0.75, 4), (LARGEST_UNIFORM, 4)]
)
def test_a_uniform_number_is_a_place_in_the_cumulative_probability(uniform: float, token: int) -> None:
    assert drawn(uniform) == token


def test_a_token_without_probability_is_never_drawn_not_even_at_the_ends() -> None:
    assert reachable() == {0, 2, 3, 4}
    assert drawn(0.0, of=torch.tensor([0.0, 1.0, 0.0])) == 1
    assert drawn(LARGEST_UNIFORM, of=torch.tensor([0.0, 1.0, 0.0])) == 1


@pytest.mark.parametrize("uniform", [0.0, 0.5, LARGEST_UNIFORM])
def test_temperature_zero_takes_the_likeliest(uniform: float) -> None:
    assert drawn(uniform, temperature=0.0) == 2


def test_temperature_bends_the_probabilities_as_softmax_says() -> None:
    texts, draws = torch.full((20_000, 1), 0.5), PROBABILITIES.log().expand(20_000, -1)
    uniform = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    found = sample(draws, uniform, texts, torch.zeros(20_000, 1, dtype=torch.int64), torch.ones(20_000, 1))
    shares = torch.bincount(found[:, 0], minlength=6) / 20_000
    torch.testing.assert_close(shares, PROBABILITIES**2 / (PROBABILITIES**2).sum(), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 2}, {2, 4}),
        ({"top_k": 99}, {0, 2, 3, 4}),
        ({"top_p": 0.01}, {2}),  # at least one is always left
        ({"top_p": 0.39}, {2}),
        ({"top_p": 0.41}, {2, 4}),
        ({"top_p": 0.95}, {0, 2, 3, 4}),
        ({"top_k": 2, "top_p": 0.5}, {2}),  # of what top-k leaves, 0.4 / 0.7 is enough
        ({"top_k": 3, "top_p": 0.99}, {2, 3, 4}),
    ],
)
def test_top_k_and_top_p_leave_out_the_unlikely(settings: dict[str, float], tokens: set[int]) -> None:
    assert reachable(**settings) == tokens


def test_equally_likely_tokens_stay_or_go_together() -> None:
    even = torch.tensor([0.25, 0.25, 0.25, 0.25])
    assert {drawn(place / 8, top_k=1, of=even) for place in range(8)} == {0, 1, 2, 3}


def network() -> CharLstm:
    torch.manual_seed(0)
    found = CharLstmConfig(vocabulary=5, hidden=4).build().eval()
    for parameter in found.parameters():
        parameter.data.mul_(3)
    return found


def texts(batch: int, forced: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    uniform = torch.rand(forced.shape, generator=torch.Generator().manual_seed(seed))
    zeros = torch.zeros(batch, 1, dtype=torch.int64)
    return zeros, forced, uniform, torch.ones(batch, 1), zeros, torch.ones(batch, 1)


def test_forced_tokens_are_read_and_echoed_and_the_rest_written() -> None:
    forced = torch.tensor([[1, 2, SAMPLED, SAMPLED], [3, SAMPLED, SAMPLED, SAMPLED], [1, 2, 3, 4]])
    net = network()
    tokens, _ = write(net, *texts(3, forced), net.zero_state(3))
    read = forced != SAMPLED
    assert torch.equal(tokens[read], forced[read])
    logits, *_ = net(torch.tensor([[0, 1, 2]]), *net.zero_state(1))
    uniform = texts(3, forced)[2][0, 2]
    wanted = sample(logits[:, 2], uniform.view(1, 1), torch.ones(1, 1), torch.zeros(1, 1).long(), torch.ones(1, 1))
    assert tokens[0, 2] == wanted, "the prompt decides what comes after it"


def test_a_text_in_pieces_is_the_text_in_one() -> None:
    net = network()
    token, forced, uniform, temperature, top_k, top_p = texts(4, torch.full((4, 12), SAMPLED))
    whole, (h, _) = write(net, token, forced, uniform, temperature, top_k, top_p, net.zero_state(4))
    pieces, state = [token], net.zero_state(4)
    for begin, end in ((0, 1), (1, 8), (8, 12)):
        now = slice(begin, end)
        last = pieces[-1][:, -1:]
        piece, state = write(net, last, forced[:, now], uniform[:, now], temperature, top_k, top_p, state)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces[1:], 1), whole)
    torch.testing.assert_close(state[0], h)
    assert len(set(whole.flatten().tolist())) > 1
