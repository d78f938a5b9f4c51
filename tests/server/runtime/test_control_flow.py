"""Loop, Scan and If are found wherever they hide."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from forwardpass_server.runtime.control_flow import has_control_flow

Model = Callable[[str], Path]


@pytest.mark.parametrize(("name", "found"), [("mlp", False), ("strings", False), ("if", True), ("if_in_if", True)])
def test_in_the_graph(model: Model, name: str, found: bool) -> None:
    assert has_control_flow(model(name)) is found


def save(tmp_path: Path, nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto]) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]),
        functions=functions,
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("operator", ["Loop", "Scan", "If"])
def test_in_a_function(tmp_path: Path, operator: str) -> None:
    inner = helper.make_node(operator, ["x"], ["y"])
    function = helper.make_function("own", "Hidden", ["x"], ["y"], [inner], [helper.make_opsetid("", 18)])
    assert has_control_flow(save(tmp_path, [helper.make_node("Hidden", ["x"], ["y"], domain="own")], [function]))


def test_in_a_subgraph_of_another_operator(tmp_path: Path) -> None:
    body = helper.make_graph([helper.make_node("Loop", [], ["z"])], "body", [], [])
    assert has_control_flow(save(tmp_path, [helper.make_node("SequenceMap", ["x"], ["y"], body=body)], []))


def test_an_operator_of_another_domain_may_have_the_name(tmp_path: Path) -> None:
    assert not has_control_flow(save(tmp_path, [helper.make_node("If", ["x"], ["y"], domain="own")], []))
