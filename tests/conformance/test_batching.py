"""Requests that wait and ride together behind a blocked instance: cases 20, 24 to 30 and 40, and the poisoned mate.

A server of its own: 8 rows a run, 100 requests may wait. A request of many turns blocks the only instance of a `slow…`
model; what the metrics page says in the meantime is then exact.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import grpc
import numpy as np
import pytest
from conformance import models
from conformance.process import IN_FLIGHT, QUEUED, QUEUED_BYTES, REQUESTS, ROWS, RUNS, ServerProcess, wait_until
from conformance.wire import Caller, Pending, Tensor, ask, invalid, ok, refused, tensor, trips

MAX_ROWS = 8
MAX_WAITING = 100
BLOCK = 400_000
"""Turns that keep the instance busy for most of a second."""

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("batching")
    models.publish(root, "identity_fp32", models.identity(models.IDENTITIES["FP32"]))
    for build in (models.slow, models.slow_gather, models.slow_pair, models.slow_variable):
        models.publish(root, build.__name__, build())
    flags = ("--max-batch-size", str(MAX_ROWS), "--max-queue-requests", str(MAX_WAITING))
    with ServerProcess(root, root.parent / f"{root.name}.log", *flags) as server:
        server.wait_until_ready()
        server.take_baseline()
        yield server
        server.stop()


class Blocked:
    """A model whose only instance is busy, and the counters of before."""

    def __init__(self, server: ServerProcess, model: str, blocker: Pending) -> None:
        self._server = server
        self.model = model
        self.blocker = blocker
        self._before = {name: server.total(name, model=model) for name in (RUNS, ROWS)}
        outcomes = ("ok", "expired", "canceled", "shed", "invalid", "failed")
        self._outcomes = {name: self.outcome(name) for name in outcomes}

    def outcome(self, name: str) -> float:
        return self._server.total(REQUESTS, model=self.model, outcome=name)

    def queued(self) -> float:
        return self._server.total(QUEUED, model=self.model)

    def wait_for_queue(self, count: int) -> None:
        """Wait until exactly `count` requests wait, the blocker still at work."""
        wait_until(lambda: self.queued() == count, f"{count} requests wait", self.queued)
        assert not self.blocker.done, "the blocker was too short for this machine"

    def since(self) -> dict[str, float]:
        """Runs, rows and outcomes since the instance was blocked, the blocker's own not included."""
        counted = {name: self._server.total(name, model=self.model) - 1 - self._before[name] for name in (RUNS, ROWS)}
        outcomes = {name: self.outcome(name) - before for name, before in self._outcomes.items()}
        return counted | outcomes | {"ok": outcomes["ok"] - 1}


Block = Callable[..., AbstractContextManager[Blocked]]


@pytest.fixture
def block(server: ServerProcess, caller: Caller) -> Block:
    """`with block("slow") as blocked:` keeps the instance of `slow` busy; waits for the blocker at the end."""

    @contextmanager
    def hold(model: str, *more: Tensor, turns: int = BLOCK) -> Iterator[Blocked]:
        server.wait_until_idle()
        blocked = Blocked(server, model, caller.begin(ask(model, trips(turns), *more), timeout_s=60.0))
        wait_until(
            lambda: server.total(IN_FLIGHT, model=model) == 1 and server.total(QUEUED, model=model) == 0,
            "the blocker is at work",
        )
        yield blocked
        ok(blocked.blocker.outcome())
        server.wait_until_idle()

    return hold


@pytest.mark.case("29", "100 requests behind a blocked instance, max 8", "13 runs, 100 answers, all right")
def test_a_hundred_waiting_requests_ride_in_thirteen_runs(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(-number))) for number in range(MAX_WAITING)]
        blocked.wait_for_queue(MAX_WAITING)
    for number, each in enumerate(pending):
        assert ok(each.outcome())["y"].array.tolist() == [[-number]]
    assert {RUNS: 13, ROWS: 100, "ok": 100}.items() <= blocked.since().items()


@pytest.mark.case("29", "requests of several rows are never cut", "each run at most 8 rows, all right")
def test_requests_of_several_rows_share_runs_whole(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(*range(-5 * number, -5 * number - 5, -1)))) for number in range(4)]
        blocked.wait_for_queue(4)
    for number, each in enumerate(pending):
        assert ok(each.outcome())["y"].array.ravel().tolist() == list(range(-5 * number, -5 * number - 5, -1))
    assert {RUNS: 4, ROWS: 20}.items() <= blocked.since().items()


case_25 = pytest.mark.case("25", "queue full: the next request", "RESOURCE_EXHAUSTED + pushback")


@case_25
def test_a_request_too_many_is_refused_with_a_time_to_come_back(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        waiting = [caller.begin(ask("slow", trips(0))) for _ in range(MAX_WAITING)]
        blocked.wait_for_queue(MAX_WAITING)
        for _ in range(5):
            outcome = caller.infer(ask("slow", trips(0)))
            refused(outcome, grpc.StatusCode.RESOURCE_EXHAUSTED, "slow", MAX_WAITING)
            assert int(dict(outcome.trailing)["grpc-retry-pushback-ms"]) >= 1
            assert outcome.seconds < 0.2
        blocked.wait_for_queue(MAX_WAITING)
    assert all(each.outcome().ok for each in waiting)
    assert {"ok": 100, "shed": 5}.items() <= blocked.since().items()


@pytest.mark.case("40", "queue gauge while blocked, and after", "exactly n; 0")
@pytest.mark.parametrize("count", [1, 7, 50])
def test_the_queue_gauges_are_exact_while_the_instance_is_blocked(
    server: ServerProcess, caller: Caller, block: Block, count: int
) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(0, 0))) for _ in range(count)]
        blocked.wait_for_queue(count)
        assert server.total(QUEUED_BYTES, model="slow") == count * 16
        assert server.total(IN_FLIGHT, model="slow") == count + 1
    assert all(each.outcome().ok for each in pending)
    assert (server.total(QUEUED), server.total(QUEUED_BYTES), server.total(IN_FLIGHT)) == (0, 0, 0)


case_28 = pytest.mark.case("28", "different shapes arriving together", "never merged; each answer right")


@case_28
def test_different_shapes_are_never_merged_and_equal_ones_are(caller: Caller, block: Block) -> None:
    shapes = [(h, w) for h in (1, 2, 3) for w in (1, 2, 4)]
    sent = []
    random = np.random.default_rng(28)
    with block("slow_variable", tensor("x", np.zeros((1, 1, 1), np.float32))) as blocked:
        for _ in range(4):
            for shape in shapes:
                x = random.integers(-100, 100, (1, *shape)).astype(np.float32)
                sent.append((x, caller.begin(ask("slow_variable", trips(0), tensor("x", x)))))
        blocked.wait_for_queue(len(sent))
    for x, each in sent:
        answer = ok(each.outcome())
        assert answer["sum"].array.tolist() == [float(x.sum())]
        assert answer["seen"].array.tolist() == [list(x.shape[1:])]
    since = blocked.since()
    assert since["ok"] == len(sent)
    assert since[RUNS] == len(shapes), "four requests of each of nine shapes are nine runs"


@case_28
def test_a_shape_of_the_same_size_is_another_shape(caller: Caller, block: Block) -> None:
    first, second = np.arange(6, dtype=np.float32).reshape(1, 2, 3), np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    with block("slow_variable", tensor("x", first)) as blocked:
        pending = [caller.begin(ask("slow_variable", trips(0), tensor("x", x))) for x in (first, second) * 4]
        blocked.wait_for_queue(8)
    for number, each in enumerate(pending):
        assert ok(each.outcome())["seen"].array.tolist() == ([[2, 3]] if number % 2 == 0 else [[3, 2]])


@pytest.mark.case("30", "two requests of a batch ask different outputs", "each gets only its own")
def test_batch_mates_that_ask_for_different_outputs_get_their_own(caller: Caller, block: Block) -> None:
    asked = [("same",), ("negated",), ("negated", "same"), ("same", "negated"), ()]
    with block("slow_pair") as blocked:
        pending = [
            (number, names, caller.begin(ask("slow_pair", trips(-number), outputs=names)))
            for number, names in enumerate(asked * 8)
        ]
        blocked.wait_for_queue(40)
    for number, names, each in pending:
        answer = ok(each.outcome())
        assert list(answer) == list(names or ("same", "negated"))
        assert {name: value.array.tolist() for name, value in answer.items()} == {
            name: [[-number if name == "same" else number]] for name in answer
        }
    assert blocked.since()[RUNS] == 5


case_poison = pytest.mark.case("poison", "poisoned request in a batch", "only the poison fails; its mates OK")


@case_poison
@pytest.mark.parametrize("poisoned", [{0}, {3}, {7}, {0, 7}, {2, 3}, set(range(8))], ids=str)
def test_only_the_poisoned_request_of_a_batch_fails(caller: Caller, block: Block, poisoned: set[int]) -> None:
    def index(number: int) -> Tensor:
        return tensor("i", np.array([999 if number in poisoned else number], np.int64))

    with block("slow_gather", index(-1)) as blocked:
        pending = [caller.begin(ask("slow_gather", trips(0), index(number))) for number in range(MAX_ROWS)]
        blocked.wait_for_queue(MAX_ROWS)
    for number, each in enumerate(pending):
        if number in poisoned:
            invalid(each.outcome())
        else:
            assert ok(each.outcome())["y"].array.tolist() == [10.0 * number]
    since = blocked.since()
    assert (since["ok"], since["invalid"] + since["failed"]) == (MAX_ROWS - len(poisoned), len(poisoned))


@case_poison
def test_poison_alone_fails_as_the_callers_fault_and_tells_no_internals(caller: Caller) -> None:
    outcome = caller.infer(ask("slow_gather", trips(0), tensor("i", np.array([999], np.int64))))
    invalid(outcome)
    assert "/" not in outcome.details, "a path of the server in a message"


case_20 = pytest.mark.case("20", "cancel in the queue", "removed; mates unaffected; canceled + 1")


@case_20
@pytest.mark.parametrize("cancelled", [{0}, {9}, {4, 5}, set(range(10))], ids=str)
def test_a_request_cancelled_in_the_queue_never_runs_and_its_mates_do(
    caller: Caller, block: Block, cancelled: set[int]
) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(-number))) for number in range(10)]
        blocked.wait_for_queue(10)
        for number in cancelled:
            pending[number].cancel()
            assert pending[number].outcome().code is grpc.StatusCode.CANCELLED
    for number in set(range(10)) - cancelled:
        assert ok(pending[number].outcome())["y"].array.tolist() == [[-number]]
    since = blocked.since()
    assert (since["canceled"], since["ok"], since[ROWS]) == (len(cancelled), 10 - len(cancelled), 10 - len(cancelled))


@case_20
def test_a_request_cancelled_in_the_queue_leaves_it_before_its_turn(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(0))) for _ in range(10)]
        blocked.wait_for_queue(10)
        for each in pending[:4]:
            each.cancel()
        blocked.wait_for_queue(6)
    assert all(each.outcome().ok for each in pending[4:])


@case_20
def test_a_full_queue_of_the_departed_has_room(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(0))) for _ in range(MAX_WAITING)]
        blocked.wait_for_queue(MAX_WAITING)
        for each in pending:
            each.cancel()
        # The server learns of them one by one; a refusal says when to come back, and then there is room.
        wait_until(lambda: caller.begin(ask("slow", trips(0))).done or blocked.queued() < MAX_WAITING, "there is room")
        last = caller.begin(ask("slow", trips(-7)))
    assert ok(last.outcome())["y"].array.tolist() == [[-7]]


@pytest.mark.case("19", "cancel before it waits", "CANCELLED within 100 ms; the model is not run")
def test_a_call_cancelled_as_soon_as_it_is_made_never_runs(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        for _ in range(50):
            pending = caller.begin(ask("slow", trips(0)))
            pending.cancel()
            outcome = pending.outcome()
            assert outcome.code is grpc.StatusCode.CANCELLED
            assert outcome.seconds < 0.1
        assert not blocked.blocker.done, "the blocker was too short for this machine"
    assert blocked.since()[ROWS] == 0


case_24 = pytest.mark.case("24", "deadline passes in the queue", "DEADLINE_EXCEEDED; never run; counted")


@case_24
@pytest.mark.parametrize("timeout_s", [0.001, 0.01, 0.1])
def test_a_request_whose_deadline_passes_in_the_queue_is_never_run(
    caller: Caller, block: Block, timeout_s: float
) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(0)), timeout_s=timeout_s) for _ in range(5)]
        for each in pending:
            refused(each.outcome(), DEADLINE_EXCEEDED)
        assert not blocked.blocker.done, "the blocker was too short for this machine"
    since = blocked.since()
    assert (since[ROWS], since["ok"]) == (0, 0)


@case_24
def test_expired_requests_are_counted_as_expired(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(0)), timeout_s=0.2) for _ in range(20)]
        blocked.wait_for_queue(20)
        for each in pending:
            refused(each.outcome(), DEADLINE_EXCEEDED)
    assert {"expired": 20, "canceled": 0, ROWS: 0}.items() <= blocked.since().items()


@case_24
def test_one_millisecond_for_a_model_of_a_second_is_too_little(caller: Caller) -> None:
    refused(caller.infer(ask("slow", trips(BLOCK)), timeout_s=0.001), DEADLINE_EXCEEDED)


case_26 = pytest.mark.case("26", "the `timeout` parameter passes in the queue", "DEADLINE_EXCEEDED; counted")


@case_26
def test_a_request_times_out_in_the_queue_by_its_own_parameter(caller: Caller, block: Block) -> None:
    request = ask("slow", trips(0))
    request.parameters["timeout"].int64_param = 50_000
    with block("slow") as blocked:
        pending = [caller.begin(request) for _ in range(3)]
        blocked.wait_for_queue(3)
    for each in pending:
        refused(each.outcome(), DEADLINE_EXCEEDED)
    assert {"expired": 3, ROWS: 0}.items() <= blocked.since().items()


@pytest.mark.case("27", "the `timeout` parameter never lengthens", "the call's own deadline holds")
def test_a_long_timeout_parameter_does_not_outlive_the_deadline(caller: Caller, block: Block) -> None:
    request = ask("slow", trips(0))
    request.parameters["timeout"].int64_param = 3_600_000_000
    with block("slow") as blocked:
        refused(caller.infer(request, timeout_s=0.05), DEADLINE_EXCEEDED)
        assert not blocked.blocker.done, "the blocker was too short for this machine"
    assert blocked.since()[ROWS] == 0


def test_a_request_of_no_rows_rides_alone_and_comes_back_empty(caller: Caller, block: Block) -> None:
    with block("slow") as blocked:
        pending = [caller.begin(ask("slow", trips(*range(number)))) for number in (0, 1, 2, 0, 3)]
        blocked.wait_for_queue(5)
    for number, each in zip((0, 1, 2, 0, 3), pending, strict=True):
        answer = ok(each.outcome())["y"]
        assert (answer.shape, answer.array.ravel().tolist()) == ((number, 1), list(range(number)))
