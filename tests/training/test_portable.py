"""What leaves training runs everywhere: undeclared, no operator beyond ONNX's own; never, a layout of one processor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from forwardpass_server.lifecycle.repository import scan
from forwardpass_training.errors import PublishFailed
from forwardpass_training.portable import foreign_operators, not_portable
from forwardpass_training.publish import place
from forwardpass_training.variants import VARIANTS, build

FUSED, BLOCKED = ("com.microsoft", "FusedGemm"), ("com.microsoft.nchwc", "Conv")


def model(path: Path, *operators: tuple[str, str], functions: list[onnx.FunctionProto] | None = None) -> Path:
    """A chain of operators of one input each; never run."""
    nodes = [
        helper.make_node(operator, [f"x{place}"], [f"x{place + 1}"], domain=domain)
        for place, (domain, operator) in enumerate(operators)
    ]
    return write(path, nodes, len(operators), functions or [])


def write(path: Path, nodes: list[onnx.NodeProto], last: int, functions: list[onnx.FunctionProto]) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x0", f"x{last}")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, functions=functions), path)
    return path


def branching(path: Path, domain: str, operator: str) -> Path:
    """The operator stands in one branch of an If."""
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node(operator, ["x0"], ["b"], domain=domain)], "branch", [], [out])
    plain = helper.make_graph([helper.make_node("Relu", ["x0"], ["b"])], "plain", [], [out])
    return write(path, [helper.make_node("If", ["x0"], ["x1"], then_branch=branch, else_branch=plain)], 1, [])


def test_onnx_s_own_operators_are_at_home_everywhere(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", ("", "Conv"), ("ai.onnx", "Relu"), ("ai.onnx.ml", "Scaler"))
    assert foreign_operators(file) == ()
    assert not_portable(file) is None


def test_every_other_operator_is_named_once(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", FUSED, ("", "Relu"), FUSED, ("example", "Mine"))
    assert foreign_operators(file) == ("com.microsoft.FusedGemm", "example.Mine")


def test_branches_are_searched(tmp_path: Path) -> None:
    assert foreign_operators(branching(tmp_path / "m.onnx", *FUSED)) == ("com.microsoft.FusedGemm",)


def test_a_function_that_the_file_defines_is_its_own_but_what_it_calls_is_searched(tmp_path: Path) -> None:
    body = [helper.make_node("FusedGemm", ["a"], ["b"], domain="com.microsoft")]
    own = helper.make_function("example", "Mine", ["a"], ["b"], body, [helper.make_opsetid("com.microsoft", 1)])
    file = model(tmp_path / "m.onnx", ("example", "Mine"), functions=[own])
    assert foreign_operators(file) == ("com.microsoft.FusedGemm",)


def test_a_declared_operator_passes_and_only_that_one(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", FUSED, ("com.microsoft", "FusedConv"))
    both = foreign_operators(file)
    assert not_portable(file, declared=both) is None
    assert "com.microsoft.FusedGemm are no operators of ONNX" in str(not_portable(file, declared=both[:1]))


def test_a_layout_of_one_processor_is_refused_even_when_declared(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", BLOCKED)
    assert "laid out for the processor" in str(not_portable(file, declared=foreign_operators(file)))


def test_nothing_that_runs_in_one_place_alone_is_published(exported: Callable[[str], Any], tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", FUSED)
    with pytest.raises(PublishFailed, match=r"com\.microsoft\.FusedGemm are no operators of ONNX"):
        place(file, exported("mlp").exportable, tmp_path / "models", model="m", metrics={}, provenance={})
    assert not (tmp_path / "models").exists() or not scan(tmp_path / "models").models


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_exports_hold_onnx_alone(exported: Callable[[str], Any], name: str) -> None:
    assert foreign_operators(exported(name).path) == ()


@pytest.mark.parametrize("variant", ["folded", "fused", "int8_weights"])
def test_a_variant_holds_what_it_says(exported: Callable[[str], Any], tmp_path: Path, variant: str) -> None:
    (tmp_path / "calibration.npz").write_bytes(b"PK\5\6" + bytes(18))  # an empty archive
    job = {"variant": variant, "source": str(exported("cnn").path), "target": str(tmp_path / "m.onnx")}
    build({**job, "calibration": str(tmp_path / "calibration.npz")})
    found = foreign_operators(tmp_path / "m.onnx")
    assert all(operator.startswith(VARIANTS[variant].foreign or ("none",)) for operator in found)
    assert bool(found) == bool(VARIANTS[variant].foreign)
