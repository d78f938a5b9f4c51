"""Multiply-adds of each operator, against what a hand would count; and of a real profile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from forwardpass_training.cost import Arithmetic, arithmetic, multiply_adds

F, I8 = "float", "int8"

CASES: dict[str, tuple[str, list[tuple[str, tuple[int, ...]]], tuple[int, ...], int]] = {
    "3x3, 1 to 32 channels": ("Conv", [(F, (1, 1, 28, 28)), (F, (32, 1, 3, 3))], (1, 32, 26, 26), 26 * 26 * 32 * 9),
    "depthwise": ("FusedConv", [(F, (2, 8, 5, 5)), (F, (8, 1, 3, 3)), (F, (8,))], (2, 8, 3, 3), 2 * 8 * 9 * 9),
    "int8": ("QLinearConv", [(I8, (1, 4, 6, 6)), (F, ()), (I8, ()), (I8, (2, 4, 1, 1))], (1, 2, 6, 6), 2 * 36 * 4),
    "transposed": ("ConvTranspose", [(F, (1, 32, 4, 4)), (F, (32, 1, 3, 3))], (1, 1, 6, 6), 32 * 16 * 9),
    "dense, weights transposed": ("Gemm", [(F, (7, 5)), (F, (3, 5)), (F, (3,))], (7, 3), 7 * 5 * 3),
    "dense": ("FusedGemm", [(F, (7, 5)), (F, (5, 3))], (7, 3), 7 * 5 * 3),
    "batched product": ("MatMul", [(F, (2, 7, 5)), (F, (2, 5, 3))], (2, 7, 3), 2 * 7 * 5 * 3),
    "matrix by vector": ("MatMul", [(F, (7, 5)), (F, (5,))], (7,), 7 * 5),
    "dynamic": ("DynamicQuantizeMatMul", [(F, (4, 128)), (I8, (128, 10)), (F, (10,))], (4, 10), 4 * 128 * 10),
    "lstm": (
        "LSTM",
        [(F, (6, 2, 65)), (F, (1, 512, 65)), (F, (1, 512, 128))],
        (6, 1, 2, 128),
        6 * 2 * 512 * (65 + 128),
    ),
    "no product": ("Relu", [(F, (64, 128))], (64, 128), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_products_are_counted_as_by_hand(case: str) -> None:
    operator, inputs, output, expected = CASES[case]
    assert multiply_adds(operator, inputs, [(F, output)])[0] == expected


def test_a_profile_without_the_weights_is_refused_rather_than_counted_wrong() -> None:
    with pytest.raises(ValueError, match="was prepacking on"):
        multiply_adds("Conv", [(F, (1, 1, 28, 28))], [(F, (1, 32, 26, 26))])


def profile(file: Path, feed: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    session.run(None, feed)
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def test_a_convolutional_network_costs_what_its_layers_do(exported: Callable[[str], Any], tmp_path: Path) -> None:
    cnn = exported("cnn")
    (images,) = cnn.exportable.examples(3, torch.Generator().manual_seed(0))
    found = arithmetic(profile(cnn.path, {"image": images.numpy()}, tmp_path))
    by_hand = 6 * 6 * 4 * 9 + 4 * 3 * 3 * 8 + 8 * 10
    assert found == Arithmetic(multiply_adds=3 * by_hand, int8=0)


def test_a_recurrent_network_costs_its_steps(exported: Callable[[str], Any], tmp_path: Path) -> None:
    lstm = exported("lstm")
    inputs = lstm.exportable.examples(2, torch.Generator().manual_seed(0))
    feed = {name: tensor.numpy() for name, tensor in zip(lstm.exportable.input_names, inputs, strict=True)}
    found = arithmetic(profile(lstm.path, feed, tmp_path))
    a_character = 4 * 4 * (5 + 4) + 4 * 4 * (4 + 4) + 4 * 5
    assert found.multiply_adds == 2 * 6 * a_character


def test_int8_is_counted_apart(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [2, 4])
    weight = onnx.numpy_helper.from_array(np.ones((3, 4), np.int8), "w")
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    found = arithmetic(profile(tmp_path / "m.onnx", {"x": np.ones((2, 3), np.uint8)}, tmp_path))
    assert found == Arithmetic(multiply_adds=24, int8=24)
