"""gRPC's own interoperability cases, as far as they fit any server: section 2 of the conformance list."""

import threading
import time

import grpc
import numpy as np
import pytest
from conformance.process import ServerProcess, wait_until
from conformance.wire import CHECK, INFERENCE, WATCH, Caller, ask, ok, refused, tensor, trips, zeros

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
MLP = ask("mlp", zeros("FP32", (1, 10)))


def interop(name: str, expected: str) -> pytest.MarkDecorator:
    return pytest.mark.case("interop", name, expected)


@interop("unimplemented_method", "UNIMPLEMENTED")
@pytest.mark.parametrize(
    "method", ["Nothing", "modelInfer", "ModelInfer/", "ModelInfer2", "a" * 5000, "%20", "é".encode().hex()]
)
def test_a_method_that_is_not_there_is_unimplemented(caller: Caller, method: str) -> None:
    refused(caller.call(method), UNIMPLEMENTED)


@interop("unimplemented_service", "UNIMPLEMENTED")
@pytest.mark.parametrize(
    "path",
    [
        "/inference.Nothing/ModelInfer",
        "/GRPCInferenceService/ModelInfer",
        "/a/b",
        "//",
        "/",
        "/inference.GRPCInferenceService/",
    ],
)
def test_a_service_that_is_not_there_is_unimplemented(caller: Caller, path: str) -> None:
    refused(caller.call(path), UNIMPLEMENTED)


@interop("unimplemented_method", "UNIMPLEMENTED")
@pytest.mark.parametrize("body", [b"", bytes(1_000_000)], ids=["empty", "1 MB"])
def test_a_stream_to_a_method_that_is_not_there_is_unimplemented(caller: Caller, body: bytes) -> None:
    replies = caller.channel.stream_stream(f"{INFERENCE}/Nothing")(iter([body] * 3), timeout=10)
    with pytest.raises(grpc.RpcError) as error:
        list(replies)
    assert error.value.code() is UNIMPLEMENTED


@interop("empty_unary", "OK")
def test_server_live_answers_a_message_of_no_bytes(caller: Caller) -> None:
    outcome = caller.call("ServerLive", b"")
    assert pb.ServerLiveResponse.FromString(outcome.body or b"").live, outcome


@interop("empty_unary", "OK")
@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"], ids=["server", "service"])
def test_health_is_serving(caller: Caller, service: str) -> None:
    outcome = caller.call(CHECK, health_pb2.HealthCheckRequest(service=service).SerializeToString())
    assert outcome.ok, outcome
    assert (
        health_pb2.HealthCheckResponse.FromString(outcome.body or b"").status == health_pb2.HealthCheckResponse.SERVING
    )


@interop("health of an unknown service", "NOT_FOUND; Watch SERVICE_UNKNOWN")
def test_health_of_an_unknown_service_is_not_found(caller: Caller) -> None:
    request = health_pb2.HealthCheckRequest(service="ghost").SerializeToString()
    refused(caller.call(CHECK, request), grpc.StatusCode.NOT_FOUND)
    updates = caller.channel.unary_stream(WATCH)(request, timeout=10)
    first = health_pb2.HealthCheckResponse.FromString(next(updates))
    updates.cancel()
    assert first.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@interop("large_unary", "OK")
def test_a_large_message_goes_each_way(caller: Caller) -> None:
    x = np.random.default_rng(0).integers(0, 256, (1, 271_828), np.uint8)
    assert ok(caller.infer(ask("identity_uint8", tensor("x", x))))["y"].raw == x.tobytes()


@interop("custom_metadata", "OK; both kinds taken")
@pytest.mark.parametrize(
    "metadata",
    [
        [("x-grpc-test-echo-initial", "test_initial_metadata_value")],
        [("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")],
        [("x-bin", bytes(range(256)))],
        [("x-bin", b"")],
        [("x-empty", "")],
        [("x-many", str(number)) for number in range(20)],
        [("user-agent-x", "~!@#$%^&*()_+ {}|:\"<>?[]\\;',./`")],
    ],
    ids=["ascii", "bin", "every byte", "empty bin", "empty", "repeated", "signs"],
)
def test_custom_metadata_of_either_kind_is_taken(caller: Caller, metadata: list[tuple[str, str | bytes]]) -> None:
    ok(caller.infer(MLP, metadata=metadata))


SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


@interop("special_status_message", "details arrive intact")
def test_a_message_with_whitespace_and_unicode_arrives(caller: Caller) -> None:
    outcome = caller.infer(ask("mlp", zeros("FP32", (1, 10)), outputs=["☺😈"]))
    refused(outcome, grpc.StatusCode.INVALID_ARGUMENT)
    assert "☺😈" in outcome.details


@interop("special_status_message", "details arrive intact")
def test_a_hostile_name_leaves_the_status_well_formed(caller: Caller) -> None:
    outcome = caller.infer(ask(SPECIAL, zeros("FP32", (1, 10))))
    assert outcome.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}
    assert "☺" in outcome.details or "u263a" in outcome.details
    assert "😈" in outcome.details or "U0001f608" in outcome.details


@interop("status_code_and_message", "code and words")
def test_a_refusal_has_its_code_and_its_words(caller: Caller) -> None:
    refused(caller.infer(ask("ghost")), grpc.StatusCode.NOT_FOUND, "ghost")


@interop("timeout_on_sleeping_server", "DEADLINE_EXCEEDED")
@pytest.mark.parametrize("timeout_s", [0.001, 0.01, 0.05])
def test_a_deadline_passes_while_the_model_works(caller: Caller, timeout_s: float) -> None:
    outcome = caller.infer(ask("slow", trips(100_000)), timeout_s=timeout_s)
    refused(outcome, grpc.StatusCode.DEADLINE_EXCEEDED)


@interop("cancel_after_begin", "CANCELLED")
def test_a_call_cancelled_at_once_ends_cancelled(caller: Caller) -> None:
    pending = caller.begin(ask("slow", trips(100_000)))
    pending.cancel()
    assert pending.outcome().code is grpc.StatusCode.CANCELLED


@interop("cancel_after_begin", "CANCELLED")
def test_a_stream_cancelled_before_it_sent_anything_ends_cancelled(caller: Caller) -> None:
    call = caller.channel.unary_stream(WATCH)(b"", timeout=10)
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED


@interop("cancel_after_first_response", "CANCELLED; the stream is gone at the server")
def test_a_stream_cancelled_after_its_first_message_is_gone(server: ServerProcess, caller: Caller) -> None:
    calls = [caller.channel.unary_stream(WATCH)(b"", timeout=30) for _ in range(50)]
    for call in calls:
        assert next(call)
        call.cancel()
        assert call.code() is grpc.StatusCode.CANCELLED


@interop("half-closed, never answered", "ends with the connection")
def test_watchers_whose_connection_dies_leave_nothing_behind(server: ServerProcess) -> None:
    before = server.descriptors()
    with Caller(server.target) as doomed:
        calls = [doomed.channel.unary_stream(WATCH)(b"") for _ in range(50)]
        for call in calls:
            assert next(call)
    wait_until(lambda: server.descriptors() <= before, "the connection is closed")


@interop("client_streaming to a unary rpc", "one message, or none: refused")
@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_unary_rpc_given_no_message_or_several_never_hangs(caller: Caller, count: int) -> None:
    body = MLP.SerializeToString()
    begun = time.monotonic()
    try:
        caller.channel.stream_unary(f"{INFERENCE}/ModelInfer")(iter([body] * count), timeout=10)
    except grpc.RpcError as error:
        codes = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL}
        assert error.code() in codes, error  # noqa: PT017
    assert time.monotonic() - begun < 5


@interop("rpcs that are off", "UNIMPLEMENTED or PERMISSION_DENIED")
@pytest.mark.parametrize(
    "rpc",
    [
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    ],
)
def test_what_is_off_is_unimplemented_or_forbidden_and_never_done(caller: Caller, rpc: str) -> None:
    outcome = caller.call(rpc, b"")
    assert outcome.code in {UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED}, outcome


@interop("reflection off by default", "UNIMPLEMENTED")
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_off_unless_asked_for(caller: Caller, version: str) -> None:
    replies = caller.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")(
        iter([b"\x3a\x00"]), timeout=10
    )
    with pytest.raises(grpc.RpcError) as error:
        list(replies)
    assert error.value.code() is UNIMPLEMENTED


@interop("thousands of calls on one channel", "all OK, 0 CANCELLED")
def test_thousands_of_calls_at_once_on_one_channel_are_all_answered(server: ServerProcess, caller: Caller) -> None:
    # Answered means served, or refused for want of room with a time to come back: never CANCELLED (fact 2).
    body = MLP.SerializeToString()
    pending = [caller.start("ModelInfer", body, timeout_s=60.0) for _ in range(3000)]
    codes = [each.outcome().code for each in pending]
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, set(codes)
    assert codes.count(grpc.StatusCode.OK) >= 1000


@interop("thousands of calls one after the other", "all OK")
def test_two_thousand_calls_in_a_row_are_all_ok(caller: Caller) -> None:
    body = MLP.SerializeToString()
    assert all(caller.call("ModelInfer", body).ok for _ in range(2000))


@interop("thousands of calls all timing out", "DEADLINE_EXCEEDED")
def test_a_thousand_calls_that_all_time_out_harm_nobody(caller: Caller) -> None:
    request = ask("slow", trips(20_000))
    blocked = caller.begin(ask("slow", trips(150_000)))
    pending = [caller.begin(request, timeout_s=0.05) for _ in range(1000)]
    codes = {each.outcome().code for each in pending}
    assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}, codes
    ok(blocked.outcome())


@interop("many connections", "all OK")
def test_two_hundred_connections_at_once_are_all_served(server: ServerProcess) -> None:
    callers = [Caller(server.target) for _ in range(200)]
    try:
        pending = [each.begin(MLP) for each in callers]
        assert all(each.outcome().ok for each in pending)
    finally:
        for each in callers:
            each.channel.close()


@interop("clients that hang up in mid-call", "nothing stays behind")
def test_clients_that_hang_up_in_mid_call_leave_nothing_behind(server: ServerProcess) -> None:
    def hang_up() -> None:
        caller = Caller(server.target)
        for _ in range(20):
            caller.begin(ask("slow", trips(1000)))
        caller.channel.close()

    threads = [threading.Thread(target=hang_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
