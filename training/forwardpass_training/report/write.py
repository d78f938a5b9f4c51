"""From a trained network to everything that is told about it: findings, model card, reference statistics, the page."""

from pathlib import Path

from torch import nn

from forwardpass_training import card, reference_statistics
from forwardpass_training.config import RunConfig
from forwardpass_training.data import Dataset
from forwardpass_training.evaluate import Evaluation
from forwardpass_training.folder import RunFolder, write_whole
from forwardpass_training.report.findings import FINDINGS_FILE, find
from forwardpass_training.report.page import draw


def write(folder: RunFolder, config: RunConfig, dataset: Dataset, network: nn.Module, held_out: Evaluation) -> Path:
    """Leave `report.json`, `card.md`, `reference_statistics.json` and `report.html` in a run folder. Returns the page.

    Args:
        folder: of the run; its `metrics.json` is there.
        config: its settings.
        dataset: its data.
        network: trained; used, not changed.
        held_out: the network's evaluation.

    Raises:
        RunFolderError: the folder holds no finished run, or cannot be written.
    """
    folder.write_json(FINDINGS_FILE, find(config, dataset, network, held_out))
    statistics = reference_statistics.of(config.task, dataset, network, held_out)
    folder.write_json(reference_statistics.STATISTICS_FILE, statistics)
    text = card.of_run(folder)
    write_whole(folder.path / card.CARD_FILE, lambda file: file.write(text.encode()))
    return draw(folder)
