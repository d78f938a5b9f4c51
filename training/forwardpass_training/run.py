"""One run, from config to a folder that holds everything known about it; and back from the folder to a network."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from forwardpass_training import checkpoint, report, software
from forwardpass_training.card import CARD_FILE
from forwardpass_training.checkpoint import Checkpoint
from forwardpass_training.config import RunConfig, to_json
from forwardpass_training.data import Dataset, DataStore, Split
from forwardpass_training.device import DeviceName, choose, describe, make_repeatable, sensible_threads
from forwardpass_training.errors import BadSetting, DataError, Interrupted
from forwardpass_training.evaluate import HEADLINE, Evaluation, evaluate
from forwardpass_training.exportable import Examples, Exportable, Tensors
from forwardpass_training.folder import RunFolder
from forwardpass_training.models import CharLstm, served
from forwardpass_training.progress import Reporter, is_told
from forwardpass_training.reference_statistics import STATISTICS_FILE
from forwardpass_training.report.words import settings_of
from forwardpass_training.samples import is_sampled, write_samples
from forwardpass_training.task import Task
from forwardpass_training.tracking import NoTracker, Tracker, tracked
from forwardpass_training.train import steps_per_epoch, train

PROMPT_CHARACTERS = 40

LOSS_TITLES: dict[Task, str] = {
    "regression": "mean squared error",
    "binary": "binary cross-entropy, nats",
    "multiclass": "cross-entropy, nats",
    "language": "cross-entropy, nats per character",
}


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a run needs from the machine and does not change what it learns (but see `threads`)."""

    store: DataStore = field(default_factory=DataStore.from_environment)
    device: DeviceName = "auto"
    threads: int | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(quiet=True))
    tracker: Tracker = field(default_factory=NoTracker)


def start(config: RunConfig, runs_dir: Path, surroundings: Surroundings) -> RunFolder:
    """Train a recipe from scratch into a new folder below `runs_dir`, evaluate it, and draw its pictures.

    Raises:
        TrainingError: see `errors`; `Interrupted` after Ctrl-C, with the command that resumes.
    """
    dataset = config.data.load(surroundings.store)
    # refuse what cannot be trained before a folder is made
    config = dataclasses.replace(config, model=config.model.fitted(dataset))
    steps_per_epoch(config, dataset.for_choosing(config.validation_share).train)
    choose(surroundings.device)
    folder = RunFolder.create(runs_dir, config, datetime.now(UTC))
    folder.write_json("data.json", dataset.provenance.to_json())
    _train_and_record(folder, config, dataset, None, surroundings)
    return folder


def resume(path: Path, surroundings: Surroundings, *, epochs: int | None = None) -> RunFolder:
    """Go on where a run was stopped, or train a finished one further, to `epochs` in all.

    On the CPU, with the same number of threads, the weights are those of a run that was never stopped.

    Raises:
        TrainingError: see `errors`.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    state = checkpoint.load(folder.checkpoint)
    if epochs is not None:
        if epochs < state.epochs:
            raise BadSetting(f"{path} is already trained for {state.epochs} epochs; --epochs {epochs} cannot undo them")
        config = dataclasses.replace(config, epochs=epochs)
    dataset = _load_same_data(folder, config, surroundings.store)
    folder.write_json("config.json", to_json(config))
    _train_and_record(folder, config, dataset, state, surroundings)
    return folder


def reevaluate(path: Path, surroundings: Surroundings) -> tuple[RunFolder, Evaluation]:
    """Evaluate the network of a run again on its held-out data; changes nothing."""
    folder = RunFolder.open(path)
    config = folder.config()
    make_repeatable(_threads(config, surroundings))
    state = checkpoint.load(folder.checkpoint)
    network = checkpoint.restore(state.answering, config.model.build()).to(choose(surroundings.device))
    return folder, _judged(config, network, _load_same_data(folder, config, surroundings.store), state.epochs)


def look_again(path: Path, surroundings: Surroundings) -> Path:
    """Write the report of a finished run anew, from its network and data. Returns the page.

    Raises:
        TrainingError: see `errors`.
    """
    folder, held_out = reevaluate(path, surroundings)
    config = folder.config()
    network = _trained(folder, config).to(choose(surroundings.device))
    dataset = _load_same_data(folder, config, surroundings.store)
    return report.write(folder, config, dataset, network, held_out)


def metrics(path: Path) -> dict[str, Any]:
    """What `metrics.json` of a finished run says."""
    found: dict[str, Any] = RunFolder.open(path).read_json("metrics.json")
    return found


def dataset(path: Path, store: DataStore | None = None) -> Dataset:
    """The data of a run, which is what it began with.

    Args:
        path: the run folder.
        store: where its data is found; by default as the environment says.

    Raises:
        RunFolderError: no run there.
        DataError: its data cannot be had, or is not what it began with.
    """
    folder = RunFolder.open(path)
    return _load_same_data(folder, folder.config(), store or DataStore.from_environment())


def network(path: Path) -> nn.Module:
    """The network of a finished run, in eval mode, on the CPU.

    Raises:
        RunFolderError: no run there, or one that did not finish.
        CheckpointError: its weights are damaged.
    """
    folder = RunFolder.open(path)
    folder.read_json("metrics.json")
    return _trained(folder, folder.config()).eval().requires_grad_(False)


def exportable(path: Path, store: DataStore | None = None) -> Exportable:
    """The network of a finished run, ready to export, on the CPU.

    Args:
        path: the run folder.
        store: where its data is found; by default as the environment says.

    Raises:
        RunFolderError: no run there, or one that did not finish.
        CheckpointError: its weights are damaged.
        DataError: its data cannot be had, or is not the data it was trained on.
    """
    folder = RunFolder.open(path)
    config, recorded = folder.config(), folder.read_json("metrics.json")
    dataset = _load_same_data(folder, config, store or DataStore.from_environment())
    network = _trained(folder, config)
    outside, told = served(network, config.task), _told(path)
    if isinstance(network, CharLstm):
        examples: Examples = _text_examples(network, dataset.test, PROMPT_CHARACTERS)
        further: Mapping[str, Examples] = {"step": _text_examples(network, dataset.test, 1)}
    else:
        examples, further = _row_examples(dataset.test), {}
    return Exportable(
        module=outside.module,
        reference=outside.reference,
        input_names=outside.input_names,
        output_names=outside.output_names,
        dynamic=outside.dynamic,
        examples=examples,
        further_examples=further,
        metadata=_metadata(config, dataset, recorded, card=told.get(CARD_FILE)),
        states=outside.states,
        companions=told,
    )


def _train_and_record(
    folder: RunFolder, config: RunConfig, dataset: Dataset, state: Checkpoint | None, surroundings: Surroundings
) -> None:
    """Train, keeping a checkpoint after every epoch; then write metrics, pictures and the report."""
    trained_by = software.describe()  # what is in memory now; a checkout moves on while a run trains
    with tracked(surroundings.tracker, folder.path, config.name, settings_of(to_json(config))) as tracker:
        network, latest, device = _train(folder, config, dataset, state, surroundings)
        held_out = _record(folder, config, dataset, network, latest, device, trained_by)
        tracker.finish(held_out.metrics, folder.path / report.REPORT_FILE)


def _train(
    folder: RunFolder, config: RunConfig, dataset: Dataset, state: Checkpoint | None, surroundings: Surroundings
) -> tuple[nn.Module, Checkpoint, torch.device]:
    """The network, the state it ended in, and where it is.

    Raises:
        Interrupted: with the command that resumes.
    """
    reporter = surroundings.reporter
    make_repeatable(_threads(config, surroundings))
    device = choose(surroundings.device)
    steps = steps_per_epoch(config, dataset.for_choosing(config.validation_share).train)
    latest = state

    def keep(now: Checkpoint) -> None:
        nonlocal latest
        checkpoint.save(now, folder.checkpoint)
        latest = now
        if now.history:
            surroundings.tracker.epoch(now.epochs, now.history[-1])
            if config.task == "language" and is_sampled(now.epochs, config.epochs):
                writer = checkpoint.restore(now.answering, config.model.build())
                assert isinstance(writer, CharLstm)
                write_samples(folder.path, writer, dataset, epoch=now.epochs, seed=config.seed)
            if is_told(now.epochs, config.epochs):
                reporter.line(_epoch_line(config, now))

    done = state.epochs if state else 0
    try:
        with reporter.steps(steps * config.epochs, steps * done) as stepped:
            network = train(
                config,
                dataset,
                device,
                start=state,
                on_step=lambda epoch, loss: stepped(f"epoch {epoch + 1}/{config.epochs}  loss {loss:.4f}"),
                on_epoch=keep,
            )
    except KeyboardInterrupt as exc:
        finished = latest.epochs if latest else 0
        raise Interrupted(
            f"stopped; {finished} of {config.epochs} epochs are kept\nresume: forwardpass-train resume {folder.path}"
        ) from exc
    assert latest is not None
    return network, latest, device


def _record(
    folder: RunFolder,
    config: RunConfig,
    dataset: Dataset,
    network: nn.Module,
    state: Checkpoint,
    device: torch.device,
    trained_by: dict[str, Any],
) -> Evaluation:
    held_out = _judged(config, network, dataset, state.epochs)
    headline = HEADLINE[config.task].replace("_", " ")
    report.save_curves(
        state.history,
        folder.path / "loss.png",
        title=config.name,
        loss=LOSS_TITLES[config.task],
        metric=headline.replace("r2", "R²"),
    )
    confusion = None
    if held_out.confusion is not None:
        confusion = held_out.confusion.tolist()
        title = f"{config.name}: {held_out.metrics['accuracy']:.2%} of {len(dataset.test):,} right"
        report.save_confusion(held_out.confusion, dataset.labels, folder.path / "confusion.png", title=title)
    values = {
        "recipe": config.name,
        "task": config.task,
        "seed": config.seed,
        "epochs": state.epochs,
        "train_s": round(sum(epoch.seconds for epoch in state.history), 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "held_out": held_out.metrics,
        "gates": [{"gate": str(gate), "passed": gate.holds(held_out.metrics)} for gate in config.gates],
        "confusion": confusion,
        "history": [asdict(epoch) for epoch in state.history],
        "machine": describe(device),
        **trained_by,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    folder.write_json("metrics.json", values)  # a folder that has it is a finished run
    report.write(folder, config, dataset, network, held_out)
    return held_out


def _judged(config: RunConfig, network: nn.Module, dataset: Dataset, epochs: int) -> Evaluation:
    """How the network does on held-out data, and the privacy that its epochs have spent."""
    found = evaluate(network, config.task, dataset)
    if config.privacy:
        assert config.batch_size
        learnt = dataset.for_choosing(config.validation_share).train
        steps = epochs * steps_per_epoch(config, learnt)
        found.metrics["epsilon"] = config.privacy.epsilon(rows=len(learnt), batch_size=config.batch_size, steps=steps)
    return found


def _threads(config: RunConfig, surroundings: Surroundings) -> int:
    if surroundings.threads is not None:
        return surroundings.threads
    parameters = sum(parameter.numel() for parameter in config.model.build().parameters())
    return sensible_threads(parameters, (config.batch_size or 1) * (config.window or 1))


def _epoch_line(config: RunConfig, state: Checkpoint) -> str:
    epoch = state.history[-1]
    return (
        f"epoch {state.epochs:>{len(str(config.epochs))}}/{config.epochs}  training loss {epoch.train_loss:.4f}  "
        f"held-out loss {epoch.test_loss:.4f}  {HEADLINE[config.task]} {epoch.metric:.4f}  {epoch.seconds:.1f} s"
    )


def _trained(folder: RunFolder, config: RunConfig) -> nn.Module:
    """The network of a run's checkpoint, on the CPU."""
    return checkpoint.restore(checkpoint.load(folder.checkpoint).answering, config.model.build())


def _load_same_data(folder: RunFolder, config: RunConfig, store: DataStore) -> Dataset:
    """The run's data, or DataError where it is not what the run began with."""
    dataset = config.data.load(store)
    began_with = folder.read_json("data.json")["sha256"]
    if dataset.provenance.sha256 != began_with:
        raise DataError(
            f"the data of {folder.path} has SHA-256 {dataset.provenance.sha256} now and had {began_with} when the run "
            "began (another version of a library, or a damaged data.json); run the recipe again"
        )
    return dataset


def _row_examples(split: Split) -> Examples:
    """Held-out rows, drawn without repeats while there are enough."""

    def draw(batch: int, generator: Generator) -> Tensors:
        rows = torch.arange(batch) % len(split)
        return (split.inputs[torch.randperm(len(split), generator=generator)[rows]],)

    return draw


def _text_examples(network: CharLstm, split: Split, characters: int) -> Examples:
    """Held-out pieces of text, each with the state that the 40 characters before it leave behind."""

    @torch.no_grad()
    def draw(batch: int, generator: Generator) -> Tensors:
        begin = torch.randint(len(split) - PROMPT_CHARACTERS - characters, (batch, 1), generator=generator)
        tokens = split.inputs[begin + torch.arange(PROMPT_CHARACTERS + characters)]
        _, h, c = network(tokens[:, :PROMPT_CHARACTERS], *network.zero_state(batch))
        return tokens[:, PROMPT_CHARACTERS:].contiguous(), h.contiguous(), c.contiguous()

    return draw


def _metadata(config: RunConfig, dataset: Dataset, recorded: dict[str, Any], *, card: str | None) -> dict[str, str]:
    """What the ONNX file says about itself; text, or JSON where it is structured."""
    metadata = {
        "task": config.task,
        "recipe": config.name,
        "metrics": json.dumps(recorded["held_out"]),
        "data": json.dumps(dataset.provenance.to_json()),
        "config": json.dumps(to_json(config)),
        "created": recorded["finished"],
        "versions": json.dumps(recorded.get("versions", {})),
    }
    if dataset.labels:
        metadata["labels"] = json.dumps(dataset.labels)
    if dataset.vocabulary:
        metadata["vocabulary"] = json.dumps(dataset.vocabulary)
    if card:
        metadata["card"] = card
    if commit := recorded.get("commit"):
        metadata["commit"] = commit
    return {f"forwardpass.{key}": value for key, value in metadata.items()}


def _told(path: Path) -> dict[str, str]:
    """The files beside the report that travel with the model; runs of before there were reports have none."""
    files = [path / name for name in (CARD_FILE, STATISTICS_FILE)]
    return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}
