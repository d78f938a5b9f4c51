"""Sequences: one stream to one server, whose requests say where they stand."""

import asyncio
import math
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass import AsyncClient, Client
from forwardpass import errors as e
from forwardpass_proto import grpc_service_pb2 as pb


class Accumulator:
    """A server's stateful model: answers the sum of all of a sequence's `x`. Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.left = threading.Event()
        self.time_left_s: list[float] = []

    def __call__(self, requests: Iterator[pb.ModelInferRequest], context: Any) -> Iterator[pb.ModelStreamInferResponse]:
        context.add_callback(self.left.set)
        self.time_left_s.append(context.time_remaining() or math.inf)
        total = np.zeros(1, np.float32)
        for request in requests:
            said = {
                key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in request.parameters.items()
            }
            self.told.append(said)
            x = np.frombuffer(request.raw_input_contents[0], np.float32)
            if x[0] < 0:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "x is negative")
            total = x + (0 if said["sequence_start"] else total)
            reply = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
            reply.outputs.add(name="sum", datatype="FP32", shape=[1])
            reply.raw_output_contents.append(total.tobytes())
            yield pb.ModelStreamInferResponse(infer_response=reply)


@pytest.fixture
def counter(server: Any, make_model: Any) -> Accumulator:
    server.models["counter"] = make_model([("x", "FP32", [1])], [("sum", "FP32", [1])], lambda _request, _reply: None)
    server.stream = Accumulator()
    accumulator: Accumulator = server.stream
    return accumulator


def test_requests_say_where_they_stand_and_answers_know_of_those_before(counter: Accumulator, client: Client) -> None:
    with client.sequence("counter") as sequence:
        sums = [float(sequence.infer({"x": [x]}, end=x == 3)["sum"][0]) for x in (1, 2, 3)]
    assert sums == [1, 3, 6]
    assert [(told["sequence_start"], told["sequence_end"]) for told in counter.told] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert {told["sequence_id"] for told in counter.told} == {sequence.id}
    assert isinstance(sequence.id, int)
    assert 0 < sequence.id < 2**63


def test_sequences_interleave_without_mixing(counter: Accumulator, client: Client) -> None:
    with client.sequence("counter", "left") as left, client.sequence("counter") as right:
        assert right.id != left.id == "left"
        sums = [(left.infer({"x": [x]})["sum"][0], right.infer({"x": [10 * x]})["sum"][0]) for x in (1, 2, 3)]
    assert sums == [(1, 10), (3, 30), (6, 60)]


def test_asyncio_has_the_same(counter: Accumulator, server: Any) -> None:
    async def ask() -> list[float]:
        async with AsyncClient(server.address, deadline_s=20) as client, client.sequence("counter", 5) as sequence:
            sums = [float((await sequence.infer({"x": [x]}))["sum"][0]) for x in (1, 2)]
            sums.append(float((await sequence.infer({"x": [3]}, end=True))["sum"][0]))
            with pytest.raises(e.ClientMisused, match="sequence 5 is over"):
                await sequence.infer({"x": [1]})
            return sums

    assert asyncio.run(ask()) == [1, 3, 6]
    assert counter.told[0] == {"sequence_id": 5, "sequence_start": True, "sequence_end": False}


def test_leaving_ends_the_stream_and_nothing_comes_after(counter: Accumulator, client: Client) -> None:
    with client.sequence("counter", 7) as sequence:
        sequence.infer({"x": [1]})
    assert counter.left.wait(10)
    with pytest.raises(e.ClientMisused, match="sequence 7 is over; begin another"):
        sequence.infer({"x": [1]})
    threads = {thread.name for thread in threading.enumerate() if "consume_request_iterator" in thread.name}
    assert threads == set()


def test_a_request_that_the_client_refuses_leaves_the_sequence_where_it_was(
    counter: Accumulator, client: Client
) -> None:
    with client.sequence("counter") as sequence:
        with pytest.raises(e.InvalidRequest, match="there is no input 'y'"):
            sequence.infer({"y": [1]})
        sequence.infer({"x": [1]})
        with pytest.raises(e.InvalidRequest, match="got text"):
            sequence.infer({"x": "one"})
        assert sequence.infer({"x": [2]})["sum"][0] == 3
    assert [told["sequence_start"] for told in counter.told] == [True, False]


def test_a_request_that_the_server_refuses_ends_it(counter: Accumulator, client: Client) -> None:
    with client.sequence("counter") as sequence:
        sequence.infer({"x": [1]})
        with pytest.raises(e.InvalidRequest, match="x is negative") as caught:
            sequence.infer({"x": [-1]})
        assert caught.value.model == "counter"
        with pytest.raises(e.ClientMisused):
            sequence.infer({"x": [1]})


def test_a_sequence_has_no_deadline_but_its_own(counter: Accumulator, client: Client) -> None:
    def go_on_for_ever() -> None:
        with client.sequence("counter", deadline_s=0.2) as sequence:
            while True:
                sequence.infer({"x": [1]})

    with client.sequence("counter") as sequence:
        sequence.infer({"x": [1]})
    with pytest.raises(e.DeadlineExceeded, match=r"no answer within 0\.2 s"):
        go_on_for_ever()
    assert counter.time_left_s[0] > 3600
    assert counter.time_left_s[1] < 1


def test_a_server_that_ends_the_stream_is_said(server: Any, counter: Accumulator, client: Client) -> None:
    server.stream = lambda _requests, _context: iter(())
    with client.sequence("counter") as sequence, pytest.raises(e.MalformedReply, match="ended before the answer"):
        sequence.infer({"x": [1]})
