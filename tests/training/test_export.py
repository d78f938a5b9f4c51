"""Export: what was asked is what the file declares, and the file says nothing about the machine it was made on."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from forwardpass_training.errors import ExportFailed
from forwardpass_training.export import declared_shape, export
from forwardpass_training.exportable import Exportable

Exported = Any  # tests/training/conftest.py
Get = Callable[[str], Exported]


def of(module: nn.Module, **changes: Any) -> Exportable:
    """x [batch, 10] float32 → y, by a module of the test's own."""
    exportable = Exportable(
        module=module.eval(),
        reference=lambda *inputs: (module(*inputs),),
        input_names=("x",),
        output_names=("y",),
        dynamic={"x": {0: "batch"}},
        examples=lambda batch, generator: (torch.randn(batch, 10, generator=generator),),
        metadata={},
    )
    return replace(exportable, **changes)


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ----------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        pytest.param(
            lambda x: x.reshape(2, 10) * 2, r"static shape of 2 for dimension inputs\['x'\]\.shape\[0\]", id="fixed"
        ),
        pytest.param(lambda x: x.mean(0, keepdim=True), r"output 'y' has shape \[1, 10\]; its first axis", id="mean"),
        pytest.param(lambda x: x.sum(), r"output 'y' has shape \[\]; its first axis", id="scalar"),
        pytest.param(lambda x: torch.cat([x, x]), r"output 'y' has shape \['2\*batch', 10\]", id="twice"),
    ],
)
def test_a_network_that_does_not_keep_rows_apart_is_refused_by_name(
    tmp_path: Path, function: Callable[..., Tensor], reason: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"before")
    with pytest.raises(ExportFailed, match=reason):
        export(of(Fn(function)), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"before", "a failed export leaves the file that was there"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_batch_axis_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    for dynamic, got in (({"x": {}}, "None"), ({"x": {0: "rows"}}, "'rows'"), ({}, "None")):
        with pytest.raises(ExportFailed, match=f"axis 0 of input 'x' must be dynamic and named 'batch', got {got}"):
            export(of(nn.Linear(10, 1), dynamic=dynamic), tmp_path / "model.onnx")


def test_an_example_of_one_step_is_refused_because_the_exporter_would_fix_it(tmp_path: Path, exported: Get) -> None:
    lstm = exported("lstm").exportable
    with pytest.raises(ExportFailed, match=r"input 'tokens' has size 1 along 'time' \(axis 1\).*give at least 2"):
        export(replace(lstm, examples=lstm.further_examples["step"]), tmp_path / "model.onnx")


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="training mode"):
        export(replace(of(nn.Dropout()), module=nn.Dropout()), tmp_path / "model.onnx")


def test_names_that_the_exporter_changed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="outputs were asked to be"):
        export(of(Fn(lambda x: (x + 1, x + 2))), tmp_path / "model.onnx")  # type: ignore[arg-type, return-value]


# ---------------------------------------------------------------------------------------------------------- declared


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("mlp", {"x": ("FLOAT", ["batch", 10])}, {"probability": ("FLOAT", ["batch", 1])}),
        ("cnn", {"image": ("UINT8", ["batch", 8, 8])}, {"probabilities": ("FLOAT", ["batch", 10])}),
        (
            "lstm",
            {
                "tokens": ("INT64", ["batch", "time"]),
                "h0": ("FLOAT", ["batch", 2, 4]),
                "c0": ("FLOAT", ["batch", 2, 4]),
            },
            {
                "logits": ("FLOAT", ["batch", "time", 5]),
                "h1": ("FLOAT", ["batch", 2, 4]),
                "c1": ("FLOAT", ["batch", 2, 4]),
            },
        ),
    ],
)
def test_the_graph_declares_what_was_asked(
    exported: Get, name: str, inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    model = onnx.load(exported(name).path)
    onnx.checker.check_model(model, full_check=True)

    def declared(values: Any) -> dict[str, Any]:
        return {
            value.name: (onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type), list(declared_shape(value)))
            for value in values
        }

    assert declared(model.graph.input) == inputs
    assert declared(model.graph.output) == outputs
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_the_lstm_is_one_operator_a_layer(exported: Get) -> None:
    operators = [node.op_type for node in onnx.load(exported("lstm").path).graph.node]
    assert operators.count("LSTM") == 2
    assert not {"Loop", "Scan", "If"} & set(operators)


def test_another_opset_is_honoured(tmp_path: Path) -> None:
    model = onnx.load(export(of(nn.Linear(10, 1)), tmp_path / "model.onnx", opset=18))
    assert [entry.version for entry in model.opset_import] == [18]


# ---------------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm"])
def test_no_path_source_line_or_class_name_leaks(exported: Get, name: str) -> None:
    content = exported(name).path.read_bytes()
    for secret in (b".py", b"packages", b"pkg.torch", b"torch.nn", b"forward(", b"stack", os.getcwd().encode()):
        assert secret not in content, secret
    for node in onnx.load(exported(name).path).graph.node:
        assert not node.metadata_props
        assert not node.doc_string


def test_metadata_is_read_back_by_onnx_runtime(exported: Get) -> None:
    mlp = exported("mlp")
    session = onnxruntime.InferenceSession(mlp.path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == dict(mlp.exportable.metadata)


def test_subgraphs_are_scrubbed_too(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.cond(x.sum() > 0, lambda x: x + 1.0, lambda x: x - 1.0, (x,))
            return y

    path = export(of(Branch()), tmp_path / "model.onnx")
    assert any(node.op_type == "If" for node in onnx.load(path).graph.node)
    assert b".py" not in path.read_bytes()
    assert b"pkg.torch" not in path.read_bytes()


# ------------------------------------------------------------------------------------------------------------- bytes


def test_equal_networks_give_equal_bytes(tmp_path: Path, exported: Get) -> None:
    mlp = exported("mlp")
    shuffled = replace(mlp.exportable, metadata=dict(reversed(mlp.exportable.metadata.items())))
    assert export(shuffled, tmp_path / "model.onnx").read_bytes() == mlp.path.read_bytes()


def test_weights_too_large_to_embed_lie_beside_the_graph(tmp_path: Path) -> None:
    exportable = of(nn.Linear(10, 300))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    large = export(exportable, path, embed_bytes_max=1000)
    assert large == path / "model.onnx"
    assert sorted(os.listdir(path)) == ["model.onnx", "model.onnx.data"]
    assert large.stat().st_size < 1000
    x = np.ones((3, 10), np.float32)
    answers = run(large, x)
    assert export(exportable, path) == path, "and a file takes the place of the folder again"
    np.testing.assert_array_equal(run(path, x), answers)
    assert os.listdir(tmp_path) == ["model.onnx"]


def run(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    answers: np.ndarray[Any, Any] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    return answers


def test_an_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(of(nn.Linear(10, 1)), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_quantizer_takes_the_file_as_it_is(tmp_path: Path, exported: Get) -> None:
    # The intermediate shapes that the exporter writes make it fail: "Inferred shape and existing shape differ".
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(exported("cnn").path, tmp_path / "int8.onnx")
    assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
