"""What admins have ordered: which models are asked for, and each order until it is answered.

An order changes what is asked for once, when the repository thread takes it in hand; then the model, the models of its
steps and the ensembles that it is a step of are followed, as often as it takes, and the order is answered when none of
them is waited for any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from forwardpass_server.errors import ForwardpassError, InvalidRequest, NotFound, Stopping
from forwardpass_server.lifecycle.config_pbtxt import ConfigReader, parse_json
from forwardpass_server.lifecycle.families import Families
from forwardpass_server.lifecycle.ledger import Ledger
from forwardpass_server.lifecycle.model_settings import UnsupportedConfig
from forwardpass_server.lifecycle.orders import Answer, Order, Orders
from forwardpass_server.lifecycle.repository import RepositoryUnreadable, Scan
from forwardpass_server.lifecycle.states import State
from forwardpass_server.logs import event

log = logging.getLogger(__name__)

Follow = Callable[[str, Scan], bool]
"""Loads and lets go of versions of a model until what is asked for is so. Returns whether one is waited for."""


class Ordered:
    """The models that are asked for, and the orders that change them.

    Args:
        asked: the models to load at first; None for all that are found.
        ledger: what became of each version.
        configs: of all models.
        follow: see `Follow`.
        stopping: whether the server stops.
    """

    def __init__(
        self,
        asked: frozenset[str] | None,
        ledger: Ledger,
        configs: ConfigReader,
        *,
        follow: Follow,
        stopping: Callable[[], bool],
    ) -> None:
        self.asked = asked
        """The models to load; None for all that are found. Changed on the repository thread."""
        self.families = Families(configs)
        self._ledger = ledger
        self._configs = configs
        self._follow = follow
        self._stopping = stopping
        self._orders = Orders()

    # ---- any thread; none blocks

    def load(self, model: str, config: str | None, answer: Answer) -> None:
        """Let a load wait for its turn. See `ModelManager.order_load`."""
        try:
            settings = None if config is None else parse_json(config, model=model)
        except UnsupportedConfig as exc:
            raise InvalidRequest(str(exc)) from exc
        self._orders.put(Order(model, loads=True, answer=answer, settings=settings))

    def unload(self, model: str, answer: Answer, *, with_steps: bool) -> None:
        """Let an unload wait for its turn. See `ModelManager.order_unload`."""
        self._orders.put(Order(model, loads=False, answer=answer, with_steps=with_steps))

    def refuse(self) -> None:
        """Answer every order that waits with Stopping, and take no more."""
        self._orders.close(Stopping("the server is going away; ask another one"))

    # ---- the repository thread

    def obey(self, look: Callable[[], Scan]) -> None:
        """Carry the orders out as far as they go now; those that wait for a drain are taken up when it is over.

        Args:
            look: at the repository; raises RepositoryUnreadable.
        """
        progress = True
        while progress and not self._stopping() and (orders := self._orders.heads()):
            try:
                found = look()
            except RepositoryUnreadable as exc:
                for order in orders:
                    self._orders.done(order, InvalidRequest(f"model {order.model!r}: {exc}"))
                continue
            progress = sum(self._obey_one(order, found) for order in orders) > 0

    def _obey_one(self, order: Order, found: Scan) -> bool:
        """Take an order as far as it goes; True when it is answered."""
        if self._stopping():
            return False
        try:
            if not order.begun:
                self._begin(order, found)
            if self._carry_out(order, found) or self._stopping():
                return False
            self._orders.done(order, self._outcome(order))
        except ForwardpassError as exc:
            self._orders.done(order, exc)
        except Exception as exc:
            log.exception("an order raised what none should raise")
            self._orders.done(order, exc)
        return True

    def _begin(self, order: Order, found: Scan) -> None:
        """Change what is asked for, and how it is configured."""
        name = order.model
        assert self.asked is not None
        event(log, logging.INFO, "load ordered" if order.loads else "unload ordered", model=name)
        if not order.loads:
            if name not in self.asked:
                raise InvalidRequest(f"model {name!r} is not loaded; RepositoryIndex lists what is")
            self.asked -= {name}
            if order.with_steps:
                self.asked -= self.families.steps_alone(name, found, self.asked)
        else:
            if name not in found.models:
                raise _not_there(name, found)
            self._configs.override(name, order.settings)
            self.asked |= {name, *(step for step in self.families.steps_of(name, found) if step in found.models)}
            for record in self._ledger.of(name):
                record.failed_stamp = None  # what failed is tried again, since somebody asks for it
        order.begun = True

    def _carry_out(self, order: Order, found: Scan) -> bool:
        """Follow the model, the models of its steps, and the ensembles that it is a step of. Returns whether one is
        waited for."""
        steps_of = self.families.steps_of
        family = {order.model, *steps_of(order.model, found)}
        waiting = False
        for name in self.in_order(found):
            if name in family or order.model in steps_of(name, found):
                waiting |= self._follow(name, found)
                if name in family:
                    waiting |= any(record.state is State.DRAINING for record in self._ledger.of(name))
        return waiting

    def in_order(self, found: Scan) -> Iterable[str]:
        """Every model, found or known, the steps of an ensemble before it."""
        return self.families.in_order(self._ledger.models(), found)

    def _outcome(self, order: Order) -> InvalidRequest | None:
        """What to tell the one who ordered, now that nothing is waited for."""
        if not order.loads:
            return None
        records = self._ledger.of(order.model)
        failed = [record for record in records if record.failed_stamp is not None]
        serving = ", ".join(str(record.number) for record in records if record.serving is not None)
        if failed:
            reasons = "; ".join(f"version {record.number}: {record.failure}" for record in failed)
            goes_on = f"; version {serving} serves" if serving else ""
            return InvalidRequest(f"load failed for model {order.model!r}: {reasons}{goes_on}")
        if not serving:
            return InvalidRequest(
                f"load failed for model {order.model!r}: no version folder that its version policy chooses"
            )
        return None


def _not_there(name: str, found: Scan) -> InvalidRequest | NotFound:
    """Why a model that was ordered cannot be found."""
    for problem in found.problems:
        if problem.model == name:
            return InvalidRequest(f"model {name!r}: {problem.reason}")
    return NotFound(f"model {name!r} is not in the repository; RepositoryIndex lists what is")
