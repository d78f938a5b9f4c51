"""Which models stand on which: ensembles and the models of their steps."""

from __future__ import annotations

from collections.abc import Iterable, Set

from forwardpass_server.lifecycle import ensemble
from forwardpass_server.lifecycle.config_pbtxt import ConfigReader
from forwardpass_server.lifecycle.repository import Scan


class Families:
    """Reads the steps of ensembles out of their configurations. Repository thread.

    Args:
        configs: of all models.
    """

    def __init__(self, configs: ConfigReader) -> None:
        self._configs = configs

    def steps_of(self, name: str, found: Scan) -> set[str]:
        """The models of an ensemble's steps, and of theirs; empty for what is none."""
        steps: set[str] = set()
        new = {name}
        while new:
            new = {
                model
                for each in new
                if each in found.models
                for model, _ in ensemble.models_of(self._configs.settings(found.models[each]))
            } - steps
            steps |= new
        return steps

    def steps_alone(self, name: str, found: Scan, asked: Set[str]) -> set[str]:
        """The models of an ensemble's steps that no other ensemble among those `asked` for stands on."""
        own = self.steps_of(name, found)
        others: set[str] = set()
        for other in asked - own - {name}:
            others |= self.steps_of(other, found)
        return own - others

    def in_order(self, known: Iterable[str], found: Scan) -> list[str]:
        """Every model, found or `known`, the steps of an ensemble before it."""
        steps = {
            name: [model for model, _ in ensemble.models_of(self._configs.settings(folder))]
            for name, folder in found.models.items()
        }
        return ensemble.steps_first({*found.models, *known}, steps)
