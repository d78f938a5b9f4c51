"""Texts that are streamed: cases 23, 31 and 32, on a model that writes them; see also `test_streams`."""

from collections.abc import Iterator

import grpc
import pytest
from conformance.process import IN_FLIGHT, REQUESTS, RUNS, ServerProcess, wait_until
from conformance.wire import INFERENCE, Caller

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.runtime.fake_generator import CHARACTERS, right_text
from forwardpass_server.scheduling.text import Sampling

CANCELLED = grpc.StatusCode.CANCELLED
ACTIVE, TOKENS = "generation_active", "generation_tokens_total"
LONG = 60_000


def prompt(text: str, request_id: str = "", **parameters: int | float | str) -> pb.ModelInferRequest:
    """A request for a text."""
    message = pb.ModelInferRequest(model_name="bard", id=request_id)
    message.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(len(text.encode()).to_bytes(4, "little") + text.encode())
    for name, value in parameters.items():
        kind = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


def stream(caller: Caller, *requests: pb.ModelInferRequest, timeout_s: float = 60.0) -> grpc.Call:
    """All the requests on one stream, which is half-closed then."""
    multi = caller.channel.stream_stream(
        f"{INFERENCE}/ModelStreamInfer",
        lambda message: message.SerializeToString(),
        pb.ModelStreamInferResponse.FromString,
    )
    return multi(iter(requests), timeout=timeout_s)


def text_of(responses: list[pb.ModelStreamInferResponse]) -> str:
    assert not any(response.error_message for response in responses), responses[-1].error_message
    return "".join(response.infer_response.raw_output_contents[0][4:].decode() for response in responses)


def finals(responses: list[pb.ModelStreamInferResponse]) -> list[bool]:
    """The final flag of each response, which each has."""
    flags = [response.infer_response.parameters["triton_final_response"] for response in responses]
    assert all(flag.WhichOneof("parameter_choice") == "bool_param" for flag in flags)
    return [flag.bool_param for flag in flags]


case_23 = pytest.mark.case("23", "a stream is cancelled after k messages", "it stops within one step; slot freed")


@case_23
@pytest.mark.parametrize("k", [0, 1, 5])
def test_a_text_whose_caller_leaves_is_written_no_further(server: ServerProcess, caller: Caller, k: int) -> None:
    before = server.total(REQUESTS, model="bard", outcome="canceled")
    call = stream(caller, prompt("to be", max_tokens=LONG, seed=k))
    if not k:
        wait_until(lambda: server.total(ACTIVE, model="bard") == 1, "the text was begun")
    for _ in range(k):
        next(call)
    call.cancel()
    assert call.code() is CANCELLED
    wait_until(lambda: server.total(REQUESTS, model="bard", outcome="canceled") == before + 1, "it is over")
    page = server.page()
    assert (page.total(ACTIVE, model="bard"), page.total(IN_FLIGHT, model="bard")) == (0, 0)
    assert server.total(RUNS, model="bard") == page.total(RUNS, model="bard"), "it is written on"
    assert server.total(TOKENS, model="bard") == page.total(TOKENS, model="bard")


@case_23
def test_a_hundred_texts_of_one_stream_go_with_their_caller(server: ServerProcess, caller: Caller) -> None:
    before = server.total(REQUESTS, model="bard", outcome="canceled")
    call = stream(caller, *(prompt("to be", f"r{n}", max_tokens=LONG, seed=n) for n in range(100)))
    wait_until(lambda: server.total(IN_FLIGHT, model="bard") == 100, "all were begun")
    for _ in range(200):
        next(call)
    call.cancel()
    wait_until(lambda: server.total(REQUESTS, model="bard", outcome="canceled") == before + 100, "all are over")
    assert server.total(ACTIVE, model="bard") == 0


@case_23
def test_a_deadline_ends_a_text(server: ServerProcess, caller: Caller) -> None:
    call = stream(caller, prompt("to be", max_tokens=LONG, seed=1), timeout_s=0.2)
    with pytest.raises(grpc.RpcError):
        list(call)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: server.total(ACTIVE, model="bard") == 0, "its slot is free")


@case_23
def test_texts_beside_one_that_is_cancelled_go_on(server: ServerProcess, caller: Caller) -> None:
    kept = [stream(caller, prompt("to be", max_tokens=2000, seed=n)) for n in range(5)]
    left = [stream(caller, prompt("to be", max_tokens=LONG, seed=n)) for n in range(5)]
    for call in (*kept, *left):
        next(call)
    for call in left:
        call.cancel()
    for n, call in enumerate(kept):
        right = right_text("to be", Sampling(max_tokens=2000, seed=n))
        assert right.endswith(text_of([*call]))


case_31 = pytest.mark.case("31", "responses of a stream", "in order, each with the final flag, exactly one final")


@case_31
def test_pieces_come_in_order_and_the_last_says_so(server: ServerProcess, caller: Caller) -> None:
    responses = [*stream(caller, prompt("to be", "r1", max_tokens=500, seed=1))]
    assert text_of(responses) == right_text("to be", Sampling(max_tokens=500, seed=1))
    assert finals(responses) == [False] * (len(responses) - 1) + [True]
    assert {response.infer_response.id for response in responses} == {"r1"}
    assert responses[-1].infer_response.parameters["generated_tokens"].int64_param == 500


@case_31
def test_texts_of_one_stream_come_side_by_side_each_in_its_order(server: ServerProcess, caller: Caller) -> None:
    asked = [prompt("to be", f"r{n}", max_tokens=100 + n, seed=n) for n in range(50)]
    responses = [*stream(caller, *asked)]
    for n in range(50):
        mine = [response for response in responses if response.infer_response.id == f"r{n}"]
        assert text_of(mine) == right_text("to be", Sampling(max_tokens=100 + n, seed=n))
        assert finals(mine).count(True) == 1
        assert finals(mine)[-1]
    first_final = finals(responses).index(True)
    assert len({response.infer_response.id for response in responses[:first_final]}) > 1, "one after the other"


@case_31
def test_a_text_that_stops_before_its_first_character_has_one_response(server: ServerProcess, caller: Caller) -> None:
    first = right_text("to be", Sampling(max_tokens=1, seed=1))
    responses = [*stream(caller, prompt("to be", max_tokens=500, seed=1, stop=first))]
    assert (text_of(responses), finals(responses)) == ("", [True])
    assert responses[0].infer_response.parameters["finish_reason"].string_param == "stop"


@case_31
def test_a_text_that_is_refused_has_one_response(server: ServerProcess, caller: Caller) -> None:
    responses = [*stream(caller, prompt("TO BE", "r1"))]
    assert finals(responses) == [True]
    assert "'T' at 0, 'O' at 1, 'B' at 3 and 1 more" in responses[0].error_message


case_32 = pytest.mark.case("32", "a unary call to a model that streams", "the whole text: it has a unary form")


@case_32
def test_a_unary_call_gets_the_whole_text(server: ServerProcess, caller: Caller) -> None:
    outcome = caller.infer(prompt("to be", max_tokens=500, seed=1), timeout_s=60.0)
    assert outcome.ok, outcome
    answer = pb.ModelInferResponse.FromString(outcome.body or b"")
    right = right_text("to be", Sampling(max_tokens=500, seed=1))
    assert answer.raw_output_contents[0][4:].decode() == right
    assert answer.parameters["finish_reason"].string_param == "length"


@case_32
def test_a_unary_caller_who_leaves_ends_its_text(server: ServerProcess, caller: Caller) -> None:
    before = server.total(REQUESTS, model="bard", outcome="canceled")
    pending = caller.begin(prompt("to be", max_tokens=LONG, seed=1), timeout_s=60.0)
    wait_until(lambda: server.total(ACTIVE, model="bard") == 1, "the text was begun")
    pending.cancel()
    assert pending.outcome().code is CANCELLED
    wait_until(lambda: server.total(REQUESTS, model="bard", outcome="canceled") == before + 1, "it is over")


def _hostile() -> Iterator[pb.ModelInferRequest]:
    for text in ("", "\0", "é" * 100, "a" * 9000, "".join(CHARACTERS) * 1000):
        yield prompt(text)
    for name in ("max_tokens", "top_k", "top_p", "temperature", "seed", "stop"):
        for value in (0, -1, 2**63 - 1, float("nan"), float("inf"), -0.0, "", "x" * 1000):
            yield prompt("a", **{"max_tokens": 1, name: value})


@pytest.mark.case("-", "hostile prompts and settings of a text", "OK or INVALID_ARGUMENT")
def test_hostile_prompts_and_settings_are_answered_or_refused(server: ServerProcess, caller: Caller) -> None:
    for message in _hostile():
        outcome = caller.infer(message, timeout_s=60.0)
        assert outcome.code in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}, outcome
