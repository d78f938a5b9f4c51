"""A whole run: its folder, interruption, resuming, and what it hands to export."""

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from forwardpass_training import checkpoint, run, software, train
from forwardpass_training.config import RunConfig
from forwardpass_training.data import DataStore, SumData, shakespeare
from forwardpass_training.data.store import RemoteFile
from forwardpass_training.errors import BadSetting, CheckpointError, DataError, Interrupted, RunFolderError
from forwardpass_training.folder import RunFolder
from forwardpass_training.models import CharLstmConfig
from forwardpass_training.recipes import digits_cnn, mlp_classifier, shakespeare_lstm
from forwardpass_training.run import Surroundings

QUIET = Surroundings(store=DataStore.from_environment({}), device="cpu", threads=1)


def tiny() -> RunConfig:
    return replace(mlp_classifier(), epochs=4, data=SumData(train_rows=500, test_rows=100))


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder.checkpoint).network


def assert_bit_identical(first: RunFolder, second: RunFolder) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_folder_holds_everything_known_about_the_run(tmp_path: Path) -> None:
    folder = run.start(tiny(), tmp_path, QUIET)
    names = {path.name for path in folder.path.iterdir()}
    pictures = {"loss.png", "confusion.png"}
    told = {"report.html", "report.json", "card.md", "reference_statistics.json"}
    assert names == {"config.json", "data.json", "checkpoint.pt", "metrics.json"} | pictures | told
    assert folder.config() == tiny()
    found = run.metrics(folder.path)
    assert set(found["held_out"]) == {"accuracy", "precision", "recall", "f1", "roc_auc", "log_loss", "ece"}
    assert [epoch["seconds"] > 0 for epoch in found["history"]] == [True] * 4
    assert found["gates"][0]["gate"] == "accuracy >= 0.97"
    assert found["machine"]["threads"] == 1
    assert found["parameters"] == 10 * 10 + 10 + 10 + 1
    assert sum(map(sum, found["confusion"])) == 100
    provenance = json.loads((folder.path / "data.json").read_text())
    assert provenance["counts"] == {"train": 500, "test": 100}
    assert len(provenance["sha256"]) == 64


def test_evaluating_again_gives_the_same_figures_and_changes_nothing(tmp_path: Path) -> None:
    folder = run.start(tiny(), tmp_path, QUIET)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    _, found = run.reevaluate(folder.path, QUIET)
    assert found.metrics == run.metrics(folder.path)["held_out"]
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def interrupt_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C at the third step of `epoch` (counted from 1)."""
    steps = iter(range(1_000_000))
    losses = train._losses

    def interrupted(*args: Any) -> Any:
        for loss in losses(*args):
            if next(steps) == (epoch - 1) * 16 + 2:
                raise KeyboardInterrupt
            yield loss

    monkeypatch.setattr(train, "_losses", interrupted)


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_stopped_run_resumes_to_the_same_bits(epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run.start(tiny(), tmp_path / "straight", QUIET)
    with monkeypatch.context() as patch:
        interrupt_in(epoch, patch)
        with pytest.raises(Interrupted, match=f"{epoch - 1} of 4 epochs are kept") as caught:
            run.start(tiny(), tmp_path / "stopped", QUIET)
    (path,) = (tmp_path / "stopped").iterdir()
    assert f"forwardpass-train resume {path}" in str(caught.value)
    with pytest.raises(RunFolderError, match="resume"):
        run.metrics(path)
    resumed = run.resume(path, QUIET)
    assert_bit_identical(straight, resumed)
    assert run.metrics(path)["held_out"] == run.metrics(straight.path)["held_out"]


def test_a_finished_run_is_trained_further_to_the_same_bits(tmp_path: Path) -> None:
    straight = run.start(tiny(), tmp_path / "straight", QUIET)
    short = run.start(replace(tiny(), epochs=2), tmp_path / "short", QUIET)
    further = run.resume(short.path, QUIET, epochs=4)
    assert_bit_identical(straight, further)
    assert further.config() == tiny()
    assert run.metrics(further.path)["epochs"] == 4


def test_epochs_cannot_be_taken_back(tmp_path: Path) -> None:
    folder = run.start(tiny(), tmp_path, QUIET)
    with pytest.raises(BadSetting, match="already trained for 4 epochs"):
        run.resume(folder.path, QUIET, epochs=3)
    assert folder.config() == tiny()


def test_a_damaged_checkpoint_is_refused_everywhere(tmp_path: Path) -> None:
    folder = run.start(tiny(), tmp_path, QUIET)
    folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:-100])
    for use in (run.resume, run.reevaluate):
        with pytest.raises(CheckpointError, match="damaged"):
            use(folder.path, QUIET)
    with pytest.raises(CheckpointError, match="damaged"):
        run.exportable(folder.path, QUIET.store)


def test_other_data_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    folder = run.start(tiny(), tmp_path, QUIET)
    folder.write_json("data.json", {**folder.read_json("data.json"), "sha256": "0" * 64})
    for use in (run.resume, run.reevaluate):
        with pytest.raises(DataError, match="had 0000"):
            use(folder.path, QUIET)


def test_a_network_that_does_not_fit_its_data_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="takes rows of 10 numbers"):
        run.start(replace(tiny(), data=SumData(features=9)), tmp_path, QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_that_is_not_there_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="torch sees no CUDA GPU"):
        run.start(tiny(), tmp_path, replace(QUIET, device="cuda"))
    assert list(tmp_path.iterdir()) == []


def test_no_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="threads is 0"):
        run.start(tiny(), tmp_path, replace(QUIET, threads=0))


SLOW_RUN = "run mlp_classifier --epochs 25 --device cpu --threads 1 --runs-dir"
"""Many seconds, of which a line tells each."""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_leaves_a_run_that_resumes(stop: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "forwardpass_training", *SLOW_RUN.split(), str(tmp_path)]
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # one in the background ignores it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ours)
    try:
        assert process.stderr
        assert process.stderr.readline().startswith("epoch  1/25")
        process.send_signal(stop)
        _, said = process.communicate()
    finally:
        process.kill()
        process.wait()
    (path,) = tmp_path.iterdir()
    assert process.returncode == 130
    assert said.endswith(f"resume: forwardpass-train resume {path}\n")
    assert "Traceback" not in said
    kept = checkpoint.load(path / "checkpoint.pt").epochs
    assert run.resume(path, QUIET, epochs=kept + 1).config().epochs == kept + 1


# the hand-over to export


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run.start(replace(digits_cnn(), epochs=1), tmp_path_factory.mktemp("digits"), QUIET)


def test_examples_are_held_out_rows_and_repeatable(digits: RunFolder) -> None:
    exportable = run.exportable(digits.path, QUIET.store)
    (images,) = exportable.examples(64, Generator().manual_seed(1))
    (again,) = exportable.examples(64, Generator().manual_seed(1))
    (other,) = exportable.examples(64, Generator().manual_seed(2))
    assert images.shape == (64, 8, 8)
    assert images.dtype == torch.uint8
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    held_out = {tuple(row.flatten().tolist()) for row in digits.config().data.load(QUIET.store).test.inputs}
    rows = [tuple(row.flatten().tolist()) for row in images]
    assert set(rows) <= held_out
    assert len(set(rows)) == 64
    assert exportable.examples(1_000, Generator())[0].shape == (1_000, 8, 8)  # more than there are


def test_the_reference_answers_as_the_module(digits: RunFolder) -> None:
    exportable = run.exportable(digits.path, QUIET.store)
    inputs = exportable.examples(7, Generator())
    assert torch.equal(exportable.reference(*inputs)[0], exportable.module(*inputs))
    assert not exportable.module.training


def test_metadata_tells_task_labels_metrics_and_data_and_no_path(digits: RunFolder) -> None:
    metadata = run.exportable(digits.path, QUIET.store).metadata
    assert metadata["forwardpass.task"] == "multiclass"
    assert metadata["forwardpass.recipe"] == "digits_cnn"
    assert json.loads(metadata["forwardpass.labels"]) == list("0123456789")
    assert json.loads(metadata["forwardpass.metrics"]) == run.metrics(digits.path)["held_out"]
    assert json.loads(metadata["forwardpass.data"])["counts"] == {"train": 1437, "test": 360}
    assert metadata["forwardpass.created"] == run.metrics(digits.path)["finished"]
    assert "forwardpass.vocabulary" not in metadata
    assert str(digits.path.parent) not in json.dumps(metadata)


def test_an_export_names_the_software_of_the_run_and_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "describe", lambda: {"commit": "0123abc-dirty", "versions": {"torch": "2.0"}})
    folder = run.start(replace(tiny(), epochs=1), tmp_path, QUIET)
    monkeypatch.undo()
    metadata = run.exportable(folder.path, QUIET.store).metadata
    assert metadata["forwardpass.commit"] == "0123abc-dirty"
    assert json.loads(metadata["forwardpass.versions"]) == {"torch": "2.0"}


def test_an_unfinished_run_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in(2, monkeypatch)
    with pytest.raises(Interrupted):
        run.start(tiny(), tmp_path, QUIET)
    (path,) = tmp_path.iterdir()
    with pytest.raises(RunFolderError, match="resume"):
        run.exportable(path, QUIET.store)


def test_a_language_model_gives_prompts_and_steps_with_the_state_that_led_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 60
    (tmp_path / "text.txt").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(shakespeare, "TEXT", RemoteFile("text.txt", len(text), sha256, ()))
    store = DataStore(tmp_path / "never", tmp_path)
    model = CharLstmConfig(vocabulary=len(set(text)), hidden=8)
    config = replace(shakespeare_lstm(), epochs=1, batch_size=4, window=20, model=model)
    folder = run.start(config, tmp_path / "runs", replace(QUIET, store=store))
    exportable = run.exportable(folder.path, store)
    vocabulary = json.loads(exportable.metadata["forwardpass.vocabulary"])
    assert vocabulary == "".join(sorted(set(text)))
    for examples, time in ((exportable.examples, 40), (exportable.further_examples["step"], 1)):
        tokens, h, c = examples(3, Generator().manual_seed(0))
        assert tokens.shape == (3, time)
        assert h.shape == c.shape == (3, 2, 8)
        assert h.abs().max() > 0
        assert all("".join(vocabulary[token] for token in row) in text for row in tokens)
    logits, h1, c1 = exportable.reference(tokens, h, c)
    assert logits.shape == (3, 1, model.vocabulary)
    assert h1.shape == c1.shape == (3, 2, 8)
