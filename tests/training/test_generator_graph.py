"""The generator's graph writes what torch writes from the same uniform numbers, whoever shares its batch."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from forwardpass_training.generator_graph import build
from forwardpass_training.models import CharLstm, CharLstmConfig
from forwardpass_training.models.sampling import SAMPLED, write

Arrays = dict[str, NDArray[Any]]
VOCABULARY = 9

CONFIGS = {
    "tutorial": CharLstmConfig(vocabulary=VOCABULARY, hidden=16),
    "one layer": CharLstmConfig(vocabulary=VOCABULARY, hidden=12, layers=1),
    "three layers, embedded": CharLstmConfig(vocabulary=VOCABULARY, hidden=8, layers=3, embedding=5, dropout=0.5),
}


@cache
def network(name: str) -> CharLstm:
    """Weights large enough that a gate in the wrong place shows."""
    torch.manual_seed(1)
    found = CONFIGS[name].build().eval().requires_grad_(False)
    for parameter in found.parameters():
        parameter.data.mul_(4)
    return found


@cache
def session(name: str) -> onnxruntime.InferenceSession:
    model = build(network(name), opset=20)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def texts(name: str, batch: int, steps: int, *, restricted: bool) -> Arrays:
    rng = np.random.default_rng(batch * 100 + steps)
    config = CONFIGS[name]
    state = (batch, config.layers, config.hidden)
    forced = rng.integers(VOCABULARY, size=(batch, steps))
    forced[np.arange(steps) >= rng.integers(steps + 1, size=(batch, 1))] = SAMPLED
    return {
        "token": rng.integers(VOCABULARY, size=(batch, 1)),
        "forced": forced,
        "uniform": rng.random((batch, steps), np.float32),
        "temperature": rng.choice(np.array([0, 0.2, 0.5, 1, 1.2], np.float32), (batch, 1)),
        "top_k": rng.choice([0, 1, 3, VOCABULARY + 5], (batch, 1)) * restricted,
        "top_p": rng.choice(np.array([1, 0.5, 0.9], np.float32), (batch, 1)) if restricted else one(batch),
        "h0": rng.uniform(-1, 1, state).astype(np.float32),
        "c0": rng.uniform(-2, 2, state).astype(np.float32),
    }


def one(batch: int) -> NDArray[np.float32]:
    return np.ones((batch, 1), np.float32)


def rows(arrays: Arrays, which: slice | list[int]) -> Arrays:
    return {name: array[which] for name, array in arrays.items()}


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("steps", [1, 8, 32])
@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_characters_are_those_of_torch(name: str, batch: int, steps: int, restricted: bool) -> None:
    feeds = texts(name, batch, steps, restricted=restricted)
    token, forced, uniform, temperature, top_k, top_p, h, c = (torch.from_numpy(array) for array in feeds.values())
    wanted, (h, c) = write(network(name), token, forced, uniform, temperature, top_k, top_p, (h, c))
    tokens, h1, c1 = session(name).run(None, feeds)
    np.testing.assert_array_equal(tokens, wanted.numpy())
    np.testing.assert_allclose(h1, h.numpy(), atol=3e-5)
    np.testing.assert_allclose(c1, c.numpy(), atol=3e-5, rtol=3e-5)
    if batch * steps > 100:
        assert len(np.unique(tokens)) == VOCABULARY, "a text that says something about all of the network"


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_is_the_same_to_the_bit_alone_and_in_any_batch(name: str, restricted: bool) -> None:
    feeds = texts(name, 64, 32, restricted=restricted)
    together = session(name).run(None, feeds)
    for size in (1, 2, 3, 7, 33):
        for begin in range(0, 64, size) if size == 1 else (0, 64 - size):
            batch = slice(begin, begin + size)
            for apart, whole in zip(session(name).run(None, rows(feeds, batch)), together, strict=True):
                assert apart.tobytes() == whole[batch].tobytes(), (size, begin)


def test_a_text_in_pieces_is_the_text_in_one_to_the_bit() -> None:
    run, feeds = session("tutorial").run, texts("tutorial", 7, 32, restricted=True)
    whole = run(None, feeds)
    token, states, pieces = feeds["token"], {"h0": feeds["h0"], "c0": feeds["c0"]}, []
    for begin, end in ((0, 1), (1, 9), (9, 32)):
        part = {"forced": feeds["forced"][:, begin:end], "uniform": feeds["uniform"][:, begin:end]}
        tokens, h, c = run(None, feeds | part | states | {"token": token})
        token, states = tokens[:, -1:], {"h0": h, "c0": c}
        pieces.append(tokens)
    np.testing.assert_array_equal(np.concatenate(pieces, 1), whole[0])
    assert states["h0"].tobytes() == whole[1].tobytes()
    assert states["c0"].tobytes() == whole[2].tobytes()


def test_who_asks_for_no_restriction_gets_the_same_bits_beside_who_does() -> None:
    run, feeds = session("tutorial").run, texts("tutorial", 64, 32, restricted=False)
    asked = {"top_k": feeds["top_k"].copy(), "top_p": feeds["top_p"].copy()}
    asked["top_k"][1::4], asked["top_p"][3::4] = 2, 0.5
    plain, mixed = run(None, feeds), run(None, feeds | asked)
    for left, right in zip(plain, mixed, strict=True):
        assert left[::2].tobytes() == right[::2].tobytes()
    assert not np.array_equal(plain[0][1::4], mixed[0][1::4])
    assert not np.array_equal(plain[0][3::4], mixed[0][3::4])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("restricted", [False, True])
def test_the_ends_of_the_uniform_numbers_are_characters_too(uniform: float, restricted: bool) -> None:
    feeds = texts("tutorial", 64, 8, restricted=restricted)
    feeds["uniform"][:] = uniform
    tokens = session("tutorial").run(None, feeds)[0]
    assert ((tokens >= 0) & (tokens < VOCABULARY)).all()


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    feeds = texts("tutorial", 2, 4, restricted=False)
    feeds["token"][1] = VOCABULARY
    with pytest.raises(Exception, match="out of data bounds"):
        session("tutorial").run(None, feeds)


def test_the_sort_stands_where_it_runs_only_when_asked() -> None:
    def operators(graph: onnx.GraphProto, within: Callable[[onnx.NodeProto], bool]) -> list[str]:
        found = [node.op_type for node in graph.node]
        for node in graph.node:
            if within(node):
                found += [op for attribute in node.attribute for op in operators(attribute.g, within)]
        return found

    graph = build(network("tutorial"), opset=20).graph
    assert "TopK" not in operators(graph, lambda node: node.op_type != "If")
    assert "TopK" in operators(graph, lambda _node: True)
