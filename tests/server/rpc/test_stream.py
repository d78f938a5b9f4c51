"""ModelStreamInfer over fakes: order, ids, final flags, errors inside the stream, callers who leave, back-pressure."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import RunFailed
from forwardpass_server.rpc.status import Code
from forwardpass_server.rpc.stream import TURNS_MAX, InferStream
from forwardpass_server.rpc.turn import Turn
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.tensors.wire import Decoder
from forwardpass_server.transport.call import StreamCall
from forwardpass_server.transport.fake import FakeServer, FakeStream

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
Make = Callable[..., pb.ModelInferRequest]


@pytest.fixture(autouse=True)
def nothing_left_behind(models: "Models") -> Iterator[None]:
    yield
    for leases in models.table.serving.values():
        assert leases.held == 0
        assert leases.version.scheduler.inflight == 0


def heard(stream: FakeStream) -> list[pb.ModelStreamInferResponse]:
    return [pb.ModelStreamInferResponse.FromString(body) for body in stream.heard]


def say(stream: FakeStream, *messages: pb.ModelInferRequest) -> None:
    stream.say(*(message.SerializeToString() for message in messages))


def final(response: pb.ModelStreamInferResponse) -> bool:
    """The flag, which every response has."""
    parameter = response.infer_response.parameters["triton_final_response"]
    assert parameter.WhichOneof("parameter_choice") == "bool_param"
    return parameter.bool_param


def done(server: "Server", models: "Models", model: str = "double") -> None:
    server.until(lambda: models.held(model) == 0)


def test_a_stream_without_messages_ends_ok(server: "Server") -> None:
    stream = server.fake.stream(STREAM)
    stream.half_close()
    assert (stream.result().code, stream.heard) == (0, [])


def test_each_request_is_answered_with_its_id_before_the_half_close(
    server: "Server", models: "Models", request_for: Make
) -> None:
    models.add("double", 3)
    stream = server.fake.stream(STREAM)
    for number in range(3):
        say(stream, request_for(value=number, id=f"r{number}"))
        server.until(lambda number=number: len(stream.heard) == number + 1)  # type: ignore[misc]
    answers = heard(stream)
    assert [a.infer_response.id for a in answers] == ["r0", "r1", "r2"]
    assert [(a.error_message, final(a), a.infer_response.model_version) for a in answers] == [("", True, "3")] * 3
    assert [np.frombuffer(a.infer_response.raw_output_contents[0], "<f4")[0] for a in answers] == [0, 2, 4]
    assert not stream.answered
    stream.half_close()
    assert stream.result().code == 0
    done(server, models)


def test_answers_keep_the_order_of_requests_to_slow_and_quick_models(
    server: "Server", models: "Models", request_for: Make
) -> None:
    slow = models.add("slow", 1)
    models.add("double", 1)
    slow.hold()
    stream = server.fake.stream(STREAM)
    say(stream, request_for("slow", id="a"), request_for(id="b"), request_for("slow", id="c"), request_for(id="d"))
    done(server, models)  # b and d are answered
    assert stream.heard == []
    slow.release()
    server.until(lambda: len(stream.heard) == 4)
    assert [answer.infer_response.id for answer in heard(stream)] == ["a", "b", "c", "d"]
    done(server, models, "slow")


def test_a_half_close_waits_for_what_is_pending(server: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1)
    session.hold()
    stream = server.fake.stream(STREAM)
    say(stream, request_for(id="a"), request_for(id="b"))
    stream.half_close()
    assert session.wait_runs(1)
    assert not stream.answered
    session.release()
    assert stream.result().code == 0
    assert [answer.infer_response.id for answer in heard(stream)] == ["a", "b"]
    done(server, models)


@pytest.mark.parametrize(
    ("change", "words", "named"),
    [
        (lambda m: m.ClearField("raw_input_contents"), "expected", True),
        (lambda m: setattr(m, "model_name", "nobody"), "not found", True),
        (lambda m: setattr(m, "model_version", "01"), "without leading zeros", True),
        (lambda m: m.parameters["sequence_id"].MergeFrom(pb.InferParameter(int64_param=1)), "sequence_id", True),
        (lambda m: setattr(m, "id", "x" * 129), "id of 129 characters", False),
    ],
    ids=["data", "model", "version", "parameter", "id"],
)
def test_an_error_is_said_inside_the_stream_which_goes_on(
    server: "Server",
    models: "Models",
    request_for: Make,
    change: Callable[[pb.ModelInferRequest], None],
    words: str,
    named: bool,
) -> None:
    models.add("double", 1)
    stream = server.fake.stream(STREAM)
    bad = request_for(id="bad")
    change(bad)
    say(stream, request_for(id="a"), bad, request_for(id="c"))
    stream.half_close()
    assert stream.result().code == 0
    first, second, third = heard(stream)
    assert [first.infer_response.id, third.infer_response.id] == ["a", "c"]
    assert (first.error_message, third.error_message) == ("", "")
    assert words in second.error_message
    assert final(second)
    assert second.HasField("infer_response")
    assert (second.infer_response.id, second.infer_response.model_name) == (
        ("bad", bad.model_name) if named else ("", "")
    )
    assert not second.infer_response.outputs
    done(server, models)


def test_bytes_that_are_no_request_are_an_error_inside_the_stream(
    server: "Server", models: "Models", request_for: Make
) -> None:
    models.add("double", 1)
    stream = server.fake.stream(STREAM)
    stream.say(b"\xff")
    say(stream, request_for(id="b"))
    server.until(lambda: len(stream.heard) == 2)
    bad, good = heard(stream)
    assert "malformed" in bad.error_message
    assert final(bad)
    assert good.infer_response.id == "b"
    done(server, models)


def test_a_failed_run_tells_the_stream_an_id_and_no_text(server: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1, poison=13.0, error=RunFailed("secret path /models/x"))
    stream = server.fake.stream(STREAM)
    say(stream, request_for(id="a", value=13.0), request_for(id="b"))
    stream.half_close()
    assert stream.result().code == 0
    bad, good = heard(stream)
    assert "internal error, id=" in bad.error_message
    assert "secret" not in bad.error_message
    assert (bad.infer_response.id, good.infer_response.id, good.error_message) == ("a", "b", "")
    done(server, models)


def test_a_full_queue_says_in_the_stream_when_to_retry(server: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1, limits=Limits(max_requests=1))
    session.hold()
    stream = server.fake.stream(STREAM)
    say(stream, request_for(id="a"))
    assert session.wait_runs(1)
    say(stream, request_for(id="b"), request_for(id="c"))
    session.release()
    stream.half_close()
    assert stream.result().code == 0
    full = heard(stream)[2]
    assert (full.infer_response.id, "queue of" in full.error_message) == ("c", True)
    assert int(full.infer_response.parameters["grpc-retry-pushback-ms"].string_param) >= 1
    done(server, models)


def test_a_caller_may_want_the_error_as_the_status_of_its_stream(
    server: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1)
    session.hold()
    stream = server.fake.stream(STREAM, metadata=(("triton_grpc_error", "true"),))
    say(stream, request_for(id="a"), request_for("nobody", id="b"), request_for(id="c"))
    assert session.wait_runs(1)
    assert not stream.answered  # what came before is answered first
    session.release()
    result = stream.result()
    assert result.code == Code.NOT_FOUND
    assert "nobody" in result.message
    assert [answer.infer_response.id for answer in heard(stream)] == ["a"]
    done(server, models)


def test_another_value_of_that_metadata_changes_nothing(server: "Server", request_for: Make) -> None:
    stream = server.fake.stream(STREAM, metadata=(("triton_grpc_error", "false"),))
    say(stream, request_for("nobody"))
    stream.half_close()
    assert stream.result().code == 0
    assert len(stream.heard) == 1


def test_a_caller_who_leaves_takes_what_is_queued_with_it(
    server: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1, limits=Limits(max_rows=1))
    session.hold()
    stream = server.fake.stream(STREAM)
    say(stream, *(request_for(value=number) for number in range(1, 6)))
    assert session.wait_runs(1)
    stream.cancel()
    session.release()
    done(server, models)
    assert len(session.runs) == 1
    assert stream.heard == []
    assert stream.result().code == Code.CANCELLED


def test_a_deadline_of_the_stream_is_one_of_its_requests(server: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1)
    stream = server.fake.stream(STREAM, deadline_s=1e-9)
    say(stream, request_for(id="late"))
    assert not session.runs
    assert models.held("double") == 0


def test_reading_stops_at_the_bound_and_goes_on_when_half_is_answered(
    server: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1, limits=Limits(max_requests=10_000, max_rows=1))
    session.hold()
    stream = server.fake.stream(STREAM)
    say(stream, *(request_for(id=str(number)) for number in range(3 * TURNS_MAX)))
    scheduler = models.scheduler("double")
    assert session.wait_runs(1)
    assert scheduler.inflight == TURNS_MAX
    stream.half_close()
    session.release()
    assert stream.result(60.0).code == 0
    assert [answer.infer_response.id for answer in heard(stream)] == [str(n) for n in range(3 * TURNS_MAX)]
    done(server, models)


def test_where_the_time_went_comes_with_each_response(server: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1)
    stream = server.fake.stream(STREAM, metadata=(("forwardpass-timing", "1"),))
    say(stream, request_for())
    server.until(lambda: len(stream.heard) == 1)
    (answer,) = heard(stream)
    assert '"run_us":' in answer.infer_response.parameters["forwardpass-timing"].string_param
    assert final(answer)
    done(server, models)


class Several:
    """Stands for `Infer` where a model answers as often as it likes: hands its turns to the test."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._decoder = Decoder()
        self.decode = self._decoder.decode

    def admit(self, caller: Turn, _request: object, _lifeline: object = None) -> None:
        self.turns.append(caller)


def several(*, ask_for_final: bool = False, requests: int = 1) -> tuple[FakeStream, list[Turn]]:
    """A stream to such a model, and its turns."""
    infer = Several()

    def make(call: StreamCall) -> InferStream:
        return InferStream(infer, call)  # type: ignore[arg-type]

    stream = FakeServer({}, {STREAM: make}).stream(STREAM)
    for number in range(requests):
        message = pb.ModelInferRequest(model_name="m", id=str(number))
        if ask_for_final:
            message.parameters["triton_enable_empty_final_response"].bool_param = True
        say(stream, message)
    stream.half_close()
    return stream, infer.turns


def token(text: str) -> bytes:
    return pb.ModelInferResponse(model_name="m", id=text).SerializeToString()


@pytest.mark.parametrize("ask_for_final", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_request_may_be_answered_any_number_of_times(ask_for_final: bool, count: int) -> None:
    stream, (turn,) = several(ask_for_final=ask_for_final)
    for number in range(count):
        assert turn.send(token(str(number)))
        assert len(stream.heard) == number + 1  # it does not wait for the others
    assert not stream.answered
    turn.end()
    assert stream.result().code == 0
    answers = heard(stream)
    assert [final(answer) for answer in answers] == [False] * count + [True] * ask_for_final
    if ask_for_final:
        assert (answers[-1].infer_response.id, len(answers[-1].infer_response.outputs)) == ("0", 0)


def test_the_last_of_several_may_be_a_reply_or_an_error() -> None:
    stream, (first, second) = several(requests=2)
    second.send(token("second"))
    second.fail(13, "broken")
    assert stream.heard == []  # it is the turn of the first
    first.send(token("one"))
    first.reply(token("two"))
    assert stream.result().code == 0
    answers = heard(stream)
    assert [answer.infer_response.id for answer in answers] == ["one", "two", "second", "1"]
    assert [final(answer) for answer in answers] == [False, True, False, True]
    assert [answer.error_message for answer in answers] == ["", "", "", "broken"]


def test_a_turn_is_told_when_its_caller_leaves() -> None:
    stream, (turn, answered) = several(requests=2)
    told: list[str] = []
    turn.on_cancel(lambda: told.append("open"))
    answered.on_cancel(lambda: told.append("answered"))
    answered.reply(token("x"))
    stream.cancel()
    assert told == ["open"]
    assert turn.cancelled
    assert not turn.send(token("y"))
    turn.on_cancel(lambda: told.append("late"))
    assert told == ["open", "late"]


def test_a_turn_that_steps_out_speaks_at_once_and_holds_nobody_up() -> None:
    stream, turns = several(requests=3)
    first, text, last = turns
    text.step_out()  # too late: it is not the last in the line any more
    text.send(token("held"))
    assert stream.heard == []
    last.step_out()
    last.send(token("at once"))
    last.reply(token("and over"))
    assert [answer.infer_response.id for answer in heard(stream)] == ["at once", "and over"]
    first.reply(token("one"))
    text.reply(token("two"))
    assert stream.result().code == 0
    assert [answer.infer_response.id for answer in heard(stream)][2:] == ["one", "held", "two"]


def test_a_turn_out_of_the_line_keeps_its_stream_open_and_hears_when_its_caller_leaves() -> None:
    stream, (turn,) = several()
    turn.step_out()
    told: list[str] = []
    turn.on_cancel(lambda: told.append("left"))
    turn.send(token("x"))
    assert not stream.answered
    stream.cancel()
    assert (told, turn.cancelled, turn.send(token("y"))) == (["left"], True, False)


def test_a_turn_is_behind_while_two_messages_for_each_open_turn_are_not_taken() -> None:
    stream, (one, other) = several(requests=2)
    other.step_out()
    stream.stall()
    told: list[str] = []
    for number in range(4):
        assert not other.behind
        other.send(token(str(number)))
    assert other.behind
    other.when_taken(lambda: told.append("taken"))
    stream.take(3)
    assert (told, other.behind) == ([], False)
    stream.take(1)
    assert told == ["taken"]
    stream.take()
    one.reply(token("x"))
    other.reply(token("y"))
    assert stream.result().code == 0
