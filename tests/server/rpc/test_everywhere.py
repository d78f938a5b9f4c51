"""Control rpcs of several processes: half-done orders, silent processes, sums."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.access.gate import Credentials, Gate
from forwardpass_server.control import Order, Reply
from forwardpass_server.errors import Overloaded, Stopping
from forwardpass_server.rpc import joined
from forwardpass_server.rpc.everywhere import INDEX, LOAD, LOG_SETTINGS, STATISTICS, UNLOAD, Obeying
from forwardpass_server.rpc.status import Code
from forwardpass_server.transport.call import Call

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

ADMIN = {"metadata": (("authorization", "Bearer admin"),)}

Index = pb.RepositoryIndexResponse.ModelIndex


class Held:
    def holds(self, token: str) -> bool:
        return token == "admin"


class Others:
    """Every process, this one among them: they answer what the test says, at once."""

    def __init__(self) -> None:
        self.replies: Sequence[Reply] | Exception = [Reply(process=0), Reply(process=1)]
        self.orders: list[Order] = []
        self.full = False

    def ask_all(self, order: Order, take: Callable[[Sequence[Reply] | Exception], None]) -> None:
        if self.full:
            raise Overloaded("256 control rpcs wait already", retry_after_s=1.0)
        self.orders.append(order)
        take(self.replies)


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def server(server_with: Callable[..., "Server"], others: Others) -> "Server":
    return server_with(gate=Gate(admin=Credentials(tokens=Held())), together=others)


def row(state: str = "READY", reason: str = "", version: str = "1", name: str = "m") -> Index:
    return Index(name=name, version=version, state=state, reason=reason)


def rows(process: int, *told: Index) -> Reply:
    return Reply(process=process, body=pb.RepositoryIndexResponse(models=told).SerializeToString())


def silent(process: int) -> Reply:
    return Reply(process=process, code=14, message=f"process {process} does not answer", silent=True)


def load(server: "Server", method: str = LOAD, **call: object) -> tuple[int, str]:
    result = server.ask(method, pb.RepositoryModelLoadRequest(model_name="m"), **(call or ADMIN))
    return result.code, result.message


def test_who_is_no_admin_reaches_no_process(server: "Server", others: Others) -> None:
    for method in (LOAD, UNLOAD):
        assert load(server, method, metadata=())[0] == Code.UNAUTHENTICATED
    change = pb.LogSettingsRequest()
    change.settings["log_info"].bool_param = False
    assert server.ask(LOG_SETTINGS, change).code == Code.UNAUTHENTICATED
    assert server.ask(LOG_SETTINGS, pb.LogSettingsRequest()).code == 0
    assert others.orders == [], "settings are read where one asks"
    server.ask(LOG_SETTINGS, change, **ADMIN)
    assert others.orders == [Order(method=LOG_SETTINGS, body=change.SerializeToString(), changes=True)]


def test_a_half_done_load_names_who_failed_and_who_did_it(server: "Server", others: Others) -> None:
    others.replies = [Reply(process=0), Reply(process=1, code=3, message="no memory"), Reply(process=2)]
    assert load(server) == (3, "process 1: no memory; process 0, 2 did it, so they differ: order it again, or undo it")
    others.replies = [Reply(process=0, code=3, message="no"), Reply(process=1, code=14, message="later")]
    assert load(server) == (3, "process 0: no; none did it")


def test_what_all_refuse_alike_is_refused_as_by_one(server: "Server", others: Others) -> None:
    others.replies = [Reply(process=each, code=5, message="not found") for each in (0, 1)]
    assert load(server) == (5, "not found")
    others.replies = [Reply(process=0)]
    assert load(server) == (0, "")


def test_an_order_that_cannot_be_passed_on_is_answered(server: "Server", others: Others) -> None:
    others.replies = Stopping("the processes of this server cannot be asked")
    assert load(server) == (Code.UNAVAILABLE, "the processes of this server cannot be asked")
    others.replies = []
    assert load(server)[0] == Code.UNAVAILABLE
    others.full = True
    assert load(server)[0] == Code.RESOURCE_EXHAUSTED
    others.full, others.replies = False, [Reply(process=0, body=b"\xff")]
    assert server.ask(INDEX, pb.RepositoryIndexRequest()).code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("told", "joint"),
    [
        ([rows(0, row()), rows(1, row())], row()),
        ([rows(0, row()), rows(1, row("LOADING", "warming"))], row("LOADING", "process 1: warming")),
        ([rows(0, row()), rows(1)], row("UNAVAILABLE", "process 1: it does not know this version (yet)")),
        ([rows(0, row()), silent(1)], row("UNAVAILABLE", "process 1: it does not answer")),
        ([rows(0, row("UNAVAILABLE", "no")), rows(1, row("UNAVAILABLE", "no"))], row("UNAVAILABLE", "no")),
        ([rows(0, row(reason="bad update")), rows(1, row())], row("READY", "process 0: bad update")),
        ([rows(0, row("UNLOADING")), rows(1, row())], row("UNLOADING", "in process 0")),
    ],
)
def test_a_version_is_ready_where_it_is_so_in_every_process(
    server: "Server", others: Others, told: list[Reply], joint: Index
) -> None:
    others.replies = told
    index = server.get(pb.RepositoryIndexResponse, INDEX, pb.RepositoryIndexRequest())
    assert [*index.models] == [joint]
    ready = server.get(pb.RepositoryIndexResponse, INDEX, pb.RepositoryIndexRequest(ready=True))
    assert [*ready.models] == ([joint] if joint.state == "READY" else [])
    for order in others.orders:
        assert not pb.RepositoryIndexRequest.FromString(order.body).ready, "what is not READY must be heard of"
        assert not order.changes


def test_versions_are_ordered_by_number_and_model() -> None:
    one = pb.RepositoryIndexResponse(models=[row(version="10"), row(version="9"), row(name="a")])
    assert [(each.name, each.version) for each in joined.index([(0, one)], [])] == [("a", "1"), ("m", "9"), ("m", "10")]


def account(rows: int, last: int, **runs: int) -> pb.ModelStatistics:
    told = pb.ModelStatistics(name="m", version="1", last_inference=last, inference_count=rows, execution_count=1)
    told.inference_stats.success.count = 1
    told.inference_stats.success.ns = 100 * rows
    for size, ns in runs.items():
        batch = told.batch_stats.add(batch_size=int(size.removeprefix("of_")))
        batch.compute_infer.count, batch.compute_infer.ns = 1, ns
    return told


def statistics(process: int, *told: pb.ModelStatistics) -> Reply:
    return Reply(process=process, body=pb.ModelStatisticsResponse(model_stats=told).SerializeToString())


def test_statistics_are_summed_and_a_process_without_the_model_counts_nothing(server: "Server", others: Others) -> None:
    others.replies = [
        Reply(process=0, code=5, message="not found"),
        statistics(1, account(3, 50, of_3=30, of_1=7)),
        statistics(2, account(4, 40, of_4=40, of_3=5)),
    ]
    (told,) = server.get(pb.ModelStatisticsResponse, STATISTICS, pb.ModelStatisticsRequest(name="m")).model_stats
    assert (told.last_inference, told.inference_count, told.execution_count) == (50, 7, 2)
    assert (told.inference_stats.success.count, told.inference_stats.success.ns) == (2, 700)
    assert not told.inference_stats.HasField("cache_hit")
    assert [(each.batch_size, each.compute_infer.count, each.compute_infer.ns) for each in told.batch_stats] == [
        (1, 1, 7),
        (3, 2, 35),
        (4, 1, 40),
    ]


def test_statistics_never_fall_because_a_process_is_silent(server: "Server", others: Others) -> None:
    others.replies = [statistics(0, account(3, 50)), silent(1)]
    result = server.ask(STATISTICS, pb.ModelStatisticsRequest(name="m"))
    assert (result.code, result.message) == (Code.UNAVAILABLE, "process 1 does not answer")


class Ordered:
    """Handlers that load and unload at once; models named after a step of theirs bring it along."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)
        self.bodies: list[bytes] = []

    def load(self, call: Call, body: bytes) -> None:
        name = pb.RepositoryModelLoadRequest.FromString(body).model_name
        self.bodies.append(body)
        if name == "bad":
            call.fail(3, "no")
            return
        self.names |= {name, name.removeprefix("of-")}
        call.reply(b"")

    def unload(self, call: Call, body: bytes) -> None:
        self.names -= {pb.RepositoryModelUnloadRequest.FromString(body).model_name}
        call.reply(b"")

    def obeying(self) -> Obeying:
        return Obeying({LOAD: self.load, UNLOAD: self.unload}, lambda: self.names)


def load_order(name: str, config: str = "") -> Order:
    request = pb.RepositoryModelLoadRequest(model_name=name)
    if config:
        request.parameters["config"].string_param = config
    return Order(method=LOAD, body=request.SerializeToString(), changes=True)


def test_an_order_leaves_in_force_what_it_changed_with_its_configuration() -> None:
    handlers = Ordered()
    obeying = handlers.obeying()
    with_config = load_order("of-x", '{"max_batch_size": 3}')
    assert obeying.obey(with_config).leaves == {"model x": load_order("x"), "model of-x": with_config}
    assert obeying.obey(load_order("x")).leaves == {"model x": load_order("x")}
    unload = Order(
        method=UNLOAD, body=pb.RepositoryModelUnloadRequest(model_name="x").SerializeToString(), changes=True
    )
    assert obeying.obey(unload).leaves == {"model x": None}
    failed = obeying.obey(load_order("bad"))
    assert (failed.code, failed.message, failed.leaves) == (3, "no", {})


def test_a_process_that_begins_anew_ends_where_the_others_are() -> None:
    one, other = Ordered("m"), Ordered("gone")
    in_force = {"model bad": load_order("bad"), **one.obeying().in_force()}
    other.obeying().adopt(in_force)
    assert other.names == one.names, "what cannot be done does not keep the rest from being done"


def test_the_log_is_left_as_a_whole(server: "Server", models: "Models") -> None:
    change = pb.LogSettingsRequest()
    change.settings["log_verbose_level"].uint32_param = 0
    order = Order(method=LOG_SETTINGS, body=change.SerializeToString(), changes=True)
    models.asked = None  # type: ignore[attr-defined]
    left = server.built.obeying.obey(order).leaves["log"]
    assert left is not None
    assert {"log_info", "log_verbose_level", "log_format"} <= {*pb.LogSettingsRequest.FromString(left.body).settings}
    assert server.built.obeying.obey(left).code == 0
