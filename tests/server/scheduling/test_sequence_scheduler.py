"""Sequences as the rest of the server sees them: an accumulator on a fake session, threaded and inline."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from math import inf

import numpy as np
import pytest

from forwardpass_server.errors import (
    CallCancelled,
    DeadlineExpired,
    InvalidRequest,
    Overloaded,
    RunFailed,
    Stopping,
    TooLarge,
)
from forwardpass_server.observe.sequences import KeepsSequences
from forwardpass_server.runtime.fake import FakeSession
from forwardpass_server.runtime.states import HostStates, StateSpec
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.fake import FakeClock, FakeResponder, make_request
from forwardpass_server.scheduling.lifeline import Lifeline
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.request import Array, Inputs
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.scheduling.sequence import Position, SequenceId, Sequences, Slot
from forwardpass_server.scheduling.sequence_scheduler import Rider, SequenceScheduler, Withdrawn
from forwardpass_server.scheduling.stateful import Control, ControlKind, Layout, StatefulModel
from forwardpass_server.tensors.dtypes import BOOL, BYTES, FP32, INT32, UINT64
from forwardpass_server.tensors.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec("x", FP32, ("batch", "time")),),
    outputs=(TensorSpec("sum", FP32, ("batch", 1)), TensorSpec("start", FP32, ("batch", 1))),
    max_batch_size=8,
)
LAYOUT = Layout(
    inputs=3,
    given=(0,),
    states=((1, 2),),
    controls=((2, Control(name="start", kind=ControlKind.START, dtype=FP32, rank=2, false=-1.0, true=1.0)),),
    outputs=(0, 1),
    batched=True,
)
POISON = -1000.0
WAIT_S = 20.0


def accumulate(inputs: Inputs) -> list[Array]:
    """x [b, t], state [b, 1], start [b, 1] → sum = state + x summed over t; start; the next state, which is the sum."""
    x, state, start = inputs
    assert x is not None
    assert state is not None
    assert start is not None
    total = state + x.sum(axis=1, keepdims=True)
    return [total, start, total]


class Made:
    """A scheduler of sequences on a fake session, closed at the end of its test."""

    def __init__(
        self,
        *,
        slots: int = 4,
        idle_s: float = 60.0,
        inline: InlineLoop | None = None,
        clock: Callable[[], int] | None = None,
        finite: bool = False,
        instances: int = 1,
        **limits: float,
    ) -> None:
        self.session = FakeSession(accumulate, poison=POISON)
        self.clock = clock or FakeClock()
        states = HostStates([StateSpec(dtype=FP32, initial=np.zeros(1, np.float32))], Slot.rows(slots), batched=True)
        model = StatefulModel(self.session.run, states, LAYOUT)
        inside = Scheduler(
            "m/1",
            [model.run] * instances,
            SIGNATURE,
            limits=Limits(**{"max_rows": 8, **limits}),  # type: ignore[arg-type]
            inline=inline,
            finite=finite,
            clock_ns=self.clock,
        )
        sequences: Sequences[Rider] = Sequences(slots, idle_s)
        self.scheduler = SequenceScheduler(
            "m", model, inside, sequences, on_loop=lambda function: function(), clock_ns=self.clock
        )

    def send(
        self,
        name: SequenceId | None,
        x: float,
        *,
        starts: bool = False,
        ends: bool = False,
        rows: int = 1,
        length: int = 1,
        lifeline: Lifeline | None = None,
        outputs: tuple[int, ...] = (0,),
        **more: float,
    ) -> FakeResponder:
        request, responder = make_request([np.full((rows, length), x, np.float32)], outputs=outputs, **more)  # type: ignore[arg-type]
        request.position = None if name is None else Position(name, starts, ends)
        request.lifeline = lifeline
        self.scheduler.submit(request)
        return responder

    def step(self, name: SequenceId, x: float, *, starts: bool = False, ends: bool = False) -> float:
        return total(self.send(name, x, starts=starts, ends=ends))

    def close(self) -> None:
        self.session.release()
        assert self.scheduler.close()


def total(responder: FakeResponder) -> float:
    responder.wait(WAIT_S)
    assert responder.error is None, responder.error
    assert responder.outputs is not None
    return float(responder.outputs[0][0, 0])


def why(responder: FakeResponder) -> Exception:
    responder.wait(WAIT_S)
    assert responder.error is not None
    assert responder.answers == 1
    return responder.error


@pytest.fixture
def make() -> Iterator[Callable[..., Made]]:
    made: list[Made] = []

    def make(**options: object) -> Made:
        made.append(Made(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_who_names_no_sequence_or_sends_several_rows_is_refused(make: Callable[..., Made]) -> None:
    it = make()
    with pytest.raises(InvalidRequest, match="must specify a non-zero or non-empty correlation ID"):
        it.send(None, 1)
    with pytest.raises(InvalidRequest, match=r"must specify the START flag on the first request of the sequence$"):
        it.send(1, 1)
    for rows in (0, 2):
        with pytest.raises(InvalidRequest, match=f"must specify batch-size 1.* got {rows} rows"):
            it.send(1, 1, starts=True, rows=rows)
    assert not it.session.runs
    counts = it.scheduler.sequence_counts
    assert counts.active == counts.started == 0
    assert counts.refused == {"no_id": 1, "not_started": 1, "no_room": 0, "rows": 2}
    assert it.scheduler.statistics.snapshot().outcomes["invalid"] == 4


def test_a_step_that_fails_leaves_the_state_as_it_was(make: Callable[..., Made]) -> None:
    it = make()
    assert it.step(1, 5, starts=True) == 5
    assert isinstance(why(it.send(1, POISON)), RunFailed)
    assert it.step(1, 6) == 11
    assert isinstance(why(it.send(1, POISON, ends=True)), RunFailed)
    assert it.step(1, 1, ends=True) == 12


def test_a_step_whose_answer_cannot_be_given_is_not_counted(make: Callable[..., Made]) -> None:
    it = make(finite=True)
    assert it.step(1, 5, starts=True) == 5
    with np.errstate(invalid="ignore"):
        assert isinstance(why(it.send(1, inf)), InvalidRequest)  # the model ran, and its answer is refused
    assert it.step(1, 6) == 11

    class Deaf(FakeResponder):
        def succeed(self, outputs: object, request: object) -> None:
            raise InvalidRequest("no room for the output")

    request, _ = make_request([np.ones((1, 1), np.float32)])
    request.position, request.responder = Position(1), Deaf()
    it.scheduler.submit(request)
    assert isinstance(why(request.responder), InvalidRequest)
    assert it.step(1, 6) == 17


def test_the_guilty_one_of_a_batch_fails_alone_and_nobody_steps_twice(make: Callable[..., Made]) -> None:
    it = make(slots=8)
    for name in range(1, 9):
        it.step(name, name, starts=True)
    it.session.hold()
    first = it.send(1, 0)
    it.session.wait_runs(9)
    others = {name: it.send(name, POISON if name == 5 else 10) for name in range(2, 9)}
    it.session.release()
    assert total(first) == 1
    assert isinstance(why(others[5]), RunFailed)
    assert {name: total(other) for name, other in others.items() if name != 5} == {
        name: name + 10 for name in range(2, 9) if name != 5
    }
    assert max(run.rows for run in it.session.runs) == 7
    assert [it.step(name, 0, ends=True) for name in range(1, 9)] == [1, 12, 13, 14, 5, 16, 17, 18]


def test_requests_of_one_sequence_run_in_order_and_those_of_others_beside_them(make: Callable[..., Made]) -> None:
    it = make()
    it.session.hold()
    blocker = it.send("z", 0, starts=True)
    it.session.wait_runs(1)
    answers = [it.send(name, 10**step, starts=step == 0, ends=step == 3) for step in range(4) for name in (1, 2)]
    assert it.scheduler.depth == 8
    assert it.scheduler.queue_bytes == 8 * 4
    it.session.release()
    assert [total(answer) for answer in answers] == [1, 1, 11, 11, 111, 111, 1111, 1111]
    total(blocker)
    assert [run.rows for run in it.session.runs] == [1, 2, 2, 2, 2]
    assert it.scheduler.drain(WAIT_S)
    assert it.scheduler.depth == it.scheduler.queue_bytes == it.scheduler.inflight == 0


def test_shapes_that_differ_are_not_merged(make: Callable[..., Made]) -> None:
    it = make()
    it.session.hold()
    blocker = it.send("z", 0, starts=True)
    it.session.wait_runs(1)
    answers = [it.send(name, 1, starts=True, length=name) for name in (1, 2)]
    it.session.release()
    assert [total(answer) for answer in answers] == [1, 2]
    total(blocker)
    assert [run.rows for run in it.session.runs] == [1, 1, 1]


def test_the_model_is_told_where_a_sequence_starts(make: Callable[..., Made]) -> None:
    it = make()
    starts = [it.send(1, 1, starts=step == 0, outputs=(1,)).wait(WAIT_S).outputs for step in range(2)]
    assert [float(start[0][0, 0]) for start in starts if start] == [1.0, -1.0]


def test_a_caller_who_leaves_while_its_step_runs_ends_the_sequence(make: Callable[..., Made]) -> None:
    it = make()
    it.step(1, 1, starts=True)
    it.session.hold()
    running = it.send(1, 1)
    it.session.wait_runs(2)
    behind = it.send(1, 1)
    again = it.send(1, 100, starts=True)
    running.leave()
    assert isinstance(why(running), CallCancelled)
    assert "nobody knows what it counts" in str(why(behind))
    it.session.release()
    assert total(again) == 100
    assert it.scheduler.sequence_counts.ended["client_left"] == 1


def test_a_caller_who_leaves_the_line_takes_its_sequence_with_it(make: Callable[..., Made]) -> None:
    it = make(slots=1)
    it.step(1, 1, starts=True)
    waiting, behind = it.send(2, 1, starts=True), it.send(2, 1)
    waiting.leave()
    assert isinstance(why(waiting), CallCancelled)
    assert isinstance(why(behind), InvalidRequest)
    counts = it.scheduler.sequence_counts
    assert (counts.active, counts.waiting) == (1, 0)
    assert it.scheduler.depth == it.scheduler.queue_bytes == 0
    assert it.step(1, 1) == 2


def test_an_idle_sequence_gives_its_slot_to_who_waits(make: Callable[..., Made]) -> None:
    clock = FakeClock()
    it = make(slots=1, idle_s=5.0, clock=clock)
    it.step(1, 1, starts=True)
    waiting = it.send(2, 7, starts=True)
    clock.advance(4.9)
    it.scheduler.tend()
    assert waiting.answers == 0
    clock.advance(0.2)
    it.scheduler.tend()
    assert total(waiting) == 7
    with pytest.raises(InvalidRequest, match=r"idle for more than 5 s"):
        it.send(1, 1)
    assert it.scheduler.sequence_counts.ended["idle"] == 1


def test_its_thread_sees_to_that_by_itself(make: Callable[..., Made]) -> None:
    it = make(slots=1, idle_s=0.05, clock=time.monotonic_ns)
    it.step(1, 1, starts=True)
    assert it.step(2, 7, starts=True) == 7


def test_a_deadline_that_passes_in_the_line(make: Callable[..., Made]) -> None:
    clock = FakeClock()
    it = make(slots=1, clock=clock)
    it.step(1, 1, starts=True)
    waiting = it.send(2, 7, starts=True, timeout_s=2.0)
    clock.advance(2.1)
    it.scheduler.tend()
    assert isinstance(why(waiting), DeadlineExpired)
    assert "one of the 1 slots of 'm'" in str(why(waiting))
    assert it.scheduler.sequence_counts.waiting == 0


def test_there_is_only_so_much_room_and_who_has_a_slot_goes_first(make: Callable[..., Made]) -> None:
    it = make(slots=1, max_requests=2, max_bytes=64)
    it.step(1, 1, starts=True)
    waiting = [it.send(name, 1, starts=True, ends=True) for name in (2, 3)]
    with pytest.raises(Overloaded, match="2 requests of sequences that wait for one of 1 slots") as refused:
        it.send(4, 1, starts=True)
    assert refused.value.retry_after_s > 0
    with pytest.raises(TooLarge):
        it.send(5, 1, starts=True, length=17)
    with pytest.raises(Overloaded, match="of 64 bytes"):
        it.send(1, 1, length=15)
    assert it.step(1, 1, ends=True) == 2
    assert [total(each) for each in waiting] == [1, 1]
    assert it.scheduler.queue_bytes == 0
    assert it.scheduler.sequence_counts.refused["no_room"] == 2


def test_a_broken_stream_ends_what_hangs_on_it_and_nothing_else(make: Callable[..., Made]) -> None:
    it = make()
    stream, other = Lifeline(), Lifeline()
    for name in (1, 2, 3, 4):
        total(it.send(name, 1, starts=True, lifeline=stream))
    total(it.send(2, 1, lifeline=other))  # goes on by another stream
    it.step(3, 1)  # goes on by calls of its own
    total(it.send(4, 1, ends=True, lifeline=stream))
    assert it.scheduler.drain(WAIT_S)
    assert [*stream._bound] == [*stream._bound][:1], "only sequence 1 still hangs on it"
    stream.cut()
    with pytest.raises(InvalidRequest, match="stream broke"):
        it.send(1, 1)
    assert (it.step(2, 1), it.step(3, 1)) == (3, 3)
    assert it.scheduler.sequence_counts.ended["client_left"] == 1


def test_a_stream_remembers_nothing_of_sequences_that_are_over(make: Callable[..., Made]) -> None:
    it = make()
    stream = Lifeline()
    for name in range(1, 200):
        total(it.send(name, 1, starts=True, ends=True, lifeline=stream))
    assert it.scheduler.drain(WAIT_S)
    assert len(it.scheduler._sequences) == 0
    assert not stream._bound


def test_a_withdrawn_version_finishes_its_sequences_and_starts_none(make: Callable[..., Made]) -> None:
    clock = FakeClock()
    it = make(clock=clock)
    it.step(1, 1, starts=True)
    it.step(2, 1, starts=True)
    empty: list[bool] = []
    it.scheduler.withdraw(30.0, lambda: empty.append(True))
    with pytest.raises(Withdrawn):
        it.send(3, 1, starts=True)
    assert it.scheduler.keeps(1)
    assert it.step(1, 1, ends=True) == 2
    assert it.scheduler.drain(WAIT_S)
    assert not empty
    clock.advance(31.0)
    it.scheduler.tend()
    assert empty == [True]
    assert not it.scheduler.keeps(2)
    with pytest.raises(InvalidRequest, match="its version was unloaded"):
        it.send(2, 1)


def test_one_without_sequences_is_let_go_at_once(make: Callable[..., Made]) -> None:
    it = make()
    empty: list[bool] = []
    it.scheduler.withdraw(30.0, lambda: empty.append(True))
    assert empty == [True]


def test_closing_answers_everybody() -> None:
    it = Made(slots=1)
    it.session.hold()
    running, behind, slotless = it.send(1, 1, starts=True), it.send(1, 1), it.send(2, 1, starts=True)
    it.session.wait_runs(1)
    threading.Timer(0.05, it.session.release).start()
    assert it.scheduler.close()
    assert total(running) == 1
    assert isinstance(why(behind), Stopping)
    assert isinstance(why(slotless), Stopping)
    assert not any(thread.name.startswith("m/1") for thread in threading.enumerate())


def test_inline_models_keep_sequences_too(make: Callable[..., Made]) -> None:
    loop = InlineLoop()
    it = make(inline=loop)
    answers = [it.send(name, 1, starts=step == 0, ends=step == 2) for step in range(3) for name in (1, 2)]
    while loop.run_ready():
        pass
    assert [total(answer) for answer in answers] == [1, 1, 2, 2, 3, 3]
    assert {answer.thread for answer in answers} == {threading.current_thread().name}
    assert [run.rows for run in it.session.runs] == [2, 2, 2]


def test_many_sequences_on_several_instances_get_their_own_sums(make: Callable[..., Made]) -> None:
    it = make(slots=5, instances=3)
    answers = [
        (sum(range(step + 1)) + (step + 1) * name, it.send(name, step + name, starts=step == 0, ends=step == 9))
        for step in range(10)
        for name in range(1, 21)
    ]
    assert [total(answer) for _, answer in answers] == [expected for expected, _ in answers]
    assert it.scheduler.drain(WAIT_S)
    counts = it.scheduler.sequence_counts
    assert (counts.active, counts.waiting, counts.ended["end"]) == (0, 0, 20)


def test_nothing_of_an_answered_request_is_kept(make: Callable[..., Made]) -> None:
    it = make()
    responder = it.send(1, 1, starts=True)
    total(responder)
    assert it.scheduler.drain(WAIT_S)
    gone = weakref.ref(responder)
    del responder
    gc.collect()
    assert gone() is None


def test_the_metrics_page_knows_it(make: Callable[..., Made]) -> None:
    assert isinstance(make().scheduler, KeepsSequences)


@pytest.mark.parametrize(
    ("dtype", "name", "value"),
    [(INT32, 7, 7), (UINT64, -1, (1 << 64) - 1), (BYTES, 7, "7"), (BYTES, "a", "a")],
)
def test_a_correlation_id_is_given_to_the_model(dtype: object, name: SequenceId, value: object) -> None:
    control = Control(name="id", kind=ControlKind.CORRELATION_ID, dtype=dtype, rank=2)  # type: ignore[arg-type]
    array = control.array(Position(name))
    assert array.shape == (1, 1)
    assert array[0, 0] == value


@pytest.mark.parametrize(
    ("dtype", "name", "part"),
    [(INT32, 1 << 31, "this model takes -2147483648 to 2147483647"), (UINT64, "a", "this model takes integers")],
)
def test_a_correlation_id_that_the_model_cannot_take_is_refused(dtype: object, name: SequenceId, part: str) -> None:
    control = Control(name="id", kind=ControlKind.CORRELATION_ID, dtype=dtype, rank=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=part):
        control.array(Position(name))


def test_ready_is_always_true() -> None:
    control = Control(name="ready", kind=ControlKind.READY, dtype=BOOL, rank=2)
    assert control.array(Position(1)).tolist() == [[True]]
