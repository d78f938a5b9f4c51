"""ModelStreamInfer under gRPC's interoperability cases, and case 23 as far as it fits one answer a request."""

import queue
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from conformance.process import IN_FLIGHT, MIB, QUEUED, REQUESTS, ServerProcess, wait_until
from conformance.wire import INFERENCE, Caller, ask, tensor, trips, zeros

from forwardpass_proto import grpc_service_pb2 as pb

INFER = f"{INFERENCE}/ModelStreamInfer"
CANCELLED = grpc.StatusCode.CANCELLED


def interop(name: str, expected: str) -> pytest.MarkDecorator:
    return pytest.mark.case("interop", name, expected)


class Stream:
    """A stream whose requests are sent when the test says so."""

    def __init__(self, caller: Caller, timeout_s: float | None = 30.0, **how: object) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        sent: Iterator[bytes] = iter(self._requests.get, None)  # type: ignore[arg-type]
        self.call = caller.channel.stream_stream(INFER)(sent, timeout=timeout_s, **how)

    def send(self, request: pb.ModelInferRequest | bytes) -> None:
        self._requests.put(request if isinstance(request, bytes) else request.SerializeToString())

    def half_close(self) -> None:
        self._requests.put(None)

    def receive(self) -> pb.ModelStreamInferResponse:
        return pb.ModelStreamInferResponse.FromString(next(self.call))

    def rest(self) -> list[pb.ModelStreamInferResponse]:
        return [pb.ModelStreamInferResponse.FromString(each) for each in self.call]


@pytest.fixture
def stream(caller: Caller) -> Iterator[Callable[..., Stream]]:
    """`stream(timeout_s=…)`: opened to the shared server, and ended with the test."""
    opened: list[Stream] = []

    def begin(**how: object) -> Stream:
        opened.append(Stream(caller, **how))  # type: ignore[arg-type]
        return opened[-1]

    yield begin
    for each in opened:
        each.half_close()
        each.call.cancel()


def numbered(number: int) -> pb.ModelInferRequest:
    x = np.full((1, 3), number, np.float32)
    return ask("identity_fp32", tensor("x", x), request_id=f"r{number}")


def is_answer(response: pb.ModelStreamInferResponse, number: int) -> bool:
    answer = response.infer_response
    raw = np.full((1, 3), number, np.float32).tobytes()
    return not response.error_message and (answer.id, answer.raw_output_contents[0]) == (f"r{number}", raw)


@interop("empty_stream", "OK with 0 responses")
def test_a_stream_that_is_half_closed_at_once_ends_ok_without_a_response(stream: Callable[..., Stream]) -> None:
    opened = stream()
    opened.half_close()
    assert opened.rest() == []
    assert opened.call.code() is grpc.StatusCode.OK


@interop("ping_pong", "one answer a request, before the half-close")
def test_each_request_is_answered_before_the_next_is_sent(stream: Callable[..., Stream]) -> None:
    opened = stream()
    for number in range(50):
        opened.send(numbered(number))
        assert is_answer(opened.receive(), number)
    opened.half_close()
    assert opened.rest() == []
    assert opened.call.code() is grpc.StatusCode.OK


@interop("ping_pong", "answers in the order of their requests")
def test_a_thousand_requests_without_waiting_are_answered_in_their_order(stream: Callable[..., Stream]) -> None:
    opened = stream()
    for number in range(1000):
        opened.send(numbered(number))
    opened.half_close()
    answers = opened.rest()
    assert len(answers) == 1000
    assert all(is_answer(answer, number) for number, answer in enumerate(answers))


@interop("large_unary", "OK, in a stream too")
def test_a_large_message_goes_each_way_in_a_stream(stream: Callable[..., Stream]) -> None:
    opened = stream()
    x = np.random.default_rng(0).integers(0, 256, (1, 4_000_000), np.uint8)
    opened.send(ask("identity_uint8", tensor("x", x)))
    assert opened.receive().infer_response.raw_output_contents[0] == x.tobytes()


@interop("status_code_and_message", "an error stays inside the stream")
@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ask("ghost", request_id="wrong"), "ghost"),
        (ask("mlp", zeros("FP32", (1, 9)), request_id="wrong"), "unexpected shape"),
        (ask("broken", zeros("FP32", (1, 9)), request_id="wrong"), "broken"),
        (b"\xff\xff", "malformed"),
    ],
    ids=["unknown", "shape", "not ready", "bytes"],
)
def test_an_error_ends_its_own_request_and_no_other(
    stream: Callable[..., Stream], request_: pb.ModelInferRequest | bytes, words: str
) -> None:
    opened = stream()
    opened.send(numbered(1))
    opened.send(request_)
    opened.send(numbered(2))
    opened.half_close()
    first, wrong, second = opened.rest()
    assert is_answer(first, 1)
    assert is_answer(second, 2)
    assert words in wrong.error_message
    assert opened.call.code() is grpc.StatusCode.OK


@interop("cancel_after_begin", "CANCELLED")
def test_a_stream_of_requests_cancelled_before_it_sent_anything_ends_cancelled(stream: Callable[..., Stream]) -> None:
    opened = stream()
    opened.call.cancel()
    assert opened.call.code() is CANCELLED


@interop("cancel_after_first_response", "CANCELLED; what it had queued never runs")
def test_a_stream_of_requests_cancelled_after_its_first_answer_takes_the_rest_along(
    server: ServerProcess, stream: Callable[..., Stream]
) -> None:
    before = server.total(REQUESTS, model="slow", outcome="ok")
    opened = stream()
    opened.send(ask("slow", trips(0)))
    opened.receive()
    for _ in range(5):
        opened.send(ask("slow", trips(400_000)))
    wait_until(lambda: server.total(IN_FLIGHT, model="slow") >= 2, "the rest is inside")
    opened.call.cancel()
    assert opened.call.code() is CANCELLED
    wait_until(lambda: server.total(IN_FLIGHT) == 0 and server.total(QUEUED) == 0, "nothing is left of it")
    assert server.total(REQUESTS, model="slow", outcome="ok") - before <= 2


@interop("timeout_on_sleeping_server", "DEADLINE_EXCEEDED")
def test_a_deadline_of_a_stream_passes_while_the_model_works(stream: Callable[..., Stream]) -> None:
    opened = stream(timeout_s=0.2)
    opened.send(ask("slow", trips(400_000)))
    with pytest.raises(grpc.RpcError):
        opened.rest()
    assert opened.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@interop("half-closed, never read", "flow control holds it; gone with its caller")
def test_a_reader_who_does_not_read_costs_no_more_than_a_queue(
    server: ServerProcess, stream: Callable[..., Stream]
) -> None:
    opened = stream()
    before = server.memory_bytes()
    body = ask("identity_uint8", zeros("UINT8", (1, 1 << 20))).SerializeToString()
    for _ in range(2000):  # 2 GB of answers, were they all made
        opened.send(body)
    wait_until(lambda: server.total("grpc_server_started_total", grpc_method="ModelStreamInfer") >= 1, "it began")
    assert server.valid_request().ok
    # What was read before the first answers waited is bounded by the model's queue, 256 MiB, and answered.
    assert server.memory_bytes() - before < 450 * MIB, "answers pile up for a reader who does not read"
    opened.call.cancel()


@interop("many streams", "all answered")
def test_two_hundred_streams_at_once_are_all_answered(server: ServerProcess, caller: Caller) -> None:
    opened = [Stream(caller) for _ in range(200)]
    for number, each in enumerate(opened):
        each.send(numbered(number))
        each.half_close()
    assert all(is_answer(answer, number) for number, each in enumerate(opened) for answer in each.rest())
    assert {each.call.code() for each in opened} == {grpc.StatusCode.OK}
