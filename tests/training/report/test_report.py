"""The report of real runs of every task: it says what the run's files say, fetches nothing, and survives any names."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from forwardpass_training import checkpoint, run
from forwardpass_training.card import CARD_BYTES_MAX, bounded
from forwardpass_training.config import RunConfig
from forwardpass_training.data import ClustersData, DataStore, LineData, SumData, shakespeare
from forwardpass_training.data.store import RemoteFile
from forwardpass_training.errors import RunFolderError
from forwardpass_training.folder import RunFolder
from forwardpass_training.models import CharLstmConfig
from forwardpass_training.recipes import (
    digits_cnn,
    linear_regression,
    logistic_regression,
    mlp_classifier,
    shakespeare_lstm,
)
from forwardpass_training.report import draw, words
from forwardpass_training.run import Surroundings

QUIET = Surroundings(store=DataStore.from_environment({}), device="cpu", threads=1)
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements, ids and text of a page; fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.elements: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.add(tag)
        assert not [name for name in given if name.startswith("on")]
        if tag == "img":
            self.images.append(given)
        if tag == "svg":
            assert given["role"] == "img"
            assert given["aria-label"]
        self.ids += [str(given["id"])] if "id" in given else []
        self.targets += [str(given["href"])] if "href" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data.strip())
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def text_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Surroundings]:
    text = "the quick brown fox jumps over the lazy dog. " * 60
    (folder / "text.txt").write_text(text)
    remote = RemoteFile("text.txt", len(text), hashlib.sha256(text.encode()).hexdigest(), ())
    monkeypatch.setattr(shakespeare, "TEXT", remote)
    model = CharLstmConfig(vocabulary=len(set(text)), hidden=8)
    config = replace(shakespeare_lstm(), epochs=1, batch_size=4, window=20, model=model)
    return config, replace(QUIET, store=DataStore(folder / "never", folder))


Runs = Callable[[str], RunFolder]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One short run of each task, each made when first asked for."""
    made: dict[str, RunFolder] = {}

    def get(task: str) -> RunFolder:
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            with pytest.MonkeyPatch.context() as patch:
                config, surroundings = {
                    "regression": lambda: (replace(linear_regression(), epochs=5), QUIET),
                    "binary": lambda: (
                        replace(mlp_classifier(), epochs=2, data=SumData(train_rows=500, test_rows=100)),
                        QUIET,
                    ),
                    "multiclass": lambda: (replace(digits_cnn(), epochs=1), QUIET),
                    "language": lambda: text_config(root, patch),
                }[task]()
                made[task] = run.start(config, root / "runs", surroundings)
        return made[task]

    return get


def page_of(folder: RunFolder) -> Page:
    return Page((folder.path / "report.html").read_text(encoding="utf-8"))


TASKS = ["regression", "binary", "multiclass", "language"]


@pytest.mark.parametrize("task", TASKS)
def test_every_figure_that_the_run_recorded_is_on_the_page(task: str, runs: Runs) -> None:
    folder = runs(task)
    page, recorded = page_of(folder), run.metrics(folder.path)
    for name, value in recorded["held_out"].items():
        assert f"{words.title(name)} {words.figure(value)}" in page.text
    for low, high in folder.read_json("report.json")["intervals"].values():
        assert f"{words.figure(low)} – {words.figure(high)}" in page.text
    assert folder.read_json("data.json")["sha256"] in page.text
    assert f"learning_rate {folder.config().learning_rate:g}" in page.text
    assert recorded["machine"]["torch"] in page.text
    for gate in recorded["gates"]:
        assert f"{'reached' if gate['passed'] else 'missed'}: {gate['gate']}" in page.text


@pytest.mark.parametrize("task", TASKS)
def test_the_page_is_one_file_that_fetches_and_runs_nothing(task: str, runs: Runs) -> None:
    text = (runs(task).path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.elements
    assert "default-src 'none'" in text
    assert all(target.startswith("#") or target == "data:," for target in page.targets)
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.images)
    assert not re.search(r"https?://|url\(|@import", text)
    assert len(text) < 1_000_000


@pytest.mark.parametrize("task", TASKS)
def test_whoever_cannot_see_or_jumps_finds_the_way(task: str, runs: Runs) -> None:
    page = page_of(runs(task))
    assert all(image["alt"] for image in page.images)
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets if target.startswith("#")} == set(page.ids)
    assert len(page.headings) == len(page.ids) + 1


def test_each_task_has_its_own_sections(runs: Runs) -> None:
    sections = {task: set(page_of(runs(task)).ids) for task in TASKS}
    common = {"metrics", "curves", "mistakes", "export", "data", "settings", "provenance"}
    assert sections["regression"] == common | {"errors"}
    assert sections["binary"] == common | {"classes", "calibration"}
    assert sections["multiclass"] == common | {"classes", "calibration", "saliency", "robustness"}
    assert sections["language"] == common | {"writing"}


def test_mistakes_are_wrong_and_the_surest_come_first(runs: Runs) -> None:
    found = runs("multiclass").read_json("report.json")
    mistakes = found["mistakes"]
    assert 0 < len(mistakes) == min(12, found["wrong"])
    assert all(each["true"] != each["answered"] for each in mistakes)
    assert [each["of_truth"] for each in mistakes] == sorted(each["of_truth"] for each in mistakes)
    confusion = np.array(run.metrics(runs("multiclass").path)["confusion"])
    assert found["wrong"] == confusion.sum() - confusion.trace()


def test_saliency_is_brightest_where_a_small_change_moves_the_score_most(runs: Runs) -> None:
    folder = runs("multiclass")
    saliency = folder.read_json("report.json")["saliency"]
    assert [each["true"] for each in saliency] == list("0123456789")
    assert len(page_of(folder).images) == 12 + 12 + 2 * 10  # samples, mistakes, pairs
    network = checkpoint.restore(checkpoint.load(folder.checkpoint).answering, folder.config().model.build())
    network.double().eval()
    test = run.dataset(folder.path, QUIET.store).test
    for label in (0, 7):
        image = test.inputs[int((test.targets == label).nonzero()[0])].double()
        nudged = image + 1e-4 * torch.eye(64, dtype=torch.float64).reshape(64, 8, 8)
        white = float(network.white)  # type: ignore[arg-type]
        score = int(by_hand(network, image[None], white).argmax())
        moved = (by_hand(network, nudged, white) - by_hand(network, image[None], white))[:, score].abs()
        encoded = saliency[label]["heat"].removeprefix("data:image/png;base64,")
        heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))).astype(int).sum(axis=2)
        assert int(heat.argmax()) == int(moved.argmax())


@torch.no_grad()
def by_hand(network: Any, images: torch.Tensor, white: float) -> torch.Tensor:
    """The scores in float64: the network itself would round to float32."""
    scores: torch.Tensor = network.layers(images.unsqueeze(1) / white)
    return scores


def test_a_text_is_written_from_its_own_characters_and_again_the_same(runs: Runs) -> None:
    found = runs("language").read_json("report.json")
    page, card = (runs("language").path / name for name in ("report.html", "card.md"))
    assert [each["temperature"] for each in found["texts"]] == [0.2, 0.5, 1.0, 1.2]
    for each in found["texts"]:
        assert len(each["text"]) == 400
        assert set(each["text"]) <= set("the quick brown fox jumps over the lazy dog. ")
        assert each["text"] in page.read_text()
        assert f"Temperature {each['temperature']:g}:\n\n    {each['text'][:240]}".rstrip() in card.read_text()
    nats = [each["nats"] for each in found["surprises"]]
    assert nats == sorted(nats, reverse=True)
    assert sum(each["share"] for each in found["loss_by_character"]) <= 1 + 1e-9


def test_drawn_again_it_is_the_same_and_shows_what_has_come_since(runs: Runs) -> None:
    folder = runs("multiclass")
    before = (folder.path / "report.html").read_bytes()
    draw(folder)
    assert (folder.path / "report.html").read_bytes() == before
    assert "Not attacked yet" in page_of(folder).text
    settings = {"epsilons": [0.1, 0.2], "steps": 20, "restarts": 3}
    robustness = {
        "settings": settings,
        "rows": 1_000,
        "clean": 0.98,
        "artefact": {"file": "model.onnx"},
        "accuracy": {"fgsm": [0.5, 0.25], "pgd": [0.375, 0.125]},
        "worst": [0.375, 0.125],
        "intervals": [[0.34, 0.41], [0.1, 0.15]],
    }
    difference = {"max_abs_error": 1e-7, "max_rel_error": 1e-6, "tolerance_used": 0.01, "failure": None}
    failing = {**difference, "failure": "|y − g| is 1 <at> [0]"}
    parity = {
        "passed": False,
        "max_abs_error": 1e-7,
        "tolerance_used": 0.01,
        "atol": 3e-5,
        "rtol": 3e-5,
        "onnxruntime": "1.2.3",
        "torch": "4.5.6",
        "comparisons": [
            {"output": "p", "case": "examples", "batch": batch, "against": "torch", "difference": each}
            for batch, each in ((1, difference), (2, failing))
        ],
    }
    variants = {
        "headline": "accuracy",
        "held_out": 360,
        "machine": {"processor": "a processor"},
        "variants": [
            {
                "variant": "fp32",
                "metrics": {"accuracy": 0.9444},
                "quality_loss": 0.0,
                "file_bytes": 4096,
                "latency_s": {"1": 1e-5},
                "offered": True,
                "refused": [],
            },
            {
                "variant": "fp16",
                "metrics": {},
                "quality_loss": None,
                "file_bytes": None,
                "latency_s": {},
                "offered": False,
                "refused": ["SIGSEGV while loading it"],
            },
        ],
    }
    others = {"robustness.json": robustness, "parity.json": parity, "optimise.json": variants}
    try:
        for name, values in others.items():
            folder.write_json(name, values)
        draw(folder)
        text = page_of(folder).text
        assert "37.5\N{NO-BREAK SPACE}%" in (folder.path / "report.html").read_text()
        assert "NOT equal" in text
        assert "p: |y − g| is 1 <at> [0]" in text
        assert "fp32 0.9444 0.0000 4.0 KiB 10 the default" in text
        assert "refused : SIGSEGV while loading it" in text
    finally:
        for name in others:
            (folder.path / name).unlink()
        draw(folder)


def test_names_from_the_data_are_text_and_never_markup(runs: Runs, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for file in ("metrics.json", "data.json", "config.json", "report.json"):
        text = (runs("binary").path / file).read_text(encoding="utf-8")
        (tmp_path / file).write_text(text, encoding="utf-8")
    evil = "<script>alert(1)</script>\"'"
    found = folder.read_json("report.json")
    found["labels"] = [evil, "b & c"]
    folder.write_json("report.json", found)
    folder.write_json("data.json", {**folder.read_json("data.json"), "source": evil})
    draw(folder)
    page = page_of(folder)
    assert "script" not in page.elements
    assert evil in page.text


def test_a_run_without_findings_has_a_page_all_the_same(runs: Runs, tmp_path: Path) -> None:
    for task in TASKS:
        folder = RunFolder(tmp_path / task)
        folder.path.mkdir()
        for file in ("metrics.json", "data.json", "config.json"):
            (folder.path / file).write_bytes((runs(task).path / file).read_bytes())
        draw(folder)
        assert {"metrics", "curves", "data", "settings"} <= set(page_of(folder).ids)


def test_an_unfinished_or_damaged_run_is_refused(runs: Runs, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match="did not finish"):
        draw(folder)
    for file in ("metrics.json", "data.json", "config.json"):
        (tmp_path / file).write_bytes((runs("binary").path / file).read_bytes())
    (tmp_path / "parity.json").write_text('{"passed": tr')
    with pytest.raises(RunFolderError, match=r"cannot read .*parity\.json"):
        draw(folder)
    assert not (tmp_path / "report.html").exists()


def test_more_classes_than_a_matrix_can_show_are_pairs(runs: Runs, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for file in ("data.json", "config.json"):
        (tmp_path / file).write_bytes((runs("multiclass").path / file).read_bytes())
    confusion = np.diag(np.full(30, 9))
    confusion[3, 17] = 5
    metrics: dict[str, Any] = run.metrics(runs("multiclass").path)
    folder.write_json("metrics.json", {**metrics, "confusion": confusion.tolist()})
    draw(folder)
    text = page_of(folder).text
    assert "Most often confused true answered rows 3 17 5" in text
    assert "Confusion matrix" not in text


def test_no_mistakes_are_said_to_be_none(tmp_path: Path) -> None:
    config = replace(logistic_regression(), data=ClustersData(centre=6.0, test_rows=100))
    folder = run.start(config, tmp_path, QUIET)
    assert run.metrics(folder.path)["held_out"]["accuracy"] == 1
    assert "No held-out row is answered wrongly" in page_of(folder).text
    assert "Worst mistakes" not in page_of(folder).headings


def test_one_row_and_one_epoch_are_enough_for_a_page(tmp_path: Path) -> None:
    config = replace(linear_regression(), epochs=1, data=LineData(train_rows=2, test_rows=1))
    assert "Held-out metrics" in page_of(run.start(config, tmp_path, QUIET)).headings


def test_looking_again_gives_the_same_report(runs: Runs) -> None:
    folder = runs("binary")
    before = {name: (folder.path / name).read_bytes() for name in ("report.html", "report.json", "card.md")}
    assert run.look_again(folder.path, QUIET) == folder.path / "report.html"
    assert {name: (folder.path / name).read_bytes() for name in before} == before


# the model card


@pytest.mark.parametrize("task", TASKS)
def test_the_card_says_the_same_figures_and_travels_in_the_file(task: str, runs: Runs) -> None:
    folder = runs(task)
    card = (folder.path / "card.md").read_text(encoding="utf-8")
    recorded = run.metrics(folder.path)
    assert card.startswith(f"# {recorded['recipe']}\n")
    for name, value in recorded["held_out"].items():
        assert f"- {words.title(name)}: {words.figure(value)}" in card
    assert len(card.encode()) <= CARD_BYTES_MAX
    if task != "language":  # whose data is only there while its fixture runs
        exportable = run.exportable(folder.path, QUIET.store)
        assert exportable.metadata["forwardpass.card"] == card
        assert exportable.companions["card.md"] == card
        statistics = json.loads(exportable.companions["reference_statistics.json"])
        assert list(statistics["inputs"]) == list(exportable.input_names)
        assert list(statistics["outputs"]) == list(exportable.output_names)


def test_a_long_card_is_cut_at_the_end_of_a_line() -> None:
    text = "".join(f"ä line {number}\n" for number in range(1_000))
    cut = bounded(text)
    assert len(cut.encode()) <= CARD_BYTES_MAX
    assert cut.endswith("\n…\n")
    assert text.startswith(cut.removesuffix("…\n"))
    assert bounded("short\n") == "short\n"
