"""Publish: a version that is there is proved; whatever fails leaves the repository as it was."""

import json
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
from onnx import numpy_helper

from forwardpass_server.lifecycle.repository import Manifest, record_files, scan
from forwardpass_training import publish as publishing
from forwardpass_training import run
from forwardpass_training.errors import ExportFailed, ParityFailed, PublishFailed, RunFolderError
from forwardpass_training.export import export
from forwardpass_training.exportable import Exportable
from forwardpass_training.publish import GOLDEN_BATCHES, publish, publish_export
from forwardpass_training.recipes import linear_regression
from forwardpass_training.verify import ParityReport, measure

Exported = Any  # tests/training/conftest.py
Get = Callable[[str], Exported]
Arrays = dict[str, np.ndarray[Any, Any]]


def report_of(exported: Exported) -> ParityReport:
    return measure(exported.path, exported.exportable)


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_json((folder / "manifest.json").read_text())


def tensors(folder: Path, kind: str) -> Arrays:
    protos = [onnx.TensorProto.FromString(path.read_bytes()) for path in sorted(folder.glob(f"{kind}_*.pb"))]
    return {proto.name: numpy_helper.to_array(proto) for proto in protos}


def replay(version: Path) -> list[Arrays]:
    """Every golden example of a version on a plain ONNX Runtime session; returns their inputs."""
    session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = []
    for golden in manifest_of(version).golden:
        inputs.append(tensors(version / golden.folder, "input"))
        recorded = tensors(version / golden.folder, "output")
        assert list(recorded) == [output.name for output in session.get_outputs()]
        for got, (name, expected) in zip(session.run(None, inputs[-1]), recorded.items(), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, golden.rtol, golden.atol, err_msg=f"{golden.folder} {name}")
    return inputs


# ------------------------------------------------------------------------------------------ an export is put in place


@pytest.mark.parametrize(("network", "sets"), [("mlp", 3), ("cnn", 3), ("lstm", 6)])
def test_a_published_version_loads_and_replays_its_golden_examples(
    tmp_path: Path, exported: Get, network: str, sets: int
) -> None:
    good = exported(network)
    version = publish_export(
        good.path, good.exportable, report_of(good), tmp_path, model="m", metrics={"accuracy": 0.5}
    )
    assert version.path == tmp_path / "m" / "1"
    assert version.manifest == manifest_of(version.path)
    assert record_files(version.path) == manifest_of(version.path).files
    inputs = replay(version.path)
    assert len(inputs) == sets
    assert [len(next(iter(arrays.values()))) for arrays in inputs] == [*GOLDEN_BATCHES] * (sets // 3)
    assert (version.path / "model.onnx").read_bytes() == good.path.read_bytes()
    if network == "lstm":
        assert [arrays["tokens"].shape[1] for arrays in inputs] == [6, 6, 6, 1, 1, 1], "prompts, then single steps"


def test_golden_outputs_are_the_networks_and_not_the_files(tmp_path: Path, exported: Get) -> None:
    good = exported("mlp")
    version = publish_export(good.path, good.exportable, report_of(good), tmp_path, model="m", metrics={})
    folder = version.path / "test_data_set_1"
    x = torch.from_numpy(tensors(folder, "input")["x"].copy())
    np.testing.assert_array_equal(tensors(folder, "output")["probability"], good.exportable.reference(x)[0].numpy())


def test_the_manifest_says_where_it_comes_from(tmp_path: Path, exported: Get) -> None:
    good = exported("mlp")
    version = publish_export(
        good.path, good.exportable, report_of(good), tmp_path, model="m", metrics={"accuracy": 0.5}
    )
    manifest = manifest_of(version.path)
    assert manifest.metrics == {"accuracy": 0.5}
    assert manifest.provenance["task"] == "binary"
    assert manifest.provenance["data"] == {"rows": 7}
    assert manifest.provenance["parity"]["passed"] is True
    assert manifest.provenance["parity"]["max_abs_error"] < 1e-6
    assert "labels" not in manifest.provenance, "labels travel inside the ONNX file, and nowhere else"


def test_weights_beside_the_graph_are_published_beside_it(tmp_path: Path, exported: Get) -> None:
    exportable = exported("mlp").exportable
    file = export(exportable, tmp_path / "model.onnx", embed_bytes_max=0)
    report = measure(file, exportable)
    version = publish_export(tmp_path / "model.onnx", exportable, report, tmp_path / "models", model="m", metrics={})
    assert version.model_file() == version.path / "model.onnx" / "model.onnx"
    assert version.manifest is not None
    assert {"model.onnx/model.onnx", "model.onnx/model.onnx.data"} <= version.manifest.files.keys()
    onnxruntime.InferenceSession(version.model_file(), providers=["CPUExecutionProvider"])


def test_a_failed_report_publishes_nothing(tmp_path: Path, exported: Get) -> None:
    good = exported("mlp")
    wrong = replace(good.exportable, reference=lambda x: (x[:, :1],))
    with pytest.raises(ParityFailed):
        publish_export(good.path, wrong, measure(good.path, wrong), tmp_path / "models", model="m", metrics={})
    assert not (tmp_path / "models").exists()


def test_what_the_repository_refuses_is_a_failed_publish(tmp_path: Path, exported: Get) -> None:
    good = exported("mlp")
    put = {"exported": good.path, "exportable": good.exportable, "report": report_of(good), "metrics": {}}
    with pytest.raises(PublishFailed, match=r"'\.\./m' is no model name"):
        publish_export(**put, root=tmp_path, model="../m")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PublishFailed, match=r"cannot write a version of 'm' into .*file"):
        publish_export(**put, root=tmp_path / "file", model="m")
    with pytest.raises(PublishFailed, match=r"No such file.*nothing was published"):
        publish_export(**put | {"exported": tmp_path / "gone.onnx"}, root=tmp_path, model="m")
    assert "m" not in scan(tmp_path).models


# -------------------------------------------------------------------------------------------------- a run is published


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; no test changes it but by exporting into it."""
    return run.start(
        linear_regression(), tmp_path_factory.mktemp("runs"), run.Surroundings(device="cpu", threads=1)
    ).path


def with_metrics(folder: Path, copy: Path, **held_out: float) -> Path:
    """A copy of a run that reached other metrics."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.suffix in (".json", ".pt"):
            (copy / path.name).write_bytes(path.read_bytes())
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["held_out"] |= held_out
    (copy / "metrics.json").write_text(json.dumps(metrics))
    return copy


def test_a_run_becomes_a_version_and_then_the_next(tmp_path: Path, finished: Path) -> None:
    first = publish(finished, tmp_path)
    assert (first.model, first.version) == ("linear_regression", 1)
    assert json.loads((finished / "parity.json").read_text())["passed"] is True
    replay(first.path)
    second = publish(finished, tmp_path)
    assert second.version == 2
    assert (second.path / "model.onnx").read_bytes() == (first.path / "model.onnx").read_bytes()
    properties = {p.key: p.value for p in onnx.load(first.path / "model.onnx").metadata_props}
    assert properties["forwardpass.recipe"] == "linear_regression"
    assert json.loads(properties["forwardpass.metrics"]) == manifest_of(first.path).metrics


def test_a_missed_gate_is_refused_with_its_value_unless_forced(tmp_path: Path, finished: Path) -> None:
    bad = with_metrics(finished, tmp_path / "bad", distance_to_least_squares=0.25)
    models = tmp_path / "models"
    with pytest.raises(PublishFailed, match=r"distance_to_least_squares is 0\.25, asked is .* <= 0\.01.*--force"):
        publish(bad, models)
    assert not models.exists()
    forced = publish(bad, models, model="experiment", force=True)
    assert forced.path == models / "experiment" / "1"
    assert manifest_of(forced.path).provenance["gates_missed"] == ["distance_to_least_squares <= 0.01"]


def test_an_export_that_is_not_the_network_publishes_nothing(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = with_metrics(finished, tmp_path / "run")

    model = onnx.load(export(run.exportable(run_folder), tmp_path / "wrong.onnx"))
    (weight,) = [each for each in model.graph.initializer if each.name.endswith("weight")]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), weight.name))

    def export_wrongly(_: Exportable, path: Path) -> Path:
        onnx.save(model, path)
        return path

    monkeypatch.setattr(publishing, "export", export_wrongly)
    for force in (False, True):
        with pytest.raises(ParityFailed, match=r"output 'y' \(examples, batch 1, against torch\)"):
            publish(run_folder, tmp_path / "models", force=force)
    assert not (tmp_path / "models").exists()
    assert json.loads((run_folder / "parity.json").read_text())["passed"] is False


def test_a_failed_export_publishes_nothing(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(exportable: Exportable, path: Path) -> Path:
        raise ExportFailed("no")

    monkeypatch.setattr(publishing, "export", fail)
    with pytest.raises(ExportFailed):
        publish(finished, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_what_is_no_finished_run_is_refused(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        publish(tmp_path, tmp_path / "models")
    unfinished = with_metrics(finished, tmp_path / "unfinished")
    os.unlink(unfinished / "metrics.json")
    with pytest.raises(RunFolderError, match="did not finish"):
        publish(unfinished, tmp_path / "models")
    assert not (tmp_path / "models").exists()
