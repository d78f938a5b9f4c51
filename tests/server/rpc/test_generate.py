"""Texts by request, over fakes: what may be asked for, pieces, the whole, and callers who leave or do not read."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import RunFailed
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.rpc import generate
from forwardpass_server.rpc.status import Code
from forwardpass_server.rpc.turn import AHEAD
from forwardpass_server.runtime.fake_generator import CHARACTERS, FakeGeneratorRun, fake_generator, right_text
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.scheduling.text import Sampling
from forwardpass_server.tensors.generator import ON_WIRE
from forwardpass_server.transport.fake import FakeStream

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Writer:
    """A generator that serves as `bard`, next to whatever else does."""

    def __init__(self, models: "Models", *, slots: int = 8, max_texts: int = 100, **contract: Any) -> None:
        generator = fake_generator(**contract)
        self.models = models
        self.run = FakeGeneratorRun(generator)
        self.scheduler = GenerationScheduler("bard/1", self.run, generator, slots=slots, max_texts=max_texts)
        models.serve(
            LoadedVersion(
                model="bard",
                number=1,
                signature=ON_WIRE,
                scheduler=self.scheduler,
                settings=ModelSettings(),
                provider="FakeExecutionProvider",
                proved=True,
                sha256="0" * 64,
                properties={},
                release_session=lambda: None,
            )
        )

    def check_nothing_is_left(self, server: "Server") -> None:
        server.until(lambda: self.models.held("bard") == 0)
        assert (self.scheduler.inflight, self.scheduler.active, self.scheduler.parked) == (0, 0, 0)


@pytest.fixture
def writer(models: "Models", server: "Server") -> Iterator[Writer]:
    made = Writer(models)
    yield made
    made.run.release()
    made.check_nothing_is_left(server)


def ask(prompt: str = "a", request_id: str = "", **parameters: bool | int | float | str) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="bard", id=request_id)
    message.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(len(prompt.encode()).to_bytes(4, "little") + prompt.encode())
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


def say(stream: FakeStream, *messages: pb.ModelInferRequest) -> None:
    stream.say(*(message.SerializeToString() for message in messages))


def heard(stream: FakeStream) -> list[pb.ModelStreamInferResponse]:
    return [pb.ModelStreamInferResponse.FromString(body) for body in stream.heard]


def text_of(response: pb.ModelInferResponse) -> str:
    (output,) = response.outputs
    assert (output.name, output.datatype, [*output.shape]) == ("text", "BYTES", [1])
    (raw,) = response.raw_output_contents
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    return raw[4:].decode()


def is_final(response: pb.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


def ended(stream: FakeStream, request_id: str = "") -> bool:
    return any(is_final(each) for each in heard(stream) if each.infer_response.id == request_id)


def whole(stream: FakeStream, request_id: str = "") -> str:
    """The text of one request; checks that it came in order, no piece but the last empty, exactly one final."""
    mine = [each for each in heard(stream) if each.infer_response.id == request_id]
    assert [is_final(each) for each in mine] == [False] * (len(mine) - 1) + [True]
    assert not any(each.error_message for each in mine)
    pieces = [text_of(each.infer_response) for each in mine]
    assert all(pieces[:-1])
    return "".join(pieces)


def about(response: pb.ModelInferResponse) -> tuple[int, str, int]:
    given = response.parameters
    return given["generated_tokens"].int64_param, given["finish_reason"].string_param, given["seed"].int64_param


# ------------------------------------------------------------------------- what may not be asked for

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "'max_tokens' is an integer from 1 to 65536, got 0"),
    ({"max_tokens": -1}, "got -1"),
    ({"max_tokens": 65_537}, "got 65537"),
    ({"max_tokens": 10.0}, "got 10.0"),
    ({"max_tokens": True}, "got True"),
    ({"max_tokens": "10"}, "got '10'"),
    (
        {"temperature": math.nan},
        "'temperature' is 0 (always the likeliest token) or a number from 0.01 to 100, got nan",
    ),
    ({"temperature": math.inf}, "got inf"),
    ({"temperature": -0.5}, "got -0.5"),
    ({"temperature": 1e-30}, "got 1e-30"),
    ({"temperature": 100.5}, "got 100.5"),
    ({"temperature": "hot"}, "got 'hot'"),
    ({"temperature": True}, "got True"),
    ({"top_k": -1}, f"'top_k' is an integer from 0 to {len(CHARACTERS)}, the size of the vocabulary, got -1"),
    ({"top_k": len(CHARACTERS) + 1}, f"got {len(CHARACTERS) + 1}"),
    ({"top_k": 2**62}, "got 4611686018427387904"),
    ({"top_p": 0.0}, "'top_p' is a number above 0 and at most 1 (off), got 0.0"),
    ({"top_p": 1.01}, "got 1.01"),
    ({"top_p": math.nan}, "got nan"),
    ({"seed": 1.0}, "'seed' is an integer from -9223372036854775808 to 9223372036854775807, got 1.0"),
    ({"seed": "x" * 10_000}, "'seed' is an integer"),
    ({"stop": ""}, "'stop' is a string of 1 to 128 characters, got 0 characters"),
    ({"stop_8": "x" * 129}, "'stop_8' is a string of 1 to 128 characters, got 129 characters"),
    ({"stop": 7}, "'stop' is a string of 1 to 128 characters, got 7"),
    ({"stop_9": "x"}, "unknown parameter 'stop_9'"),
    ({"temprature": 0.5}, "unknown parameter 'temprature': a generator takes max_tokens, temperature"),
    ({"repetition_penalty": 1.2}, "unknown parameter 'repetition_penalty'"),
    ({"sequence_id": 5}, "sequence"),
    ({"triton_other": 5}, "unknown parameter 'triton_other'"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": "aÄbÖ~~"}, "the prompt has 'Ä' at 1, 'Ö' at 3, '~' at 4 and 1 more: not in the vocabulary"),
    ({"prompt": "a" * 8193}, "the prompt has more than 8192 tokens"),
    ({"prompt": "~" * 100_000}, "the prompt has more than 8192 tokens"),
]


@pytest.mark.parametrize(("parameters", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_outside_its_bounds_is_refused_with_them(
    server: "Server", writer: Writer, parameters: dict[str, Any], words: str
) -> None:
    result = server.infer(ask(**parameters))
    assert result.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)
    assert words in result.message
    stream = server.fake.stream(STREAM)
    say(stream, ask(request_id="bad", **parameters))
    stream.half_close()
    assert stream.result().code == 0
    (answer,) = heard(stream)
    assert words in answer.error_message
    assert (answer.infer_response.id, is_final(answer)) == ("bad", True)
    assert writer.run.rows == []
    assert writer.scheduler.statistics.snapshot().outcomes["invalid"] >= 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": 1},
        {"temperature": 0},
        {"temperature": 0.0},
        {"temperature": 0.01},
        {"temperature": 100.0},
        {"temperature": 2},
        {"top_k": len(CHARACTERS)},
        {"top_p": 1},
        {"top_p": 1e-9},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"stop": "x" * 128},
        {f"stop_{number}": "zz" for number in range(2, 9)},
        {"priority": 1},
        {"prompt": "a" * 8192},
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_just_inside_is_answered(server: "Server", writer: Writer, parameters: dict[str, Any]) -> None:
    assert server.infer(ask(**{"max_tokens": 3, **parameters})).code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.inputs[0].shape.__setitem__(0, 2), "unexpected shape"),
        (lambda m: m.inputs[0].shape.insert(0, 1), "unexpected shape"),
        (lambda m: setattr(m.inputs[0], "datatype", "INT64"), "expects datatype BYTES"),
        (lambda m: setattr(m.inputs[0], "name", "text"), "missing 'prompt'"),
        (lambda m: m.raw_input_contents.__setitem__(0, b"\x01\x00\x00\x00\xff"), "not UTF-8"),
        (lambda m: m.outputs.add(name="logits"), "unexpected output 'logits'"),
        (
            lambda m: (
                m.outputs.add(name="text").parameters["classification"].MergeFrom(pb.InferParameter(int64_param=1))
            ),
            "plain text",
        ),
    ],
)
def test_a_prompt_is_checked_as_every_input_is(server: "Server", writer: Writer, change: Any, words: str) -> None:
    message = ask()
    change(message)
    result = server.infer(message)
    assert (result.code, words in result.message) == (Code.INVALID_ARGUMENT, True), result.message


def test_a_setting_that_the_model_was_exported_without_is_refused(server: "Server", models: "Models") -> None:
    writer = Writer(models)
    inputs = {name: at for name, at in writer.scheduler.generator.inputs.items() if name != "top_k"}
    object.__setattr__(writer.scheduler.generator, "inputs", inputs)
    result = server.infer(ask(top_k=3))
    assert (result.code, result.message) == (
        Code.INVALID_ARGUMENT,
        "parameter 'top_k': this model was exported without it",
    )
    assert server.infer(ask(top_k=0, max_tokens=1)).code != Code.INVALID_ARGUMENT
    writer.check_nothing_is_left(server)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    name=st.sampled_from([*generate.SETTINGS, "priority", "timeout"]),
    value=st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5)),
)
def test_any_value_of_any_setting_is_answered_or_refused(
    server: "Server", writer: Writer, name: str, value: bool | int | float | str
) -> None:
    sent = {"max_tokens": 2, name: value}
    if name == "max_tokens" and isinstance(value, int) and value > 10:
        sent["stop"] = "a"  # a text of thousands of tokens is not what is tried here
    result = server.infer(ask(**sent))
    assert result.code in (0, Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED), result.message


# ------------------------------------------------------------------------- the text


def test_a_unary_call_is_answered_with_the_whole_text(server: "Server", writer: Writer) -> None:
    result = server.infer(ask("to be", "r1", max_tokens=300, temperature=0.7, top_k=20, top_p=0.9, seed=-3))
    assert result.body is not None
    response = pb.ModelInferResponse.FromString(result.body)
    sampling = Sampling(max_tokens=300, temperature=0.7, top_k=20, top_p=0.9, seed=-3)
    assert text_of(response) == right_text("to be", sampling)
    assert about(response) == (300, "length", -3)
    assert (response.id, response.model_name, response.model_version) == ("r1", "bard", "1")
    assert "triton_final_response" not in response.parameters


def test_a_stream_brings_the_same_text_in_pieces(server: "Server", writer: Writer) -> None:
    stream = server.fake.stream(STREAM)
    say(stream, ask("to be", "r1", max_tokens=300, temperature=0.7, seed=5))
    stream.half_close()
    assert stream.result().code == 0
    assert whole(stream, "r1") == right_text("to be", Sampling(max_tokens=300, temperature=0.7, seed=5))
    assert len(stream.heard) > 5
    assert about(heard(stream)[-1].infer_response) == (300, "length", 5)
    assert not heard(stream)[0].infer_response.parameters["finish_reason"].string_param


def test_an_unseeded_text_tells_its_seed_and_can_be_had_again(server: "Server", writer: Writer) -> None:
    texts = []
    for parameters in ({}, {}):
        first = pb.ModelInferResponse.FromString(server.infer(ask(max_tokens=50, **parameters)).body or b"")
        seed = about(first)[2]
        again = pb.ModelInferResponse.FromString(server.infer(ask(max_tokens=50, seed=seed)).body or b"")
        assert text_of(again) == text_of(first)
        texts.append((seed, text_of(first)))
    assert texts[0] != texts[1]


@pytest.mark.parametrize("steps_before", range(0, 40, 7))
def test_a_stop_string_ends_the_text_before_it_wherever_pieces_end(
    server: "Server", writer: Writer, steps_before: int
) -> None:
    right = right_text("a", Sampling(max_tokens=200, seed=4))
    stop = right[30 + steps_before : 34 + steps_before]
    end = right.index(stop)
    stream = server.fake.stream(STREAM)
    say(stream, ask(max_tokens=200, seed=4, stop="never~", stop_3=stop))
    stream.half_close()
    assert stream.result().code == 0
    assert whole(stream) == right[:end]
    assert about(heard(stream)[-1].infer_response) == (end + 4, "stop", 4)
    assert writer.scheduler.statistics.texts().tokens == end + 4


def test_what_was_held_back_for_a_stop_string_comes_with_the_last_piece(server: "Server", writer: Writer) -> None:
    right = right_text("a", Sampling(max_tokens=40, seed=4))
    stream = server.fake.stream(STREAM)
    say(stream, ask(max_tokens=40, seed=4, stop=right[-5:] + "~"))
    stream.half_close()
    assert stream.result().code == 0
    assert whole(stream) == right
    assert about(heard(stream)[-1].infer_response)[1] == "length"


def test_a_replacement_stands_for_characters_outside(server: "Server", models: "Models") -> None:
    space = CHARACTERS.index(" ")
    writer = Writer(models, replacement=space)
    stream = server.fake.stream(STREAM)
    say(stream, ask("aÄb", max_tokens=20, seed=1))
    stream.half_close()
    assert stream.result().code == 0
    assert whole(stream) == right_text("a b", Sampling(max_tokens=20, seed=1))
    writer.check_nothing_is_left(server)


def test_where_the_time_went_comes_with_the_last_piece(server: "Server", writer: Writer) -> None:
    stream = server.fake.stream(STREAM, metadata=(("forwardpass-timing", "1"),))
    say(stream, ask(max_tokens=40))
    stream.half_close()
    assert stream.result().code == 0
    assert '"run_us":' in heard(stream)[-1].infer_response.parameters["forwardpass-timing"].string_param


def test_an_empty_final_response_is_not_sent_on_top(server: "Server", writer: Writer) -> None:
    stream = server.fake.stream(STREAM)
    say(stream, ask(max_tokens=40, triton_enable_empty_final_response=True))
    stream.half_close()
    assert stream.result().code == 0
    assert [is_final(each) for each in heard(stream)].count(True) == 1


# ------------------------------------------------------------------------- many, slow, and leaving


def test_a_text_does_not_hold_the_line_of_other_requests(
    server: "Server", models: "Models", writer: Writer, request_for: Any
) -> None:
    slow = models.add("slow", 1)
    models.add("double", 1)
    slow.hold()
    writer.run.hold()
    stream = server.fake.stream(STREAM)
    say(stream, ask("a", "text", max_tokens=100, seed=1), request_for(id="quick"))
    server.until(lambda: [each.infer_response.id for each in heard(stream)] == ["quick"])
    say(stream, request_for("slow", id="held"), ask("b", "other", max_tokens=100, seed=1))
    assert slow.wait_runs(1)
    writer.run.release()
    server.until(lambda: ended(stream, "text") and ended(stream, "other"))  # before "held"
    stream.half_close()
    slow.release()
    assert stream.result().code == 0
    assert whole(stream, "text") == right_text("a", Sampling(max_tokens=100, seed=1))
    assert whole(stream, "other") == right_text("b", Sampling(max_tokens=100, seed=1))
    assert heard(stream)[-1].infer_response.id == "held"


def test_many_texts_of_one_stream_come_side_by_side(server: "Server", writer: Writer) -> None:
    stream = server.fake.stream(STREAM)
    say(stream, *(ask("ab"[n % 2], f"r{n}", max_tokens=50 + n, seed=n) for n in range(40)))
    stream.half_close()
    assert stream.result(20.0).code == 0
    for n in range(40):
        assert whole(stream, f"r{n}") == right_text("ab"[n % 2], Sampling(max_tokens=50 + n, seed=n))


def test_a_caller_who_leaves_ends_all_texts_of_its_stream(server: "Server", writer: Writer) -> None:
    writer.run.hold()
    stream = server.fake.stream(STREAM)
    say(stream, *(ask(request_id=f"r{n}", max_tokens=60_000) for n in range(20)))
    assert writer.run.wait_runs(1)
    stream.cancel()
    writer.run.release()
    writer.check_nothing_is_left(server)
    assert len(writer.run.rows) <= 2
    assert writer.scheduler.statistics.snapshot().outcomes["canceled"] == 20


def test_a_unary_caller_who_leaves_ends_its_text(server: "Server", writer: Writer) -> None:
    writer.run.hold()
    call = server.begin(ask(max_tokens=60_000))
    assert writer.run.wait_runs(1)
    call.cancel()
    writer.run.release()
    writer.check_nothing_is_left(server)
    assert len(writer.run.rows) <= 2


def test_a_caller_who_does_not_read_holds_two_pieces_and_nobody_up(server: "Server", writer: Writer) -> None:
    lazy, quick = server.fake.stream(STREAM), server.fake.stream(STREAM)
    lazy.stall()
    say(lazy, ask("a", max_tokens=500, seed=1))
    server.until(lambda: writer.scheduler.parked == 1)
    say(quick, ask("b", max_tokens=500, seed=1))
    quick.half_close()
    assert quick.result().code == 0
    assert whole(quick) == right_text("b", Sampling(max_tokens=500, seed=1))
    assert lazy.backlog == AHEAD
    for _ in range(3):
        lazy.take(1)
    lazy.half_close()
    lazy.take()
    assert lazy.result().code == 0
    assert whole(lazy) == right_text("a", Sampling(max_tokens=500, seed=1))


def test_one_who_does_not_read_and_leaves_frees_its_place(server: "Server", writer: Writer) -> None:
    stream = server.fake.stream(STREAM)
    stream.stall()
    say(stream, ask("a", max_tokens=500))
    server.until(lambda: writer.scheduler.parked == 1)
    stream.cancel()
    writer.check_nothing_is_left(server)


def test_texts_of_one_stream_that_is_not_read_are_bounded_together(server: "Server", writer: Writer) -> None:
    stream = server.fake.stream(STREAM)
    stream.stall()
    say(stream, *(ask("a", f"r{n}", max_tokens=500, seed=n) for n in range(6)))
    server.until(lambda: writer.scheduler.parked == 6)
    assert stream.backlog <= 6 * AHEAD + 6
    stream.take()
    stream.half_close()
    assert stream.result(20.0).code == 0
    for n in range(6):
        assert whole(stream, f"r{n}") == right_text("a", Sampling(max_tokens=500, seed=n))


def test_a_full_generator_says_when_to_come_again(server: "Server", models: "Models") -> None:
    writer = Writer(models, max_texts=1)
    writer.run.hold()
    first = server.begin(ask(max_tokens=5))
    result = server.infer(ask())
    assert result.code == Code.RESOURCE_EXHAUSTED
    assert "'bard/1' is full (1 texts are under way)" in result.message
    assert int(dict(result.trailers)["grpc-retry-pushback-ms"]) >= 50
    stream = server.fake.stream(STREAM)
    say(stream, ask(request_id="late"))
    stream.half_close()
    assert stream.result().code == 0
    assert "is full" in heard(stream)[0].error_message
    writer.run.release()
    assert first.result().code == 0
    writer.check_nothing_is_left(server)


def test_a_timeout_is_the_time_of_the_whole_text(server: "Server", writer: Writer) -> None:
    writer.run.hold()
    call = server.begin(ask(max_tokens=60_000, timeout=500_000))
    assert writer.run.wait_runs(1)
    with pytest.raises(TimeoutError):  # it passes while the model is at work
        call.result(0.6)
    writer.run.release()
    result = call.result()
    assert result.code == Code.DEADLINE_EXCEEDED
    assert "the deadline passed after" in result.message


def test_a_deadline_that_passes_here_first_is_the_status_of_the_stream(server: "Server", writer: Writer) -> None:
    writer.run.hold()
    stream = server.fake.stream(STREAM, deadline_s=0.2)
    say(stream, ask(request_id="r", max_tokens=60_000))
    stream.half_close()
    assert writer.run.wait_runs(1)
    with pytest.raises(TimeoutError):  # the fake's clock has no alarm: it passes unheard
        stream.result(0.3)
    writer.run.release()
    assert stream.result().code == Code.DEADLINE_EXCEEDED
    assert "the deadline passed after" in heard(stream)[-1].error_message


def test_a_model_that_fails_tells_an_id_and_no_text(server: "Server", writer: Writer) -> None:
    writer.run.error = RunFailed("secret path")
    stream = server.fake.stream(STREAM)
    say(stream, ask(request_id="r"))
    stream.half_close()
    assert stream.result().code == 0
    (answer,) = heard(stream)
    assert "internal error, id=" in answer.error_message
    assert "secret" not in answer.error_message


def test_an_error_may_end_the_stream_and_with_it_its_texts(server: "Server", writer: Writer) -> None:
    writer.run.hold()
    stream = server.fake.stream(STREAM, metadata=(("triton_grpc_error", "true"),))
    say(stream, ask(request_id="long", max_tokens=60_000), ask(request_id="bad", max_tokens=0))
    result = stream.result()
    assert (result.code, "max_tokens" in result.message) == (Code.INVALID_ARGUMENT, True)
    writer.run.release()
    writer.check_nothing_is_left(server)


def test_what_callers_see_of_it(server: "Server", writer: Writer) -> None:
    metadata = server.get(
        pb.ModelMetadataResponse, "/inference.GRPCInferenceService/ModelMetadata", pb.ModelMetadataRequest(name="bard")
    )
    assert [(each.name, each.datatype, [*each.shape]) for each in metadata.inputs] == [("prompt", "BYTES", [1])]
    assert [(each.name, each.datatype, [*each.shape]) for each in metadata.outputs] == [("text", "BYTES", [1])]
    config = server.get(
        pb.ModelConfigResponse, "/inference.GRPCInferenceService/ModelConfig", pb.ModelConfigRequest(name="bard")
    ).config
    assert config.model_transaction_policy.decoupled
    assert config.max_batch_size == 0
    assert [(each.name, [*each.dims]) for each in (*config.input, *config.output)] == [("prompt", [1]), ("text", [1])]
    assert not config.HasField("dynamic_batching")


def test_statistics_count_texts_and_rows_of_runs(server: "Server", writer: Writer) -> None:
    for _ in range(3):
        assert server.infer(ask(max_tokens=40)).code == 0
    (stats,) = server.get(
        pb.ModelStatisticsResponse,
        "/inference.GRPCInferenceService/ModelStatistics",
        pb.ModelStatisticsRequest(name="bard"),
    ).model_stats
    assert stats.inference_stats.success.count == 3
    assert stats.inference_stats.queue.count == stats.inference_stats.compute_infer.count == 3
    assert (stats.execution_count, stats.inference_count) == (len(writer.run.rows), sum(writer.run.rows))
