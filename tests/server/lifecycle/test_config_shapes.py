"""Reshapes: the same elements under another shape on the wire, alone and in batches, in runs and in proofs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.lifecycle.config_pbtxt import parse
from forwardpass_server.lifecycle.config_shapes import Reshape, served
from forwardpass_server.lifecycle.model_settings import UnsupportedConfig
from forwardpass_server.lifecycle.prove import Golden
from forwardpass_server.lifecycle.repository import Tolerance
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

GRAPH = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch",)), TensorSpec("image", dtypes.FP32, ("batch", "height", 4, 2))),
    (TensorSpec("first", dtypes.FP32, ("batch",)), TensorSpec("second", dtypes.FP32, ("batch", "height", 8))),
    64,
)

CONFIG = """
max_batch_size: 8
input { name: "x" dims: [1] reshape { shape: [] } }
input { name: "image" dims: [-1, 8] reshape { shape: [-1, 4, 2] } }
output { name: "second" dims: [-1, 2, 4] reshape { shape: [-1, 8] } }
"""


def graph_run(inputs: Any, outputs: Any, termination: Any = None) -> list[np.ndarray]:
    """Takes the graph's own shapes and no others."""
    x, image = inputs
    assert x.ndim == 1
    assert image.shape[2:] == (4, 2)
    answers = [x * 2, image.reshape(len(x), -1, 8) + 1]
    return [answers[index] for index in outputs]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('max_batch_size: 8 input { name: "x" dims: [2] reshape { shape: [] } }', ["input[0].reshape", "[2]", "[]"]),
        ('max_batch_size: 8 input { name: "x" dims: [-1] reshape { shape: [] } }', ["input[0].reshape", "[-1]"]),
        (
            'max_batch_size: 8 input { name: "image" dims: [8, -1] reshape { shape: [-1, 4, 2] } }',
            ["input[0].reshape", "between two -1"],
        ),
        (
            'max_batch_size: 8 input { name: "image" dims: [-2, -4] reshape { shape: [8] } }',
            ["input[0].reshape", "[-2, -4]"],
        ),
        (
            'max_batch_size: 8 input { name: "image" dims: [-1, 8] reshape { shape: [-1, 2, 4] } }',
            ["input[0].reshape ('image') says shape [-1, 2, 4]", "the model has [-1, 4, 2]"],
        ),
        (
            'max_batch_size: 8 output { name: "first" dims: [1, 1] reshape { shape: [1] } }',
            ["output[0].reshape ('first') says shape [1]", "the model has []"],
        ),
        ('input { name: "x" dims: [1] } input { name: "x" dims: [1] }', ["'x'"]),
    ],
)
def test_a_reshape_that_cannot_be_is_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(UnsupportedConfig) as caught:
        served(parse(text, model="m"), GRAPH)
    for part in ["config.pbtxt: ", *parts]:
        assert part in str(caught.value)


def test_callers_see_the_configured_shapes_and_the_model_its_own() -> None:
    seen = served(parse(CONFIG, model="m"), GRAPH)
    assert [spec.shape for spec in seen.signature.inputs] == [("batch", 1), ("batch", "height", 8)]
    assert [(spec.name, spec.shape) for spec in seen.signature.outputs] == [("second", ("batch", "height", 2, 4))]
    image = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 8)
    (answer,) = seen.around(graph_run)([np.ones((2, 1), np.float32), image], [0])
    assert answer.shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(answer.ravel(), image.ravel() + 1)


def test_a_model_that_is_not_batched_is_reshaped_whole() -> None:
    graph = Signature(
        (TensorSpec("x", dtypes.FP32, ()),), (TensorSpec("y", dtypes.FP32, ()), TensorSpec("z", dtypes.FP32, (4,))), 0
    )
    seen = served(
        parse('input { name: "x" dims: [1] reshape { } } output { name: "y" dims: [1] reshape { } }', model="m"), graph
    )
    assert [spec.shape for spec in seen.signature.inputs] == [(1,)]

    def run(inputs: Any, outputs: Any, termination: Any = None) -> list[np.ndarray]:
        assert inputs[0].shape == ()
        return [np.asarray(inputs[0] * 3)]

    (answer,) = seen.around(run)([np.array([2.0], np.float32)], [0])
    np.testing.assert_array_equal(answer, np.array([6.0], np.float32))


def test_an_optional_input_that_was_left_out_stays_out() -> None:
    graph = Signature((TensorSpec("x", dtypes.FP32, ("batch", 4), optional=True),), GRAPH.outputs[:1], 8)
    seen = served(parse('max_batch_size: 8 input { name: "x" dims: [2, 2] reshape { shape: [4] } }', model="m"), graph)
    given: list[Any] = []

    def run(inputs: Any, outputs: Any, termination: Any = None) -> list[np.ndarray]:
        given.extend(inputs)
        return [np.zeros(1, np.float32)]

    seen.around(run)([None], [0])
    assert given == [None]


def test_golden_examples_are_recorded_from_the_graph_and_proved_as_served() -> None:
    seen = served(parse(CONFIG, model="m"), GRAPH)
    image = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 4, 2)
    recorded = Golden(
        name="g",
        inputs=[np.ones(2, np.float32), image],
        outputs=[image.reshape(2, 3, 8) + 1],
        tolerances=(Tolerance(atol=0, rtol=0),),
    )
    (example,) = seen.golden([recorded])
    (answer,) = seen.around(graph_run)(example.inputs, [0])
    np.testing.assert_array_equal(answer, example.outputs[0])


def test_what_is_not_reshaped_costs_no_wrapper() -> None:
    assert served(parse("", model="m"), GRAPH).around(graph_run) is graph_run


@given(
    parts=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=3),
    regrouped=st.data(),
    batch=st.none() | st.integers(0, 3),
)
def test_there_and_back_is_the_same_array(parts: list[list[int]], regrouped: st.DataObject, batch: int | None) -> None:
    """Dims made of fixed parts with -1 between them, and another grouping of the same factors."""
    sizes = iter([2, 3])
    on_wire: list[int] = []
    in_graph: list[int] = []
    real: list[int] = []
    for index, part in enumerate(parts):
        if index:
            on_wire.append(-1)
            in_graph.append(-1)
            real.append(next(sizes))
        on_wire += part
        real += part
        in_graph += regrouped.draw(st.permutations(part))
    lead = () if batch is None else (batch,)
    reshape = Reshape(tuple(on_wire), tuple(in_graph), batched=batch is not None)
    array = np.arange(int(np.prod((*lead, *real)))).reshape((*lead, *real))
    there = reshape.to_graph(array)
    np.testing.assert_array_equal(there.ravel(), array.ravel())
    np.testing.assert_array_equal(reshape.to_wire(there), array)
