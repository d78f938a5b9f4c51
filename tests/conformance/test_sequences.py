"""Sequences: cases 23 and 31 on a model that keeps a sum, and callers who make of sequences what they should not."""

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from conformance.process import IN_FLIGHT, ServerProcess, wait_until
from conformance.wire import INFERENCE, Caller, invalid, ok

from forwardpass_proto import grpc_service_pb2 as pb

MODEL = "counter"
SLOTS = 64
ACTIVE, WAITING, ENDED = "sequences_active", "sequences_waiting", "sequences_ended_total"


def step(name: int | str | None, x: float, request_id: str = "", **flags: bool) -> pb.ModelInferRequest:
    """A request of a sequence: `starts`, `ends`."""
    message = pb.ModelInferRequest(model_name=MODEL, id=request_id)
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    message.raw_input_contents.append(np.float32(x).tobytes())
    if name is not None:
        setattr(message.parameters["sequence_id"], "int64_param" if isinstance(name, int) else "string_param", name)
    for flag, value in flags.items():
        message.parameters[f"sequence_{flag.removesuffix('s')}"].bool_param = value
    return message


class Stream:
    """A stream that stays open until it is told otherwise."""

    def __init__(self, caller: Caller) -> None:
        self._requests: SimpleQueue[pb.ModelInferRequest | None] = SimpleQueue()
        multi = caller.channel.stream_stream(
            f"{INFERENCE}/ModelStreamInfer",
            lambda message: message.SerializeToString(),
            pb.ModelStreamInferResponse.FromString,
        )
        self.call: Any = multi(iter(self._requests.get, None), timeout=60.0)

    def send(self, *requests: pb.ModelInferRequest) -> None:
        for request in requests:
            self._requests.put(request)

    def half_close(self) -> None:
        self._requests.put(None)

    def hear(self) -> pb.ModelStreamInferResponse:
        response: pb.ModelStreamInferResponse = next(self.call)
        return response

    def sum(self) -> float:
        response = self.hear()
        assert not response.error_message, response.error_message
        return sum_of(response)


def sum_of(response: pb.ModelStreamInferResponse) -> float:
    return float(np.frombuffer(response.infer_response.raw_output_contents[0], np.float32)[0])


@pytest.fixture
def stream(caller: Caller) -> Iterator[Stream]:
    it = Stream(caller)
    yield it
    it.half_close()
    it.call.cancel()


@pytest.fixture(autouse=True)
def nothing_left(server: ServerProcess) -> Iterator[None]:
    """Whatever a test did, its slots are free again."""
    yield
    wait_until(lambda: server.total(ACTIVE, model=MODEL) == server.total(WAITING, model=MODEL) == 0, "slots are free")
    assert server.total(IN_FLIGHT, model=MODEL) == 0


case_23 = pytest.mark.case("23", "a stream is cancelled in the middle of sequences", "their slots are freed")


@case_23
@pytest.mark.parametrize("k", [1, 5, SLOTS])
def test_sequences_go_with_their_stream(server: ServerProcess, stream: Stream, k: int) -> None:
    before = server.total(ENDED, model=MODEL, reason="client_left")
    stream.send(*(step(name, 1, starts=True) for name in range(1, k + 1)))
    assert [stream.sum() for _ in range(k)] == [1.0] * k
    assert server.total(ACTIVE, model=MODEL) == k
    stream.call.cancel()
    wait_until(lambda: server.total(ENDED, model=MODEL, reason="client_left") == before + k, "all are over")


@case_23
def test_those_that_wait_for_a_slot_go_too(server: ServerProcess, stream: Stream) -> None:
    stream.send(*(step(name, 1, starts=True) for name in range(1, SLOTS + 101)))
    for _ in range(SLOTS):
        stream.sum()
    wait_until(lambda: server.total(WAITING, model=MODEL) == 100, "the others wait")
    stream.call.cancel()
    wait_until(lambda: server.total(WAITING, model=MODEL) == 0, "nobody waits")


@case_23
def test_a_stream_that_ends_as_it_should_leaves_its_sequences(caller: Caller, stream: Stream) -> None:
    stream.send(step("kept", 1, starts=True))
    stream.half_close()
    assert stream.sum() == 1
    assert [*stream.call] == []
    assert ok(caller.infer(step("kept", 2, ends=True)))["y"].array[0, 0] == 3


case_31 = pytest.mark.case("31", "responses of interleaved sequences", "in order, each final, each its own sum")


@case_31
def test_answers_come_in_the_order_of_the_requests_each_final(stream: Stream) -> None:
    names, steps = 50, 8
    for number in range(steps):
        stream.send(
            *(
                step(name, name, f"{name}.{number}", starts=number == 0, ends=number == steps - 1)
                for name in range(1, names + 1)
            )
        )
    for number in range(steps):
        for name in range(1, names + 1):
            response = stream.hear()
            assert response.infer_response.id == f"{name}.{number}"
            assert response.infer_response.parameters["triton_final_response"].bool_param
            assert sum_of(response) == name * (number + 1)


@case_31
def test_what_is_refused_is_said_in_its_place_and_harms_no_sequence(stream: Stream) -> None:
    stream.send(
        step(1, 1, "a", starts=True), step(2, 1, "b"), step(1, 1, "c"), step(None, 1, "d"), step(1, 1, ends=True)
    )
    answers = [stream.hear() for _ in range(5)]
    assert [answer.infer_response.id for answer in answers[:4]] == ["a", "b", "c", "d"]
    assert "for sequence 2 to model 'counter' must specify the START flag" in answers[1].error_message
    assert "non-zero or non-empty correlation ID" in answers[3].error_message
    assert [sum_of(answers[at]) for at in (0, 2, 4)] == [1, 2, 3]


case_sequences = pytest.mark.case("sequences", "ids and flags as they should not be", "INVALID_ARGUMENT; no slot taken")


@case_sequences
@pytest.mark.parametrize(
    ("key", "choice"),
    [
        ("sequence_id", {"bool_param": True}),
        ("sequence_id", {"double_param": 7.0}),
        ("sequence_id", {"string_param": "n" * 129}),
        ("sequence_id", {"string_param": "\u00e9" * 65}),
        ("sequence_start", {"int64_param": 1}),
        ("sequence_start", {"string_param": "true"}),
        ("sequence_end", {"double_param": 1.0}),
    ],
)
def test_ids_and_flags_of_the_wrong_type_are_refused_by_name(caller: Caller, key: str, choice: dict[str, Any]) -> None:
    request = step(7, 1, starts=True)
    request.parameters[key].Clear()
    request.parameters[key].MergeFrom(pb.InferParameter(**choice))
    invalid(caller.infer(request), key)


@case_sequences
@pytest.mark.parametrize("name", [1, -1, (1 << 63) - 1, -(1 << 63), "n" * 128, "\u0000", "'; --", " "])
def test_odd_ids_are_ids(caller: Caller, name: int | str) -> None:
    assert ok(caller.infer(step(name, 1, starts=True)))["y"].array[0, 0] == 1
    assert ok(caller.infer(step(name, 2, ends=True)))["y"].array[0, 0] == 3


@case_sequences
def test_ids_that_nobody_started_leave_nothing_behind(server: ServerProcess, caller: Caller) -> None:
    calls = [caller.begin(step(f"ghost {number}", 1), timeout_s=60.0) for number in range(2000)]
    # A machine that is busy reads some of them too late, and says so.
    codes = {call.outcome().code for call in calls}
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert codes <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert server.total(ACTIVE, model=MODEL) == 0


@case_sequences
def test_who_hangs_up_in_the_middle_ends_its_sequence(server: ServerProcess) -> None:
    with Caller(server.target) as leaving:
        calls = [leaving.begin(step(1, 1, starts=number == 0), timeout_s=60.0) for number in range(200)]
        calls[100].cancel()
        codes = {call.outcome().code for call in calls}
    codes -= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.INVALID_ARGUMENT}
