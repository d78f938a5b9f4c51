"""Limits of size, at the limit and one beyond: cases 15 and 16, and the limits of a request's parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conformance.process import IN_FLIGHT, MIB, QUEUED, QUEUED_BYTES, ServerProcess, Start, wait_until
from conformance.wire import (
    DATATYPES,
    Caller,
    Outcome,
    Tensor,
    ask,
    invalid,
    ok,
    refused,
    strings,
    tensor,
    trips,
    zeros,
)

from forwardpass_proto import grpc_service_pb2 as pb

MAX_MESSAGE_BYTES = 64 * MIB

TOO_LARGE = grpc.StatusCode.RESOURCE_EXHAUSTED


def message_of(size: int) -> tuple[bytes, int]:
    """A ModelInfer of identity_uint8 that is exactly `size` bytes long, and its number of elements."""
    elements = size
    while True:
        body = ask("identity_uint8", zeros("UINT8", (1, elements))).SerializeToString()
        if len(body) == size:
            return body, elements
        elements -= len(body) - size


case_15 = pytest.mark.case("15", "message of the limit; limit + 1", "OK; RESOURCE_EXHAUSTED, then OK")


@case_15
def test_a_message_of_exactly_the_limit_is_served(caller: Caller) -> None:
    # The answer must not be larger than the question, or its own limit would be what is tested.
    body, elements = message_of(MAX_MESSAGE_BYTES)
    answer = ok(caller.call("ModelInfer", body, timeout_s=60.0))["y"]
    assert (answer.shape, len(answer.raw)) == ((1, elements), elements)


@case_15
@pytest.mark.parametrize("beyond", [1, 2, 4096, MIB])
def test_a_message_beyond_the_limit_is_refused_and_a_small_one_works_next(caller: Caller, beyond: int) -> None:
    body, _ = message_of(MAX_MESSAGE_BYTES + beyond)
    refused(caller.call("ModelInfer", body, timeout_s=60.0), TOO_LARGE)
    ok(caller.infer(ask("mlp", zeros("FP32", (1, 10)))))


@case_15
@pytest.mark.parametrize("rpc", ["ServerLive", "ModelMetadata", "ModelReady", "ModelInfer"])
def test_the_limit_holds_for_every_rpc(caller: Caller, rpc: str) -> None:
    refused(caller.call(rpc, bytes(MAX_MESSAGE_BYTES + 1), timeout_s=60.0), TOO_LARGE)


case_16 = pytest.mark.case("16", "compression both ways; a bomb", "OK; RESOURCE_EXHAUSTED")
ALGORITHMS = [grpc.Compression.Gzip, grpc.Compression.Deflate]


@case_16
@pytest.mark.parametrize("compression", ALGORITHMS, ids=["gzip", "deflate"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_compressed_message_is_served(caller: Caller, compression: grpc.Compression, datatype: str) -> None:
    sent = zeros(datatype, (3, 1000))
    answer = ok(caller.infer(ask(f"identity_{datatype.lower()}", sent), compression=compression))["y"]
    assert (answer.shape, answer.raw) == (sent.shape, sent.raw)


@case_16
@pytest.mark.parametrize("compression", ALGORITHMS, ids=["gzip", "deflate"])
def test_a_channel_that_compresses_everything_is_served(server: ServerProcess, compression: grpc.Compression) -> None:
    with Caller(server.target, options=[("grpc.default_compression_algorithm", int(compression))]) as squeezing:
        x = np.random.default_rng(16).normal(size=(64, 100)).astype(np.float32)
        assert ok(squeezing.infer(ask("identity_fp32", tensor("x", x))))["y"].raw == x.tobytes()


@case_16
@pytest.mark.parametrize("compression", ALGORITHMS, ids=["gzip", "deflate"])
@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, 256 * MIB], ids=["limit + 1", "256 MiB"])
def test_a_message_that_unpacks_beyond_the_limit_is_refused(
    server: ServerProcess, caller: Caller, compression: grpc.Compression, size: int
) -> None:
    before = server.memory_bytes("VmHWM")
    refused(caller.call("ModelInfer", bytes(size), timeout_s=60.0, compression=compression), TOO_LARGE)
    assert server.memory_bytes("VmHWM") - before <= MAX_MESSAGE_BYTES, "the bomb was unpacked beyond the limit"


case_limits = pytest.mark.case("limits", "parts of a request, at the limit and beyond", "OK; the caller's fault")

CALLERS_FAULT = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}


@case_limits
@pytest.mark.parametrize("length", [127, 128])
def test_an_id_up_to_the_limit_comes_back(caller: Caller, length: int) -> None:
    assert caller.infer(ask("mlp", zeros("FP32", (1, 10)), request_id="i" * length)).reply.id == "i" * length


@case_limits
@pytest.mark.parametrize("length", [129, 1000, MIB])
def test_an_id_beyond_the_limit_is_refused(caller: Caller, length: int) -> None:
    outcome = caller.infer(ask("mlp", zeros("FP32", (1, 10)), request_id="i" * length))
    assert outcome.code in CALLERS_FAULT, outcome
    assert len(outcome.details) < 2000, "a caller's id is quoted without end"


@case_limits
@pytest.mark.parametrize("count", [65, 1000, 100_000])
def test_more_inputs_than_any_model_has_are_refused(caller: Caller, count: int) -> None:
    outcome = caller.infer(ask("mlp", *(Tensor(f"x{n}", "FP32", (0,), b"") for n in range(count))))
    assert outcome.code in CALLERS_FAULT, outcome
    assert len(outcome.details) < 2000, "the refusal lists without end"


@case_limits
@pytest.mark.parametrize("count", [65, 10_000])
def test_more_outputs_than_any_model_has_are_refused(caller: Caller, count: int) -> None:
    outcome = caller.infer(ask("mlp", zeros("FP32", (1, 10)), outputs=[f"y{n}" for n in range(count)]))
    assert outcome.code in CALLERS_FAULT, outcome
    assert len(outcome.details) < 2000, "the refusal lists without end"


@case_limits
def test_64_parameters_are_taken(caller: Caller) -> None:
    request = ask("mlp", zeros("FP32", (1, 10)))
    for number in range(64):
        request.parameters[f"key{number}"].int64_param = number
    ok(caller.infer(request))


@case_limits
@pytest.mark.parametrize("count", [65, 1000, 100_000])
def test_more_parameters_are_refused(caller: Caller, count: int) -> None:
    request = ask("mlp", zeros("FP32", (1, 10)))
    for number in range(count):
        request.parameters[f"key{number}"].int64_param = number
    outcome = caller.infer(request)
    assert outcome.code in CALLERS_FAULT, outcome


@case_limits
@pytest.mark.parametrize("length", [129, 100_000])
def test_an_input_name_beyond_the_limit_is_refused_and_not_quoted_whole(caller: Caller, length: int) -> None:
    outcome = caller.infer(ask("mlp", zeros("FP32", (1, 10), name="n" * length)))
    assert outcome.code in CALLERS_FAULT, outcome
    assert len(outcome.details) < 2000, "a caller's name is quoted without end"


@case_limits
@pytest.mark.parametrize("rank", [16, 17, 1000])
def test_a_shape_of_too_many_dimensions_is_refused_with_the_limit(caller: Caller, rank: int) -> None:
    outcome = caller.infer(ask("mlp", Tensor("x", "FP32", (1,) * rank, bytes(4))))
    # 16 are within the limit, and merely not what this model takes.
    invalid(outcome, *(["unexpected shape"] if rank == 16 else [16, "dimensions"]))


@case_limits
def test_64_inputs_are_within_the_limit(caller: Caller) -> None:
    outcome = caller.infer(ask("mlp", *(Tensor(f"x{n}", "FP32", (0,), b"") for n in range(64))))
    invalid(outcome, "got 64")


@case_limits
@pytest.mark.parametrize("size", [6000, 7000, 9000])
def test_metadata_within_the_limit_is_taken(caller: Caller, size: int) -> None:
    ok(caller.infer(ask("mlp", zeros("FP32", (1, 10))), metadata=[("x-note", "m" * size)]))


@case_limits
@pytest.mark.parametrize("size", [20_000, 60_000, 500_000])
def test_metadata_beyond_the_limit_is_refused(caller: Caller, size: int) -> None:
    refused(caller.infer(ask("mlp", zeros("FP32", (1, 10))), metadata=[("x-note", "m" * size)]), TOO_LARGE)


@case_limits
def test_ten_thousand_small_metadata_keys_are_refused(caller: Caller) -> None:
    metadata = [(f"x-{number}", "1") for number in range(10_000)]
    refused(caller.infer(ask("mlp", zeros("FP32", (1, 10))), metadata=metadata), TOO_LARGE)


case_parameters = pytest.mark.case("params", "reserved parameters", "as Triton, wire-contract 1.5")


def with_parameter(key: str, **choice: Any) -> pb.ModelInferRequest:
    request = ask("mlp", zeros("FP32", (1, 10)))
    request.parameters[key].CopyFrom(pb.InferParameter(**choice))
    return request


@case_parameters
@pytest.mark.parametrize("key", ["triton_x", "triton_", "triton_final_response", "triton_enable_empty_final_response2"])
def test_an_unknown_triton_parameter_is_refused_by_name(caller: Caller, key: str) -> None:
    invalid(caller.infer(with_parameter(key, bool_param=True)), key)


@case_parameters
@pytest.mark.parametrize("value", [True, False])
def test_the_parameter_that_the_cpp_client_always_sends_is_taken(caller: Caller, value: bool) -> None:
    ok(caller.infer(with_parameter("triton_enable_empty_final_response", bool_param=value)))


@case_parameters
@pytest.mark.parametrize(
    ("key", "choice"),
    [
        ("priority", {"uint64_param": 0}),
        ("priority", {"int64_param": 0}),
        ("timeout", {"int64_param": 5_000_000}),
        ("sequence_id", {"int64_param": 0}),
        ("sequence_id", {"string_param": ""}),
        ("mine", {"string_param": "x" * 1000}),
        ("mine", {"double_param": 1.5}),
        ("mine", {"bool_param": True}),
        ("mine", {"int64_param": -1}),
    ],
)
def test_a_parameter_of_the_right_type_is_taken(caller: Caller, key: str, choice: dict[str, Any]) -> None:
    ok(caller.infer(with_parameter(key, **choice)))


@case_parameters
@pytest.mark.parametrize(
    ("key", "choice"),
    [
        ("priority", {"string_param": "high"}),
        ("priority", {"bool_param": True}),
        ("priority", {"int64_param": -1}),
        ("timeout", {"string_param": "1s"}),
        ("timeout", {"double_param": 0.5}),
        ("timeout", {"int64_param": -1}),
        ("triton_enable_empty_final_response", {"int64_param": 1}),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused_by_name(caller: Caller, key: str, choice: dict[str, Any]) -> None:
    invalid(caller.infer(with_parameter(key, **choice)), key)


@case_parameters
@pytest.mark.parametrize(
    ("key", "choice"),
    [
        ("sequence_id", {"int64_param": 7}),
        ("sequence_id", {"string_param": "seven"}),
        ("sequence_start", {"bool_param": True}),
        ("sequence_end", {"bool_param": True}),
    ],
)
def test_a_sequence_is_refused_by_a_model_that_keeps_none(caller: Caller, key: str, choice: dict[str, Any]) -> None:
    invalid(caller.infer(with_parameter(key, **choice)), key)


@case_parameters
def test_a_parameter_without_a_value_harms_nothing(caller: Caller) -> None:
    outcome = caller.infer(with_parameter("mine"))
    if not outcome.ok:
        invalid(outcome, "mine")


@case_parameters
@pytest.mark.parametrize("where", ["input", "output"])
def test_shared_memory_is_refused_where_it_is_off(caller: Caller, where: str) -> None:
    request = ask("mlp", zeros("FP32", (1, 10)), outputs=["y"])
    place = request.inputs[0] if where == "input" else request.outputs[0]
    place.parameters["shared_memory_region"].string_param = "region"
    place.parameters["shared_memory_byte_size"].int64_param = 40
    outcome = caller.infer(request)
    assert outcome.code in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT}, outcome


@case_limits
def test_a_million_byte_string_beside_a_limit_of_rows_is_served(caller: Caller) -> None:
    sent = [b"s" * 100_000] * 64
    assert ok(caller.infer(ask("identity_bytes", strings("x", sent, (64, 1)))))["y"].strings == sent


case_queue_bytes = pytest.mark.case("limits", "bytes that wait for a model; seconds of a run", "at most that many")


@case_queue_bytes
def test_the_bytes_that_wait_are_bounded_whatever_their_number(
    small_repository: Path, start: Start, remember: Callable[[Outcome], None]
) -> None:
    server = start(small_repository, "--max-queue-mib=0.001", "--max-batch-size=64")  # 1048 bytes: 131 turns
    with Caller(server.target, remember) as caller:
        blocker = caller.begin(ask("slow", trips(600_000)), timeout_s=60.0)
        wait_until(lambda: server.total(IN_FLIGHT) == 1 and server.total(QUEUED) == 0, "the blocker is at work")
        first = caller.begin(ask("slow", trips(*range(64))))
        wait_until(lambda: server.total(QUEUED_BYTES) == 512, "64 turns wait")
        second = caller.begin(ask("slow", trips(*range(64))))
        wait_until(lambda: server.total(QUEUED_BYTES) == 1024, "128 turns wait")
        refused(caller.infer(ask("slow", trips(*range(64)))), TOO_LARGE, "slow")
        assert not blocker.done, "the blocker was too short for this machine"
        third = caller.begin(ask("slow", trips(1, 2, 3)))  # 24 bytes: just enough room
        for each in (blocker, first, second, third):
            ok(each.outcome())
    server.stop()


@case_queue_bytes
def test_a_run_is_ended_after_its_seconds_and_the_next_is_served(
    small_repository: Path, start: Start, remember: Callable[[Outcome], None]
) -> None:
    server = start(small_repository, "--max-run-s=0.5")
    with Caller(server.target, remember) as caller:
        outcome = caller.infer(ask("slow", trips(1 << 62)), timeout_s=60.0)
        refused(outcome, grpc.StatusCode.DEADLINE_EXCEEDED, "--max-run-s")
        assert ok(caller.infer(ask("slow", trips(3))))["y"].array.tolist() == [[3]]
        server.wait_until_idle()
    server.stop()
