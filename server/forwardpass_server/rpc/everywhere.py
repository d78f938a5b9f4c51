"""Control rpcs of a server of several processes: asked of one, obeyed or answered by all.

    caller ─▶ asked here ─▶ supervisor (`broadcast`) ─▶ obeyed in each process ─▶ one answer out of all

Whoever loads a model or changes a setting is answered when every process has done it. If some could and some could
not, the error names the first that could not, nothing is undone, and the index says so too until it is ordered again:
undoing might take away what served before, or fail likewise.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.control import InForce, Order, Reply
from forwardpass_server.errors import Stopping
from forwardpass_server.logs import event
from forwardpass_server.rpc import joined, status
from forwardpass_server.rpc.messages import parse
from forwardpass_server.transport.call import Call, Metadata, OnAnswer, UnaryHandler

log = logging.getLogger(__name__)

_SERVICE = "/inference.GRPCInferenceService"
LOAD, UNLOAD = f"{_SERVICE}/RepositoryModelLoad", f"{_SERVICE}/RepositoryModelUnload"
INDEX = f"{_SERVICE}/RepositoryIndex"
STATISTICS = f"{_SERVICE}/ModelStatistics"
LOG_SETTINGS = f"{_SERVICE}/LogSettings"

_LOG = "log"
_MODEL = "model "


class Together(Protocol):
    """The way to all processes; a `seat.Seat`."""

    def ask_all(self, order: Order, take: Callable[[Sequence[Reply] | Exception], None]) -> None:
        """Have all asked, this one too; `take` gets their replies on any thread. May raise `Overloaded`."""


@dataclass(frozen=True)
class Shared:
    """How an rpc is asked of all.

    Args:
        order: what is asked of each, from what the caller sent; None if this process's own answer will do.
        join: the answer, from what the caller sent and the replies, at least one of which is good.
    """

    order: Callable[[bytes], Order | None]
    join: Callable[[bytes, Sequence[Reply]], Reply]


def everywhere(handle: UnaryHandler, shared: Shared, together: Together) -> UnaryHandler:
    """`handle`, asked of every process."""

    def handle_everywhere(call: Call, body: bytes) -> None:
        def take(replies: Sequence[Reply] | Exception) -> None:
            try:
                if isinstance(replies, Exception):
                    raise replies
                if not replies:
                    raise Stopping("no process of this server is left to answer; ask another one")
                answer = shared.join(body, replies)
            except Exception as error:  # noqa: BLE001 - the edge: status.of logs what is ours
                call.fail(*status.of(error))
                return
            if answer.code:
                call.fail(answer.code, answer.message, answer.trailers)
            else:
                call.reply(answer.body)

        try:
            order = shared.order(body)
            if order is not None:
                together.ask_all(order, take)
                return
        except Exception as error:  # noqa: BLE001 - likewise
            call.fail(*status.of(error))
            return
        handle(call, body)

    return handle_everywhere


def _ordering(method: str) -> Callable[[bytes], Order]:
    return lambda body: Order(method=method, body=body, changes=True)


def _log_order(body: bytes) -> Order | None:
    changes = bool(parse(pb.LogSettingsRequest, body).settings)
    return Order(method=LOG_SETTINGS, body=body, changes=True) if changes else None


def _index_order(body: bytes) -> Order:
    """All rows: whether one is READY everywhere is known only then."""
    name = parse(pb.RepositoryIndexRequest, body).repository_name
    return Order(method=INDEX, body=pb.RepositoryIndexRequest(repository_name=name).SerializeToString())


def _all_obeyed(_body: bytes, replies: Sequence[Reply]) -> Reply:
    """The first answer; else the first error, and who else did what."""
    failed = [reply for reply in replies if reply.code]
    if not failed:
        return replies[0]
    first = failed[0]
    if len({(reply.code, reply.message) for reply in replies}) == 1:
        return first
    obeyed = ", ".join(str(reply.process) for reply in replies if not reply.code)
    done = f"process {obeyed} did it, so they differ: order it again, or undo it" if obeyed else "none did it"
    return Reply(code=first.code, message=f"process {first.process}: {first.message}; {done}", trailers=first.trailers)


def _index(body: bytes, replies: Sequence[Reply]) -> Reply:
    good = [(reply.process, parse(pb.RepositoryIndexResponse, reply.body)) for reply in replies if not reply.code]
    if not good:
        return replies[0]
    rows = joined.index(good, [reply.process for reply in replies if reply.silent])
    if parse(pb.RepositoryIndexRequest, body).ready:
        rows = [row for row in rows if row.state == joined.READY]
    return Reply(body=pb.RepositoryIndexResponse(models=rows).SerializeToString())


def _statistics(_body: bytes, replies: Sequence[Reply]) -> Reply:
    """The sum over those who have the model; never one that lacks what a process counted and does not tell."""
    silent = [reply for reply in replies if reply.silent]
    good = [parse(pb.ModelStatisticsResponse, reply.body) for reply in replies if not reply.code]
    if silent or not good:
        return (silent or replies)[0]
    return Reply(body=joined.statistics(good).SerializeToString())


SHARED: Mapping[str, Shared] = {
    LOAD: Shared(_ordering(LOAD), _all_obeyed),
    UNLOAD: Shared(_ordering(UNLOAD), _all_obeyed),
    LOG_SETTINGS: Shared(_log_order, _all_obeyed),
    INDEX: Shared(_index_order, _index),
    STATISTICS: Shared(lambda body: Order(method=STATISTICS, body=body), _statistics),
}
"""By method. Traces have no settings to change; whatever else an rpc says is the same in every process."""


class Obeying:
    """Obeys in this process what was ordered of all. Threads of the link; `obey` and `adopt` block.

    Args:
        handlers: what obeys, by method, behind the gate: whoever asked has passed it.
        asked: the models that are asked for in this process; None where it follows the repository by itself.
    """

    def __init__(self, handlers: Mapping[str, UnaryHandler], asked: Callable[[], frozenset[str] | None]) -> None:
        self._handlers = handlers
        self._asked = asked

    def obey(self, order: Order) -> Reply:
        """Carry an order out, as if a caller had sent it; and say what it leaves in force."""
        before = self._asked() or frozenset()
        call = _OrderedCall(order.method)
        self._handlers[order.method](call, order.body)
        reply = call.wait()
        if reply.code or not order.changes:
            return reply
        leaves = self._leaves(order, reply, before, self._asked() or frozenset())
        return Reply(body=reply.body, leaves=leaves)

    def in_force(self) -> InForce:
        """What a process that begins anew has to be given: the models that are asked for here."""
        return {_MODEL + name: _load(name) for name in sorted(self._asked() or ())}

    def adopt(self, in_force: InForce) -> None:
        """Have the same in force as the others. What cannot be done is logged, and shows in the index."""
        wanted = {key.removeprefix(_MODEL) for key in in_force if key.startswith(_MODEL)}
        orders = [_unload(name) for name in sorted((self._asked() or frozenset()) - wanted)]
        for order in [*orders, *in_force.values()]:
            reply = self.obey(order)
            if reply.code:
                rpc = order.method.rpartition("/")[2]
                event(log, logging.ERROR, "what is in force cannot be done here", rpc=rpc, reason=reply.message)

    def _leaves(
        self, order: Order, reply: Reply, before: frozenset[str], after: frozenset[str]
    ) -> dict[str, Order | None]:
        if order.method == LOG_SETTINGS:
            # All settings, since one order changes some of them and the next one others.
            settings = parse(pb.LogSettingsResponse, reply.body).settings
            request = pb.LogSettingsRequest()
            for key, value in settings.items():
                request.settings[key].ParseFromString(value.SerializeToString())
            return {_LOG: Order(method=LOG_SETTINGS, body=request.SerializeToString(), changes=True)}
        if order.method == LOAD:
            ordered = parse(pb.RepositoryModelLoadRequest, order.body).model_name
            steps = {_MODEL + name: _load(name) for name in sorted(after - before - {ordered})}
            return {**steps, _MODEL + ordered: order}
        return {_MODEL + name: None for name in sorted(before - after)}


def _load(name: str) -> Order:
    request = pb.RepositoryModelLoadRequest(model_name=name)
    return Order(method=LOAD, body=request.SerializeToString(), changes=True)


def _unload(name: str) -> Order:
    request = pb.RepositoryModelUnloadRequest(model_name=name)
    return Order(method=UNLOAD, body=request.SerializeToString(), changes=True)


class _OrderedCall:
    """A `transport.call.Call` of nobody in particular, whose answer is waited for."""

    metadata: Metadata = ()
    peer = "another process of this server"
    deadline = float("inf")
    received_ns = 0
    cancelled = False

    def __init__(self, method: str) -> None:
        self.method = method
        self.on_answer: OnAnswer | None = None
        self._answered = threading.Event()
        self._reply = Reply()

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        return {}

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Nobody leaves."""

    def reply(self, body: bytes, trailers: Metadata = (), *, metadata: Metadata = ()) -> bool:  # noqa: ARG002 - a Call's
        self._reply = Reply(body=body)
        self._answered.set()
        return True

    def fail(self, code: int, message: str, trailers: Metadata = ()) -> bool:
        plain = tuple((key, value) for key, value in trailers if isinstance(value, str))
        self._reply = Reply(code=code, message=message, trailers=plain)
        self._answered.set()
        return True

    def wait(self) -> Reply:
        self._answered.wait()
        return self._reply
