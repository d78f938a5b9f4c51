"""Parity: a good export passes, and every kind of wrong one is caught, with its name and numbers."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from forwardpass_server.lifecycle.repository import Tolerance
from forwardpass_training.errors import ParityFailed, ShipError
from forwardpass_training.exportable import Exportable
from forwardpass_training.verify import ATOL, BATCHES, RTOL, measure, parity

Exported = Any  # tests/training/conftest.py
Get = Callable[[str], Exported]


def graph(path: Path, nodes: list[onnx.NodeProto], y: list[int | str] | None = None, y_type: int = 1) -> Path:
    """A file x [batch, time] float32 → y, by nodes of the test's own."""
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time"])
    y_info = helper.make_tensor_value_info("y", y_type, y or ["batch", "time"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x_info], [y_info]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, path)
    return path


def of(reference: Callable[[Tensor], Tensor], time: int = 3) -> Exportable:
    """What such a file should compute."""
    return Exportable(
        module=nn.Identity(),
        reference=lambda x: (reference(x),),
        input_names=("x",),
        output_names=("y",),
        dynamic={"x": {0: "batch", 1: "time"}},
        examples=lambda batch, generator: (torch.randn(batch, time, generator=generator),),
        metadata={},
    )


# ------------------------------------------------------------------------------------------------------------ caught


@pytest.mark.parametrize(
    ("network", "weights", "output"),
    [
        ("mlp", "network.layers.2.bias", "probability"),
        ("cnn", "network.layers.4.bias", "probabilities"),
        ("lstm", "head.bias", "logits"),
    ],
)
def test_one_wrong_weight_is_caught(tmp_path: Path, exported: Get, network: str, weights: str, output: str) -> None:
    good = exported(network)
    model = onnx.load(good.path)
    (initializer,) = [each for each in model.graph.initializer if each.name == weights]
    values = numpy_helper.to_array(initializer).copy()
    values.flat[0] += 0.01
    initializer.CopyFrom(numpy_helper.from_array(values, weights))
    onnx.save(model, tmp_path / "planted.onnx")
    message = rf"output '{output}' \(examples, batch 1, against torch\): got .*, expected .* exceeds the tolerance"
    with pytest.raises(ParityFailed, match=message):
        parity(tmp_path / "planted.onnx", good.exportable)
    report = measure(tmp_path / "planted.onnx", good.exportable)
    assert not report.passed
    assert report.max_abs_error > 1e-4


def test_swapped_gates_are_caught(tmp_path: Path, exported: Get) -> None:
    # ONNX orders the gates i, o, f, c and torch i, f, c, o: the classical mistake, invisible in the shapes.
    good = exported("lstm")
    model = onnx.load(good.path)
    for node in model.graph.node:
        if node.op_type == "LSTM":
            (weights,) = [each for each in model.graph.initializer if each.name == node.input[2]]
            blocks = np.split(numpy_helper.to_array(weights), 4, axis=1)
            swapped = np.concatenate([blocks[i] for i in (0, 2, 1, 3)], axis=1)
            weights.CopyFrom(numpy_helper.from_array(swapped, weights.name))
    onnx.save(model, tmp_path / "swapped.onnx")
    with pytest.raises(ParityFailed, match="'logits'"):
        parity(tmp_path / "swapped.onnx", good.exportable)


def test_an_answer_that_depends_on_its_batch_mates_is_caught(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["axis"], value_ints=[0]),
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    path = graph(tmp_path / "m.onnx", nodes)
    exportable = of(lambda x: x - x.mean(0, keepdim=True))
    report = measure(path, exportable)
    assert {c.against for c in report.comparisons if c.difference.failure} == {"alone"}, "it does equal the network"
    with pytest.raises(ParityFailed, match=r"output 'y' \(examples, batch 64, against alone\)"):
        parity(path, exportable)


def test_a_time_axis_that_is_declared_fixed_is_caught(tmp_path: Path, exported: Get) -> None:
    # What torch.export makes of nn.LSTM: the output declares the steps of the example, and the file runs for any.
    lstm = exported("lstm")
    model = onnx.load(lstm.path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(
        ParityFailed, match=r"'logits' \(step, batch 1, against declared\): got \[1, 1, 5\], and the graph"
    ):
        parity(tmp_path / "fixed.onnx", lstm.exportable)


def test_a_declared_name_must_be_the_size_of_the_input_it_names(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [helper.make_node("Transpose", ["x"], ["y"])], ["batch", "time"])
    with pytest.raises(ParityFailed, match=r"got \[3, 1\], and the graph says \['batch', 'time'\]"):
        parity(path, of(lambda x: x.T))


def test_another_shape_or_dtype_is_caught(tmp_path: Path) -> None:
    double = graph(tmp_path / "d.onnx", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)], None, 11)
    with pytest.raises(ParityFailed, match=r"got float64 \[1, 3\], expected float32 \[1, 3\]"):
        parity(double, of(lambda x: x))
    identity = graph(tmp_path / "i.onnx", [helper.make_node("Identity", ["x"], ["y"])])
    with pytest.raises(ParityFailed, match=r"got float32 \[1, 3\], expected float32 \[1, 6\]"):
        parity(identity, of(lambda x: torch.cat([x, x], 1)))


def test_nan_never_passes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sqrt", ["x"], ["y"])]
    with pytest.raises(ParityFailed, match="got nan, expected nan"):
        parity(graph(tmp_path / "m.onnx", nodes), of(torch.sqrt))


def test_a_file_that_onnx_runtime_refuses_is_caught(tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(b"not onnx at all")
    with pytest.raises(ParityFailed, match=r"ONNX Runtime refuses .*cut\.onnx"):
        parity(tmp_path / "cut.onnx", of(lambda x: x))


def test_a_file_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ShipError, match=r"no file .*model\.onnx to verify; `forwardpass-train export` writes it"):
        parity(tmp_path / "model.onnx", of(lambda x: x))


def test_an_input_that_onnx_runtime_refuses_is_caught(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    with pytest.raises(ParityFailed, match=r"ONNX Runtime refuses x \[2, 3\], which the network takes"):
        parity(path, of(lambda x: x))


def test_without_onnx_runtime_the_error_says_what_to_install(
    tmp_path: Path, exported: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ShipError, match=r"pip install 'forwardpass\[training,cpu\]'"):
        parity(exported("mlp").path, exported("mlp").exportable)


# ------------------------------------------------------------------------------------------------------------ passes


@pytest.mark.parametrize(
    ("network", "cases", "outputs"), [("mlp", 1, 1), ("cnn", 1, 1), ("lstm", 2, 3)], ids=["mlp", "cnn", "lstm"]
)
def test_a_good_export_passes(exported: Get, network: str, cases: int, outputs: int) -> None:
    report = parity(exported(network).path, exported(network).exportable)
    assert len(report.comparisons) == cases * outputs * (len(BATCHES) + 1)
    assert {c.batch for c in report.comparisons} == set(BATCHES) == {1, 2, 7, 64}
    assert {c.case for c in report.comparisons} == ({"examples", "step"} if cases == 2 else {"examples"})
    assert report.tolerance_used < 0.1, "an order below the tolerance, or the tolerance is not justified"
    assert report.max_abs_error < 1e-6
    assert (report.atol, report.rtol) == (ATOL, RTOL)


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path, exported: Get) -> None:
    good = exported("mlp")
    (tmp_path / "model.onnx").write_bytes(good.path.read_bytes())
    assert parity(tmp_path, good.exportable).passed


def test_a_prompt_in_one_call_is_the_same_as_step_by_step(exported: Get) -> None:
    import onnxruntime

    lstm = exported("lstm")
    session = onnxruntime.InferenceSession(lstm.path, providers=["CPUExecutionProvider"])
    tokens, h, c = (t.numpy() for t in lstm.exportable.examples(3, torch.Generator().manual_seed(5)))
    whole = session.run(None, {"tokens": tokens, "h0": h, "c0": c})
    logits = []
    for time in range(tokens.shape[1]):
        step, h, c = session.run(None, {"tokens": tokens[:, time : time + 1], "h0": h, "c0": c})
        logits.append(step)
    for one_call, steps in zip(whole, (np.concatenate(logits, axis=1), h, c), strict=True):
        np.testing.assert_allclose(one_call, steps, atol=ATOL, rtol=RTOL)


def test_the_report_is_written_whether_it_passes_or_not(tmp_path: Path, exported: Get) -> None:
    good, bad = exported("mlp"), replace(exported("mlp").exportable, reference=lambda x: (x[:, :1] * float("nan"),))
    for exportable, passed in ((good.exportable, True), (bad, False)):
        report = measure(good.path, exportable)
        report.write(tmp_path / "parity.json")
        written = json.loads((tmp_path / "parity.json").read_text())
        assert written["passed"] is passed
        assert len(written["comparisons"]) == len(report.comparisons)
        assert written["comparisons"][0].keys() == {"output", "case", "batch", "against", "difference"}
        assert ("parity passed" if passed else "parity FAILED") in str(report)


def test_a_looser_tolerance_is_taken_when_stated(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])])
    exportable = of(lambda x: x + 0.01)
    parity(path, exportable, atol=0.02, rtol=0.0)
    with pytest.raises(ParityFailed, match=r"tolerance 0\.005"):
        parity(path, exportable, atol=0.005, rtol=0.0)


def test_an_output_may_have_a_tolerance_of_its_own_and_no_other_gets_it(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])])
    off = of(lambda x: x + 1e-2)
    report = measure(path, off, tolerances={"y": Tolerance(atol=2e-2, rtol=0.0)})
    assert report.passed
    assert report.to_json()["tolerances"] == {"y": {"atol": 2e-2, "rtol": 0.0}}
    assert not measure(path, off, tolerances={"z": Tolerance(atol=2e-2, rtol=0.0)}).passed
    with pytest.raises(ParityFailed):
        parity(path, off, tolerances={"y": Tolerance(atol=5e-3, rtol=0.0)})
