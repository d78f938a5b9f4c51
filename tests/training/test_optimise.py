"""Variants of real runs: measured, gated, published; and one that crashes the loader, which harms nobody."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

from forwardpass_training import run
from forwardpass_training.bench import Bench
from forwardpass_training.data import Dataset, Provenance, Split
from forwardpass_training.errors import BadSetting, ChildFailed, PublishFailed
from forwardpass_training.exportable import Exportable
from forwardpass_training.optimise import OPTIMISE_FILE, Optimisation, optimise, publish_variant
from forwardpass_training.optimise_table import print_table
from forwardpass_training.variant_gates import VariantGates

Network = Callable[[str], Exportable]
TRIED = ("int8_weights", "int8_dynamic", "int8_static")


@pytest.fixture(scope="module")
def found(digits_run: Path) -> Optimisation:
    """Three variants of digits_cnn; any quality will do, so that what is refused is refused for something else."""
    return optimise(digits_run, variants=TRIED, gates=VariantGates(max_quality_loss=1.0))


def test_float32_comes_first_and_is_what_the_run_recorded(digits_run: Path, found: Optimisation) -> None:
    assert [each.variant for each in found.variants] == ["fp32", *TRIED]
    recorded = run.metrics(digits_run)["held_out"]
    for metric, value in found.variants[0].metrics.items():
        assert value == pytest.approx(recorded[metric], abs=1e-6)


def test_every_variant_is_measured_in_all_that_a_small_device_cares_for(found: Optimisation) -> None:
    for each in found.variants:
        assert set(each.latency_s) == set(each.cpu_s) == set(each.memory_bytes) == {1, 8, 64}
        assert all(0 < seconds < 1 for seconds in (*each.latency_s.values(), *each.cpu_s.values()))
        assert all(1 << 20 < size < 1 << 28 for size in each.memory_bytes.values())
        assert each.file_bytes is not None
        assert each.multiply_adds == 6 * 6 * 32 * 9 + 32 * 3 * 3 * 128 + 128 * 10


def test_int8_weights_are_a_quarter_of_the_size_and_depend_on_no_mates(found: Optimisation) -> None:
    baseline, weights = found.of("fp32"), found.of("int8_weights")
    assert weights.offered, weights.refused
    assert (weights.file_bytes or 0) < (baseline.file_bytes or 0) / 3
    assert weights.batch_difference is not None
    assert weights.batch_difference < 1e-6
    assert weights.foreign_operators == ()


def test_dynamic_int8_is_refused_since_its_scales_span_the_batch(found: Optimisation) -> None:
    dynamic = found.of("int8_dynamic")
    assert not dynamic.offered
    assert "depend on batch-mates" in dynamic.refused[0]
    assert 0.5 < (dynamic.int8_share or 0) < 1  # the convolution stays float32


def test_static_int8_has_fixed_scales_so_rows_are_on_their_own(found: Optimisation) -> None:
    static = found.of("int8_static")
    assert static.batch_difference == 0.0
    assert static.int8_share == 1.0
    assert static.foreign_operators == ()


def test_the_run_folder_keeps_the_files_and_the_figures(digits_run: Path, found: Optimisation) -> None:
    facts = json.loads((digits_run / OPTIMISE_FILE).read_text())
    assert facts["headline"] == "accuracy"
    assert [each["offered"] for each in facts["variants"]] == [each.offered for each in found.variants]
    for each in facts["variants"]:
        model = onnx.load(digits_run / "variants" / f"{each['variant']}.onnx")
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["forwardpass.variant"] == each["variant"]
        assert json.loads(metadata["forwardpass.metrics"]) == each["metrics"]
        assert metadata["forwardpass.labels"] == json.dumps([str(digit) for digit in range(10)])


def test_a_variant_is_published_beside_the_model_with_golden_examples_of_its_own(
    digits_run: Path, found: Optimisation, tmp_path: Path
) -> None:
    version = publish_variant(digits_run, found, "int8_static", tmp_path)
    assert (version.model, version.version) == ("digits_cnn_int8_static", 1)
    assert version.manifest is not None
    assert version.manifest.metrics == found.of("int8_static").metrics
    assert version.manifest.provenance["variant"]["gates"]["max_batch_difference"] == 1e-4
    session = onnxruntime.InferenceSession(version.path / "model.onnx", providers=["CPUExecutionProvider"])
    for golden in version.manifest.golden:
        image, recorded = (
            numpy_helper.to_array(onnx.TensorProto.FromString((version.path / golden.folder / name).read_bytes()))
            for name in ("input_0.pb", "output_0.pb")
        )
        (got,) = session.run(None, {"image": image})
        np.testing.assert_allclose(got, recorded, atol=golden.atol, rtol=golden.rtol)
        assert golden.atol == 1e-4


def test_a_variant_takes_the_model_s_place_only_when_told_its_name(
    digits_run: Path, found: Optimisation, tmp_path: Path
) -> None:
    assert publish_variant(digits_run, found, "int8_weights", tmp_path, model="digits_cnn").model == "digits_cnn"


def test_a_refused_variant_is_not_published_and_says_why(digits_run: Path, found: Optimisation, tmp_path: Path) -> None:
    with pytest.raises(PublishFailed, match="int8_dynamic of digits_cnn is refused: answers depend on batch-mates"):
        publish_variant(digits_run, found, "int8_dynamic", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_since_it_was_measured_is_not_published(
    digits_run: Path, found: Optimisation, tmp_path: Path
) -> None:
    static = dataclasses.replace(found.of("int8_static"), sha256="0" * 64)
    with pytest.raises(PublishFailed, match="is not the file that was measured"):
        publish_variant(digits_run, dataclasses.replace(found, variants=(static,)), "int8_static", tmp_path)


def test_unknown_variants_are_named(digits_run: Path, found: Optimisation) -> None:
    with pytest.raises(BadSetting, match="no variant int4; there are fp32"):
        optimise(digits_run, variants=("int4",))
    with pytest.raises(BadSetting, match="'fp16' was not tried; there are fp32, int8_weights"):
        found.of("fp16")


def test_the_table_says_each_variant_s_verdict_and_reason(found: Optimisation) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    print_table(found, console)
    text = console.export_text()
    (dynamic,) = [line for line in text.splitlines() if line.startswith("│int8_dynamic")]
    assert "refused" in dynamic
    assert "int8_dynamic: answers depend on batch-mates" in text
    assert f"accuracy of {found.held_out} held out" in text


def test_a_variant_that_answers_nan_is_refused_and_its_file_removed(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Split(torch.zeros(4, 8, 8, dtype=torch.uint8), torch.arange(4))
    dataset = Dataset(rows, rows, Provenance("made up", {}, ""), labels=tuple("0123456789"))
    kept = tmp_path / "kept"
    bench = Bench(network("cnn"), dataset, "multiclass", VariantGates(), kept=kept, scratch=tmp_path)
    baseline = bench.measure("fp32", None)

    def overflow(self: Bench, variant: str, target: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        target.write_bytes(b"")
        return {}, {"held_out/probabilities": np.array([[0.5, np.nan], [np.inf, 0.5]])}

    monkeypatch.setattr(Bench, "_build_and_try", overflow)
    refused = bench.measure("fp16", baseline)
    assert refused.refused == ("2 of 4 answers to held-out inputs are not finite",)
    assert [path.name for path in kept.iterdir()] == ["fp32.onnx"]
    with pytest.raises(ChildFailed, match="float32 itself"):
        bench.measure("fp32", None)


def test_a_variant_that_crashes_the_loader_is_refused_by_its_signal(network: Network, tmp_path: Path) -> None:
    """float16 of a graph with an LSTM ends ONNX Runtime 1.31 itself; when a later one loads it, try something worse."""
    tokens = torch.randint(0, 5, (401,), generator=torch.Generator().manual_seed(0))
    text = Split(tokens[:-1], tokens[1:])
    dataset = Dataset(text, text, Provenance("made up", {}, ""), vocabulary="abcde")
    kept = tmp_path / "kept"
    bench = Bench(network("lstm"), dataset, "language", VariantGates(), kept=kept, scratch=tmp_path)
    baseline = bench.measure("fp32", None)
    crashed = bench.measure("fp16", baseline)
    assert crashed.refused == ("crashed (SIGSEGV) while loading it",)
    assert [path.name for path in kept.iterdir()] == ["fp32.onnx"]
    assert bench.measure("int8_weights", baseline).metrics["nats_per_character"] == pytest.approx(
        baseline.metrics["nats_per_character"], abs=0.01
    )
