"""Values that end ONNX Runtime's process: what does, raw and in a child; and that our sessions survive it."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.runtime import fatal
from forwardpass_server.runtime.providers import resolve
from forwardpass_server.runtime.session import Session
from forwardpass_server.tensors.signature import Signature

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
SMALLEST = {np.int32: -(1 << 31), np.int64: -(1 << 63)}


def made(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[Any]]],
    outputs: dict[str, int],
    *,
    opset: int = 21,
    **weights: np.ndarray,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, element, shape) for name, (element, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, element, None) for name, element in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def one(op: str, shape: Sequence[Any], weights: dict[str, np.ndarray], **attributes: Any) -> ModelProto:
    """x FP32 of `shape`, through one operator with weights, to y."""
    return made(
        [helper.make_node(op, ["x", *weights], ["y"], **attributes)], {"x": (FLOAT, shape)}, {"y": FLOAT}, **weights
    )


def recurrent(op: str, gates: int) -> ModelProto:
    weights = {"w": np.ones((1, 3 * gates, 2), np.float32), "r": np.ones((1, 3 * gates, 3), np.float32)}
    return one(op, ["t", "b", 2], weights, hidden_size=3)


RECURRENT = {"LSTM": recurrent("LSTM", 4), "GRU": recurrent("GRU", 3)}
UNFOLD = one("ConvTranspose", ["b", 1, "h", "w", "d"], {"w": np.ones((1, 2, 3, 3, 3), np.float32)})


def division(op: str, element: int = INT64, *, opset: int = 21, **attributes: Any) -> ModelProto:
    return made(
        [helper.make_node(op, ["a", "b"], ["y"], **attributes)],
        {"a": (element, ["n"]), "b": (element, ["m"])},
        {"y": element},
        opset=opset,
    )


RAW = """
import sys
import numpy as np
import onnxruntime as ort
ort.set_default_logger_severity(4)
session = ort.InferenceSession(sys.argv[1])
session.run(None, {name: np.load(path) for name, path in zip(sys.argv[2::2], sys.argv[3::2])})
"""


@pytest.mark.parametrize(
    ("model", "feed"),
    [
        (RECURRENT["LSTM"], {"x": np.ones((3, 0, 2), np.float32)}),
        (RECURRENT["GRU"], {"x": np.ones((3, 0, 2), np.float32)}),
        (division("Div"), {"a": np.array([SMALLEST[np.int64]]), "b": np.array([-1])}),
        (division("Mod"), {"a": np.array([SMALLEST[np.int64]]), "b": np.array([-1])}),
    ],
    ids=["LSTM", "GRU", "Div", "Mod"],
)
def test_onnxruntime_still_dies_of_it(model: ModelProto, feed: dict[str, np.ndarray], tmp_path: Path) -> None:
    """When this fails, a new ONNX Runtime survives it: the guard can go."""
    onnx.save(model, tmp_path / "model.onnx")
    words = []
    for name, array in feed.items():
        np.save(tmp_path / f"{name}.npy", array)
        words += [name, str(tmp_path / f"{name}.npy")]
    command = [sys.executable, "-c", RAW, str(tmp_path / "model.onnx"), *words]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert -ended.returncode in {signal.SIGABRT, signal.SIGFPE, signal.SIGSEGV}, ended.stderr


def load(model: ModelProto, folder: Path) -> Session:
    path = folder / "model.onnx"
    onnx.save(model, path)
    session = Session(path, Signature.from_onnx(path), resolve("cpu"))
    assert sorted(each.name for each in folder.iterdir()) == ["model.onnx"], "nothing is left beside the model"
    return session


@pytest.mark.parametrize("op", RECURRENT)
@pytest.mark.parametrize("shape", [(3, 0, 2), (0, 1, 2), (0, 0, 2)])
def test_a_recurrent_layer_is_given_nothing_empty(op: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    session = load(RECURRENT[op], tmp_path)
    with pytest.raises(InvalidRequest, match=rf"input 'x' has no elements \[.*\], and this model's {op} cannot"):
        session.run([np.ones(shape, np.float32)], (0,))
    assert session.run([np.ones((3, 1, 2), np.float32)], (0,))[0].shape == (3, 1, 1, 3)


def test_a_transposed_convolution_is_given_nothing_empty(tmp_path: Path) -> None:
    session = load(UNFOLD, tmp_path)
    with pytest.raises(InvalidRequest, match="ConvTranspose"):
        session.run([np.ones((1, 1, 4, 0, 4), np.float32)], (0,))
    assert session.run([np.ones((1, 1, 2, 2, 2), np.float32)], (0,))[0].shape == (1, 2, 4, 4, 4)


def test_operators_that_need_an_attribute_to_be_fatal_are_let_be_without_it() -> None:
    assert fatal.ends_on_empty(one("Relu", ["b"], {})) is None
    along, flat = (one("Unique", ["b", 2], {}, **extra) for extra in ({"axis": 0}, {}))
    assert (fatal.ends_on_empty(along), fatal.ends_on_empty(flat)) == ("Unique", None)


def test_what_is_fatal_is_found_inside_a_branch() -> None:
    then = helper.make_graph(
        [helper.make_node("GRU", ["x", "w", "r"], ["then"], hidden_size=3)],
        "then",
        [],
        [helper.make_tensor_value_info("then", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["other"])],
        "other",
        [],
        [helper.make_tensor_value_info("other", FLOAT, None)],
    )
    model = made(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        {"x": (FLOAT, ["t", "b", 2]), "c": (TensorProto.BOOL, [])},
        {"y": FLOAT},
        w=np.ones((1, 9, 2), np.float32),
        r=np.ones((1, 9, 3), np.float32),
    )
    assert fatal.ends_on_empty(model) == "GRU"


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_the_smallest_integer_by_minus_one_wraps_and_everything_else_is_as_before(
    op: str, kind: type[np.signedinteger[Any]], tmp_path: Path
) -> None:
    smallest = SMALLEST[kind]
    session = load(division(op, INT32 if kind is np.int32 else INT64), tmp_path)
    a = np.array([smallest, smallest, smallest + 1, -7, 7, 0, -1, smallest], kind)
    b = np.array([-1, 1, -1, -1, -2, -1, smallest, smallest], kind)
    (answer,) = session.run([a, b], (0,))
    assert answer.dtype == kind
    if op == "Div":
        assert answer.tolist() == [smallest, smallest, -(smallest + 1), 7, -3, 0, 0, 1]
    else:
        assert answer.tolist() == [0, 0, 0, 0, -1, 0, -1, 0]
    with pytest.raises(InvalidRequest, match="zero"):
        session.run([a, np.zeros_like(b)], (0,))


@pytest.mark.parametrize(("m", "expected"), [(1, [[-5, -6]]), (2, [[-5, 6]])])
def test_a_guarded_divisor_is_broadcast_as_ever(m: int, expected: list[list[int]], tmp_path: Path) -> None:
    session = load(division("Div"), tmp_path)
    (answer,) = session.run([np.array([5, 6]), np.array([-1, 1][:m])], (0,))
    assert [answer.tolist()] == expected


def divided_by(divisor: np.ndarray, element: int) -> ModelProto:
    return made([helper.make_node("Div", ["a", "b"], ["y"])], {"a": (element, ["n"])}, {"y": element}, b=divisor)


@pytest.mark.parametrize(
    ("model", "guards"),
    [
        (division("Div"), 1),
        (division("Div", INT32), 1),
        (division("Div", FLOAT), 0),
        (division("Mod", FLOAT, fmod=1), 0),
        (division("Div", TensorProto.UINT64), 0),
        (division("Div", TensorProto.INT8, opset=14), 0),
        (division("Div", opset=8), 0),
        (divided_by(np.array([2]), INT64), 0),
        (divided_by(np.array([2, -1]), INT64), 1),
        (divided_by(np.array([-1.0], np.float32), FLOAT), 0),
    ],
    ids=["int64", "int32", "float", "float Mod", "unsigned", "int8", "opset 8", "by 2", "by 2 and -1", "by -1.0"],
)
def test_only_divisions_that_can_trap_are_guarded(model: ModelProto, guards: int) -> None:
    before = model.SerializeToString()
    assert fatal.guard_divisions(model) == guards
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert (model.SerializeToString() == before) == (guards == 0)


def test_a_division_of_what_the_graph_computes_is_guarded_in_a_branch_and_in_a_loop(tmp_path: Path) -> None:
    def branch(name: str, divisor: str) -> onnx.GraphProto:
        return helper.make_graph(
            [
                helper.make_node("Cast", ["x"], [f"{name}_i"], to=INT32),
                helper.make_node("Div", [f"{name}_i", divisor], [name]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(name, INT32, None)],
        )

    model = made(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch("then", "d"), else_branch=branch("other", "two"))],
        {"x": (INT64, ["n"]), "c": (TensorProto.BOOL, []), "d": (INT32, [])},
        {"y": INT32},
        two=np.array(2, np.int32),
    )
    session = load(model, tmp_path)
    x, d = np.array([SMALLEST[np.int32]]), np.array(-1, np.int32)
    assert session.run([x, np.array(True), d], (0,))[0].tolist() == [SMALLEST[np.int32]]
    assert session.run([x, np.array(False), d], (0,))[0].tolist() == [SMALLEST[np.int32] // 2]
    assert fatal.guard_divisions(model) == 1


def test_weights_outside_the_file_are_found_from_the_guarded_one(tmp_path: Path) -> None:
    model = made(
        [helper.make_node("Add", ["a", "w"], ["s"]), helper.make_node("Div", ["s", "b"], ["y"])],
        {"a": (INT64, ["n"]), "b": (INT64, ["n"])},
        {"y": INT64},
        w=np.arange(1000),
    )
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    session = Session(path, Signature.from_onnx(path), resolve("cpu"))
    (answer,) = session.run([np.zeros(1000, np.int64), np.full(1000, 2)], (0,))
    assert answer.tolist() == (np.arange(1000) // 2).tolist()
    assert sorted(each.name for each in folder.iterdir()) == ["model.onnx", "w.bin"]
