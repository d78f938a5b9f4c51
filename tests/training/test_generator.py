"""The generator of a run, from the command line to the repository; and the texts of a run."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from onnx import TensorProto, numpy_helper

from forwardpass_proto import model_config_pb2
from forwardpass_server.lifecycle.repository import record_files, scan
from forwardpass_training import run
from forwardpass_training.__main__ import main
from forwardpass_training.arguments import FAILED, OK
from forwardpass_training.data import DataStore, shakespeare
from forwardpass_training.data.store import RemoteFile
from forwardpass_training.errors import BadSetting, ParityFailed, PublishFailed
from forwardpass_training.export import export
from forwardpass_training.generator import STEPS_MAX, export_generator, generating, publish_generator
from forwardpass_training.models import CharLstm, CharLstmConfig
from forwardpass_training.recipes import shakespeare_lstm
from forwardpass_training.run import Surroundings
from forwardpass_training.samples import TEMPERATURES, go_on, is_sampled

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 60
VOCABULARY = "".join(sorted(set(TEXT)))


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of two epochs over one sentence; it misses its bound."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
        patch.setattr(shakespeare, "TEXT", RemoteFile("text.txt", len(TEXT), sha256, ()))
        patch.setenv("FORWARDPASS_DATA_DIR", str(folder))
        config = replace(
            shakespeare_lstm(),
            epochs=2,
            batch_size=4,
            window=20,
            model=CharLstmConfig(vocabulary=len(VOCABULARY), hidden=8, embedding=6),
        )
        surroundings = Surroundings(store=DataStore.from_environment(), device="cpu", threads=1)
        yield run.start(config, folder / "runs", surroundings).path


def network(text_run: Path) -> CharLstm:
    found = run.network(text_run)
    assert isinstance(found, CharLstm)
    return found


def test_a_published_generator_says_what_a_server_must_know_and_replays_its_examples(
    text_run: Path, tmp_path: Path
) -> None:
    version = publish_generator(text_run, tmp_path, model="texts", force=True)
    assert version.manifest is not None
    assert record_files(version.path) == version.manifest.files
    assert scan(tmp_path).problems == ()
    assert "decoupled: true" in (tmp_path / "texts" / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(version.path / "model.onnx", providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert properties["forwardpass.task"] == "generate"
    assert json.loads(properties["forwardpass.generation"]) == {
        "format": 1,
        "vocabulary": list(VOCABULARY),
        "states": [{"input": "h0", "output": "h1"}, {"input": "c0", "output": "c1"}],
        "steps_max": STEPS_MAX,
        "replacement": None,
    }
    steps = []
    for golden in version.manifest.golden:
        inputs, outputs = (
            [
                TensorProto.FromString((version.path / golden.folder / f"{kind}_{index}.pb").read_bytes())
                for index in range(count)
            ]
            for kind, count in (("input", 8), ("output", 3))
        )
        feeds = {proto.name: numpy_helper.to_array(proto) for proto in inputs}
        steps.append(feeds["forced"].shape)
        got = dict(zip(("tokens", "h1", "c1"), session.run(None, feeds), strict=True))
        for proto in outputs:
            np.testing.assert_allclose(got[proto.name], numpy_helper.to_array(proto), atol=1e-4, err_msg=proto.name)
    assert steps == [(batch, count) for count in (8, 8, STEPS_MAX, 1) for batch in (1, 3, 8)]


def test_the_examples_hold_what_a_server_meets(text_run: Path) -> None:
    exportable = generating(text_run)

    def inputs(name: str) -> dict[str, torch.Tensor]:
        draw = exportable.further_examples.get(name, exportable.examples)
        return dict(zip(exportable.input_names, draw(64, torch.Generator().manual_seed(0)), strict=True))

    plain, restricted, prompt = inputs("examples"), inputs("restricted"), inputs("prompt")
    assert (plain["top_k"] == 0).all()
    assert (plain["top_p"] == 1).all()
    assert (plain["forced"] < 0).all()
    assert plain["h0"].abs().max() > 0, "each goes on from a text"
    assert sorted(set(plain["temperature"].flatten().tolist())) == pytest.approx([0.0, 0.2, 0.5, 1.0, 1.2])
    neither = (restricted["top_k"] == 0) & (restricted["top_p"] == 1)
    assert 0 < neither.sum() < 64
    reading = (prompt["forced"] >= 0).sum(1)
    assert reading.min() == 0
    assert reading.max() == STEPS_MAX // 2


def test_no_character_of_an_example_hangs_by_a_rounding(text_run: Path) -> None:
    """Other processors round differently; what they must repeat exactly may not depend on that."""
    exportable = generating(text_run)
    for draw in (exportable.examples, *exportable.further_examples.values()):
        inputs = dict(zip(exportable.input_names, draw(64, torch.Generator().manual_seed(3)), strict=True))
        tokens = exportable.reference(*inputs.values())[0]
        for change in (-9e-5, 9e-5):
            moved = inputs | {"uniform": (inputs["uniform"] + change).clamp(0, 1 - 2**-24)}
            assert torch.equal(exportable.reference(*moved.values())[0], tokens)


def test_a_generator_that_writes_otherwise_is_not_published(
    text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forwardpass_training.generator_graph.GATES", (0, 1, 2, 3))
    with pytest.raises(ParityFailed):
        publish_generator(text_run, tmp_path, force=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missed_bound_is_said_before_anything_is_written(text_run: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishFailed, match=r"nats_per_character is .*--force"):
        publish_generator(text_run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_a_language_model_has_a_generator(digits_run: Path) -> None:
    with pytest.raises(BadSetting, match="holds a Cnn, which writes no text"):
        export_generator(digits_run)


def test_the_commands_write_publish_and_say_so(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generator", str(text_run)]) == OK
    out = capsys.readouterr().out
    assert out.startswith("parity passed")
    assert out.endswith(f"{text_run / 'generator.onnx'}\n")
    assert json.loads((text_run / "generator_parity.json").read_text())["passed"] is True
    assert main(["generator", str(text_run), "--repository", str(tmp_path), "--force"]) == OK
    assert f"shakespeare_lstm_generator version 1: {tmp_path}" in capsys.readouterr().out

    assert main(["sample", str(text_run), "--prompt", "the ", "--characters", "30", "--seed", "5"]) == OK
    text = capsys.readouterr().out
    assert text == f"the {go_on(network(text_run), VOCABULARY, 'the ', characters=30, temperature=0.8, seed=5)}\n"
    assert main(["sample", str(text_run), "--prompt", "THE"]) == FAILED
    assert "the prompt has 'E', 'H', 'T', which the network does not know" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"characters": 0},
        {"prompt": ""},
    ],
)
def test_a_text_that_cannot_be_is_refused(text_run: Path, settings: dict[str, object]) -> None:
    usual: dict[str, object] = {"prompt": "the", "characters": 4, "temperature": 1.0, "seed": 0}
    with pytest.raises(BadSetting):
        go_on(network(text_run), VOCABULARY, **(usual | settings))  # type: ignore[arg-type]


def test_a_seed_decides_a_text_and_a_longer_one_begins_like_it() -> None:
    torch.manual_seed(0)
    net = CharLstmConfig(vocabulary=len(VOCABULARY), hidden=8).build()

    def text(characters: int, seed: int) -> str:
        return go_on(net, VOCABULARY, "the ", characters=characters, temperature=1.0, seed=seed)

    assert text(40, 1) == text(40, 1)
    assert text(40, 1) != text(40, 2)
    assert text(60, 1).startswith(text(40, 1))


def test_a_run_keeps_texts_at_four_temperatures(text_run: Path) -> None:
    files = sorted((text_run / "samples").iterdir())
    assert [file.name for file in files] == ["epoch-0001.txt", "epoch-0002.txt"]
    last = files[-1].read_text()
    for temperature in TEMPERATURES:
        wanted = go_on(network(text_run), VOCABULARY, "\n", characters=400, temperature=temperature, seed=0)
        assert f"--- temperature {temperature:g} ---\n{wanted}\n" in last


def test_texts_are_kept_ten_times_a_run_and_at_its_end() -> None:
    assert [epoch for epoch in range(1, 53) if is_sampled(epoch, 52)] == [*range(5, 51, 5), 52]
    assert [epoch for epoch in range(1, 4) if is_sampled(epoch, 3)] == [1, 2, 3]


def test_the_sequence_graph_of_an_embedded_network_still_steps(text_run: Path, tmp_path: Path) -> None:
    exportable = run.exportable(text_run)
    file = export(exportable, tmp_path / "model.onnx")
    tokens, h, c = exportable.examples(3, torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    got = session.run(None, {"tokens": tokens.numpy(), "h0": h.numpy(), "c0": c.numpy()})
    for found, wanted in zip(got, exportable.reference(tokens, h, c), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_a_network_with_state_is_published_for_sequences(text_run: Path, tmp_path: Path) -> None:
    assert (
        main(["publish", str(text_run), "--repository", str(tmp_path), "--model", "m", "--force", "--sequences"]) == OK
    )
    message = text_format.Parse((tmp_path / "m" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    states = [(state.input_name, state.output_name) for state in message.sequence_batching.state]
    assert states == [("h0", "h1"), ("c0", "c1")]
    assert message.sequence_batching.oldest.max_candidate_sequences > 1


def test_a_network_without_state_has_no_sequences(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(digits_run), "--repository", str(tmp_path), "--force", "--sequences"]) == FAILED
    assert "digits_cnn keeps no state" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
