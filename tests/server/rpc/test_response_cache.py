"""Answers that were given before: only for the very same question to the very same version, and counted."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import RunFailed
from forwardpass_server.rpc.response_cache import ENTRY_BYTES, ResponseCache
from forwardpass_server.rpc.status import Code
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec
from forwardpass_server.transport.fake import FakeResult

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

Make = Callable[..., pb.ModelInferRequest]

TWO_OUTPUTS = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 4)),),
    (TensorSpec("y", dtypes.FP32, ("batch", 4)), TensorSpec("sum", dtypes.FP32, ("batch",))),
    max_batch_size=8,
)
TEXT = Signature(
    (TensorSpec("x", dtypes.BYTES, ("batch", 2)),), (TensorSpec("y", dtypes.BYTES, ("batch", 2)),), max_batch_size=8
)


@pytest.fixture
def caching(server_with: Callable[..., "Server"], models: "Models") -> Iterator["Server"]:
    server = server_with(cache=ResponseCache(1 << 20))
    yield server
    server.until(lambda: all(leases.held == 0 for leases in models.table.serving.values()))


def reply(result: FakeResult) -> pb.ModelInferResponse:
    assert result.body is not None, result
    return pb.ModelInferResponse.FromString(result.body)


def test_the_same_question_is_answered_without_a_run_and_with_its_own_id(
    caching: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1, cached=True)
    first = reply(caching.infer(request_for(value=2.0, id="first")))
    again = reply(caching.infer(request_for(value=2.0, id="again")))
    nameless = reply(caching.infer(request_for(value=2.0)))
    assert len(session.runs) == 1
    assert [answer.id for answer in (first, again, nameless)] == ["first", "again", ""]
    for answer in (first, again, nameless):
        answer.ClearField("id")
        assert answer == nameless


def different(request_for: Make) -> dict[str, pb.ModelInferRequest]:
    """Questions that differ from `request_for("two")` in one thing each."""
    value = request_for("two", value=1.5)
    rows = request_for("two", rows=2)
    output = request_for("two")
    output.outputs.add(name="y")
    order = request_for("two")
    for name in ("sum", "y"):
        order.outputs.add(name=name)
    classes = request_for("two")
    classes.outputs.add(name="y").parameters["classification"].int64_param = 1
    classes.outputs.add(name="sum")
    more = request_for("two")
    more.outputs.add(name="y").parameters["classification"].int64_param = 2
    more.outputs.add(name="sum")
    return {"value": value, "rows": rows, "output": output, "order": order, "classes": classes, "more": more}


def test_another_question_is_another_run(caching: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("two", 1, TWO_OUTPUTS, cached=True, compute=lambda i: [i[0], i[0].sum(1)])
    questions = {"": request_for("two"), **different(request_for)}
    answers = {name: reply(caching.infer(question)) for name, question in questions.items()}
    assert len(session.runs) == len(questions)
    assert {name: reply(caching.infer(question)) for name, question in questions.items()} == answers
    assert len(session.runs) == len(questions)
    assert [output.name for output in answers["order"].outputs] == ["sum", "y"]


def test_texts_that_join_to_the_same_are_not_the_same(caching: "Server", models: "Models") -> None:
    models.add("text", 1, TEXT, cached=True, compute=lambda inputs: [inputs[0]])
    for elements in (["ab", "c"], ["a", "bc"], ["ab", "c"]):
        message = pb.ModelInferRequest(model_name="text")
        message.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend(
            element.encode() for element in elements
        )
        raw = reply(caching.infer(message)).raw_output_contents[0]
        assert raw == b"".join(len(e).to_bytes(4, "little") + e.encode() for e in elements)
    assert models.scheduler("text").statistics.snapshot().cache_hit.count == 1


def test_raw_and_typed_are_the_same_question(caching: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1, cached=True)
    assert caching.infer(request_for()).code == 0
    typed = request_for()
    typed.ClearField("raw_input_contents")
    typed.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    assert caching.infer(typed).code == 0
    assert len(session.runs) == 1


def test_what_was_loaded_again_answers_by_itself(caching: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1, cached=True)
    assert caching.infer(request_for()).code == 0
    reloaded = models.add("double", 1, cached=True, compute=lambda inputs: [inputs[0] * 3])
    found = reply(caching.infer(request_for()))
    assert np.frombuffer(found.raw_output_contents[0], "<f4")[0] == 3.0
    assert len(reloaded.runs) == 1


def test_a_failure_is_not_kept(caching: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1, cached=True)
    session.fail_next = [RunFailed("once")]
    assert caching.infer(request_for()).code == Code.INTERNAL
    assert caching.infer(request_for()).code == 0


def test_models_that_do_not_ask_for_it_are_run_each_time(
    caching: "Server", models: "Models", request_for: Make
) -> None:
    session = models.add("double", 1)
    for _ in range(2):
        assert caching.infer(request_for()).code == 0
    assert len(session.runs) == 2
    account = models.scheduler("double").statistics.snapshot()
    assert (account.cache_hit.count, account.cache_miss.count) == (0, 0)


def test_a_server_without_a_cache_runs_each_time(server: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1, cached=True)
    for _ in range(2):
        assert server.infer(request_for()).code == 0
    assert len(session.runs) == 2


def test_hits_and_misses_are_counted(caching: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1, cached=True)
    for _ in range(4):
        assert caching.infer(request_for(rows=2)).code == 0
    account = models.scheduler("double").statistics
    caching.until(lambda: account.snapshot().success.count == 4)
    request = pb.ModelStatisticsRequest(name="double")
    method = "/inference.GRPCInferenceService/ModelStatistics"
    (found,) = caching.get(pb.ModelStatisticsResponse, method, request).model_stats
    stats = found.inference_stats
    assert (stats.cache_hit.count, stats.cache_miss.count) == (3, 1)
    assert stats.cache_hit.ns > 0
    assert stats.cache_miss.ns > 0
    assert (stats.success.count, stats.queue.count, stats.compute_infer.count) == (4, 4, 1)
    assert (found.inference_count, found.execution_count) == (8, 1)
    assert account.snapshot().outcomes["ok"] == 4


def test_streams_are_answered_from_it_too(caching: "Server", models: "Models", request_for: Make) -> None:
    session = models.add("double", 1, cached=True)
    assert caching.infer(request_for()).code == 0
    stream = caching.fake.stream("/inference.GRPCInferenceService/ModelStreamInfer")
    stream.say(request_for(id="s").SerializeToString())
    (found,) = (pb.ModelStreamInferResponse.FromString(body).infer_response for body in stream.heard)
    assert (found.id, found.parameters["triton_final_response"].bool_param) == ("s", True)
    assert len(session.runs) == 1


def test_where_the_time_went_is_told_of_a_hit_too(caching: "Server", models: "Models", request_for: Make) -> None:
    models.add("double", 1, cached=True)
    asked: dict[str, Any] = {"metadata": (("forwardpass-timing", "1"),)}
    for stage in (True, False):
        ((_, text),) = caching.infer(request_for(), **asked).trailers
        assert ("run_us" in text) is stage
        assert '"total_us"' in text


# ---- the store


def test_the_oldest_unused_go_when_the_bytes_pass_their_bound() -> None:
    size = 100 + ENTRY_BYTES
    cache = ResponseCache(3 * size)
    for name in (b"a", b"b", b"c"):
        cache.put(name, name * 100)
    assert cache.get(b"a") == b"a" * 100  # the last to go now
    cache.put(b"d", b"d" * 100)
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert (len(cache), cache.nbytes) == (3, 3 * size)


def test_a_response_larger_than_all_is_not_kept_and_drives_nothing_out() -> None:
    cache = ResponseCache(1000)
    cache.put(b"a", b"a")
    cache.put(b"b", bytes(1001 - ENTRY_BYTES))
    assert (cache.get(b"a"), cache.get(b"b")) == (b"a", None)


def test_a_key_that_is_put_again_is_counted_once() -> None:
    cache = ResponseCache(10_000)
    cache.put(b"a", bytes(100))
    cache.put(b"a", bytes(50))
    assert (len(cache), cache.nbytes) == (1, 50 + ENTRY_BYTES)
