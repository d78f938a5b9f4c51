"""`Client` against a real server: every rpc, errors, and what hostile or clumsy use does."""

import math
import threading
import time
from concurrent import futures
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from forwardpass import Client, Health
from forwardpass import errors as e
from forwardpass_proto import grpc_service_pb2 as pb


def test_infer_answers_arrays_by_name_with_what_came_along(server: Any, client: Client) -> None:
    def run(request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("queue-us", "12"), ("blob-bin", b"\x00\xff")))
        reply = server._ModelInfer(request, context)
        reply.parameters["rows"].int64_param = 2
        return reply

    server.overrides["ModelInfer"] = run
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = client.infer("echo", {"x": x}, request_id="r-1")
    np.testing.assert_array_equal(result["x"], x)
    assert result["x"].dtype == np.float32
    assert list(result) == ["x"]
    assert (result.model_name, result.model_version, result.id) == ("echo", "1", "r-1")
    assert result.parameters == {"rows": 2}
    assert result.trailers["queue-us"] == "12"
    assert result.trailers["blob-bin"] == b"\x00\xff"


def test_a_missing_output_is_a_key_error_that_names_those_that_came(client: Client) -> None:
    with pytest.raises(KeyError, match="no output 'probabilities'; 'echo' answered x"):
        client.infer("echo", {"x": [[1.0]]})["probabilities"]


def test_lists_and_integers_are_converted_to_what_the_model_takes(client: Client) -> None:
    result = client.infer("echo", {"x": [[1, 2], [3, 4]]})
    assert result["x"].dtype == np.float32
    np.testing.assert_array_equal(result["x"], [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", np.array([True, False])),
        ("UINT8", np.array([0, 255], np.uint8)),
        ("UINT16", np.array([0, 65535], np.uint16)),
        ("UINT32", np.array([0, 2**32 - 1], np.uint32)),
        ("UINT64", np.array([0, 2**64 - 1], np.uint64)),
        ("INT8", np.array([-128, 127], np.int8)),
        ("INT16", np.array([-(2**15), 2**15 - 1], np.int16)),
        ("INT32", np.array([-(2**31), 2**31 - 1], np.int32)),
        ("INT64", np.array([-(2**63), 2**63 - 1], np.int64)),
        ("FP16", np.array([1.5, -0.0, np.inf, np.nan, 6e-8], np.float16)),
        ("FP32", np.array([1.5, -0.0, np.inf, np.nan, 1e-45], np.float32)),
        ("FP64", np.array([1.5, -0.0, np.inf, np.nan, 5e-324], np.float64)),
        ("BYTES", np.array([b"", b"a\0", "é".encode(), b"\xff" * 70_000], object)),
    ],
)
def test_every_datatype_comes_back_bit_for_bit(
    server: Any, client: Client, make_echo: Any, datatype: Any, values: Any
) -> None:
    server.models["m"] = make_echo(datatype)
    answered = client.infer("m", {"x": values})["x"]
    assert answered.dtype == values.dtype
    if datatype == "BYTES":
        assert list(answered) == list(values)
    else:
        assert answered.tobytes() == values.tobytes()


def test_bfloat16_travels_as_its_high_bytes_and_comes_back_as_float32(
    server: Any, client: Client, make_echo: Any
) -> None:
    server.models["m"] = make_echo("BF16")
    answered = client.infer("m", {"x": [1.0, -2.5, 3.140625, math.inf]})["x"]
    assert answered.dtype == np.float32
    assert answered.tolist() == [1.0, -2.5, 3.140625, math.inf]


def test_empty_tensors_and_scalars_keep_their_shape(client: Client) -> None:
    assert client.infer("echo", {"x": np.zeros((0, 3), np.float32)})["x"].shape == (0, 3)
    assert client.infer("echo", {"x": 3.0})["x"].shape == ()


def test_a_message_of_tens_of_mebibytes_passes(client: Client) -> None:
    x = np.ones((10, 1024, 1024), np.float32)
    np.testing.assert_array_equal(client.infer("echo", {"x": x})["x"], x)


def test_inputs_beyond_the_limit_are_refused_here_with_both_sizes(server: Any, client: Client) -> None:
    with pytest.raises(e.TooLarge, match=r"hold 67108868 bytes, beyond the limit of 67108864"):
        client.infer("echo", {"x": np.zeros(16 * 1024 * 1024 + 1, np.float32)})
    assert server.count("ModelInfer") == 0


def test_a_reply_beyond_the_limit_is_too_large_and_the_client_goes_on(server: Any) -> None:
    with Client(server.address, max_message_bytes=100_000, deadline_s=20) as small:
        server.overrides["ModelInfer"] = lambda request, context: b"\0" * 200_000
        with pytest.raises(e.TooLarge, match="larger than max"):
            small.infer("echo", {"x": 1.0})
        del server.overrides["ModelInfer"]
        assert small.infer("echo", {"x": 1.0})["x"] == 1.0


def test_metadata_is_asked_once_and_not_again(server: Any, client: Client) -> None:
    for _ in range(5):
        client.infer("echo", {"x": [[1.0]]})
    assert server.count("ModelMetadata") == 1


def test_metadata_is_asked_for_each_version(server: Any, client: Client) -> None:
    client.infer("echo", {"x": 1.0}, version=1)
    client.infer("echo", {"x": 1.0}, version="2")
    assert server.count("ModelMetadata") == 2


def test_a_model_swapped_for_another_datatype_is_noticed_and_the_call_succeeds(
    server: Any, client: Client, make_echo: Any
) -> None:
    client.infer("echo", {"x": [1]})
    server.models["echo"] = make_echo("INT64")
    assert client.infer("echo", {"x": [1]})["x"].dtype == np.int64
    assert server.count("ModelMetadata") == 2


def test_a_swap_that_makes_the_inputs_convertible_is_noticed_before_sending(
    server: Any, client: Client, make_echo: Any
) -> None:
    server.models["echo"] = make_echo("INT64")
    client.infer("echo", {"x": [1]})
    server.models["echo"] = make_echo("FP32")
    assert client.infer("echo", {"x": [1.5]})["x"].tolist() == [1.5]


def test_a_refused_request_is_not_sent_twice_when_the_model_is_what_it_was(server: Any, client: Client) -> None:
    client.infer("echo", {"x": 1.0})

    def refuse(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input 'x': expected [-1,2], got [3]")

    server.overrides["ModelInfer"] = refuse
    with pytest.raises(e.InvalidRequest, match="unexpected shape") as caught:
        client.infer("echo", {"x": [1.0, 2.0, 3.0]})
    assert server.count("ModelInfer") == 2
    assert (caught.value.model, caught.value.address, caught.value.code) == (
        "echo",
        server.address,
        "INVALID_ARGUMENT",
    )


def test_an_unknown_input_is_refused_with_those_that_exist(client: Client) -> None:
    with pytest.raises(e.InvalidRequest, match=r"no input 'image'; the model takes x FP32 \[-1, -1\]"):
        client.infer("echo", {"image": [1]})


def test_an_error_found_before_sending_names_model_and_server(server: Any, client: Client) -> None:
    with pytest.raises(e.InvalidRequest) as caught:
        client.infer("echo", {"x": "text"}, version=3)
    assert caught.value.model == "echo/3"
    assert caught.value.address == server.address


def test_requested_outputs_parameters_version_and_id_reach_the_server(server: Any, client: Client) -> None:
    seen = []

    def keep(request: Any, context: Any) -> Any:
        seen.append(request)
        return server._ModelInfer(request, context)

    server.overrides["ModelInfer"] = keep
    parameters: dict[str, Any] = {"b": True, "i": -7, "big": 2**63, "f": 0.5, "s": "text"}
    client.infer("echo", {"x": 1.0}, ["x"], version=1, request_id="id", parameters=parameters)
    client.infer("echo", {"x": 1.0}, outputs="x")
    request = seen[0]
    assert [output.name for output in request.outputs] == ["x"]
    assert [output.name for output in seen[1].outputs] == ["x"]
    assert (request.model_version, request.id) == ("1", "id")
    kinds = {key: (value.WhichOneof("parameter_choice")) for key, value in request.parameters.items()}
    assert kinds == {
        "b": "bool_param",
        "i": "int64_param",
        "big": "uint64_param",
        "f": "double_param",
        "s": "string_param",
    }


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, None, b"bytes", [1]])
def test_a_parameter_of_no_wire_type_is_refused_by_name(client: Client, value: Any) -> None:
    with pytest.raises(e.InvalidRequest, match="parameter 'p' is"):
        client.infer("echo", {"x": 1.0}, parameters={"p": value})


def test_an_unknown_model_is_not_found_with_the_servers_words(client: Client) -> None:
    with pytest.raises(e.ModelNotFound, match="unknown model: 'nope'") as caught:
        client.infer("nope", {"x": 1})
    assert caught.value.model == "nope"
    assert caught.value.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", e.InvalidRequest),
        ("UNIMPLEMENTED", e.Unsupported),
        ("UNAUTHENTICATED", e.Unauthenticated),
        ("PERMISSION_DENIED", e.PermissionDenied),
        ("CANCELLED", e.CallCancelled),
        ("INTERNAL", e.ServerFault),
        ("DATA_LOSS", e.ServerFault),
        ("UNKNOWN", e.ServerFault),
    ],
)
def test_a_status_becomes_its_error_with_the_servers_words(server: Any, client: Client, code: Any, kind: Any) -> None:
    def fail(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode[code], "tab\t and 🐈 line\r\nend")

    server.overrides["ModelInfer"] = fail
    with pytest.raises(kind) as caught:
        client.infer("echo", {"x": 1.0})
    assert caught.value.reason == "tab\t and 🐈 line\r\nend"
    assert caught.value.code == code
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_a_deadline_ends_a_slow_call_and_says_its_length(server: Any, client: Client) -> None:
    leave = threading.Event()
    server.overrides["ModelInfer"] = lambda request, context: leave.wait(20) and b""
    started = time.monotonic()
    with pytest.raises(e.DeadlineExceeded, match=r"no answer within 0\.3 s") as caught:
        client.infer("echo", {"x": 1.0}, deadline_s=0.3)
    assert 0.25 < time.monotonic() - started < 5
    assert isinstance(caught.value, TimeoutError)
    leave.set()


def test_a_server_that_cancels_at_the_deadline_is_late_and_not_cancelled(
    server: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.metadata("echo")
    server.overrides["ModelInfer"] = lambda request, context: context.abort(grpc.StatusCode.CANCELLED, "you left")
    clock = iter([100.0, 100.0])  # when the call begins, and what is left for it; then the deadline has passed
    monkeypatch.setattr("forwardpass.session.time", SimpleNamespace(monotonic=lambda: next(clock, 200.0)))
    with pytest.raises(e.DeadlineExceeded, match="no answer within 5 s"):
        client.infer("echo", {"x": 1.0}, deadline_s=5)


def test_the_look_at_the_metadata_counts_into_the_deadline(server: Any, client: Client) -> None:
    leave = threading.Event()
    server.overrides["ModelMetadata"] = lambda request, context: leave.wait(20) and b""
    with pytest.raises(e.DeadlineExceeded, match="model 'echo'"):
        client.infer("echo", {"x": 1.0}, deadline_s=0.2)
    leave.set()


@pytest.mark.parametrize("deadline_s", [0, -1, math.nan])
def test_a_senseless_deadline_is_refused(client: Client, deadline_s: Any) -> None:
    with pytest.raises(e.ClientMisused, match="deadline_s must be above 0"):
        client.infer("echo", {"x": 1.0}, deadline_s=deadline_s)


def test_no_deadline_is_possible(server: Any, client: Client) -> None:
    assert client.infer("echo", {"x": 1.0}, deadline_s=math.inf)["x"] == 1.0


def test_the_other_questions(server: Any, client: Client) -> None:
    assert client.live() is True
    assert client.ready() is True
    assert client.model_ready("echo") is True
    assert client.server().name == "fake"
    assert client.health() is Health.SERVING
    assert client.health("echo") is Health.SERVING
    assert client.health("nobody") is Health.SERVICE_UNKNOWN
    metadata = client.metadata("echo")
    assert (metadata.name, metadata.versions, metadata.platform) == ("echo", ("1",), "onnxruntime_onnx")
    assert str(metadata.inputs[0]) == "x FP32 [-1, -1]"
    with pytest.raises(e.ModelNotFound):
        client.model_ready("nope")


def test_labels_come_from_the_models_properties(server: Any, client: Client) -> None:
    server.models["echo"].properties["forwardpass.labels"] = '["cat", "dog"]'
    assert client.metadata("echo").labels == ("cat", "dog")


def test_a_server_that_is_not_serving_still_answers_about_itself(server: Any, client: Client) -> None:
    server.health = "NOT_SERVING"
    assert client.health() is Health.NOT_SERVING
    assert client.live() is True
    assert client.ready() is False
    assert client.model_ready("echo") is True


def test_the_index_is_sorted_by_name_and_number(server: Any, client: Client) -> None:
    server.index = [("b", "10", "READY", ""), ("b", "9", "UNAVAILABLE", "hash of model.onnx differs")]
    server.index.append(("a", "1", "READY", ""))
    assert [(row.name, row.version) for row in client.models()] == [("a", "1"), ("b", "9"), ("b", "10")]
    assert client.models()[1].reason == "hash of model.onnx differs"
    assert [row.version for row in client.models(only_ready=True)] == ["1", "10"]


def test_a_server_without_an_index_is_unsupported(client: Client) -> None:
    with pytest.raises(e.Unsupported, match="RepositoryIndex"):
        client.models()


def test_waiting_for_a_model_ends_when_it_appears(server: Any, client: Client, make_echo: Any) -> None:
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_until_ready, "late", deadline_s=20)
        while server.count("ModelReady") < 2:
            assert not waiting.done()
        server.models["late"] = make_echo("FP32")
        waiting.result(20)


def test_waiting_in_vain_ends_with_the_last_reason(client: Client) -> None:
    with pytest.raises(e.DeadlineExceeded, match="last seen: Request for unknown model: 'never'"):
        client.wait_until_ready("never", deadline_s=0.5)


def test_waiting_for_a_server_that_is_not_there_yet(make_server: Any) -> None:
    server = make_server()
    server.stop()
    with Client(server.address) as client, futures.ThreadPoolExecutor(1) as pool:
        with pytest.raises(e.DeadlineExceeded, match=r"last seen: .*(refused|connect)"):
            client.wait_until_ready(deadline_s=0.5)
        waiting = pool.submit(client.wait_until_ready, deadline_s=30)
        server.start()
        waiting.result(30)


def test_sixteen_threads_share_one_client_and_one_connection(server: Any, client: Client) -> None:
    def ask(number: Any) -> Any:
        return [client.infer("echo", {"x": [number, k]})["x"].tolist() == [number, k] for k in range(50)]

    with futures.ThreadPoolExecutor(16) as pool:
        assert all(all(answers) for answers in pool.map(ask, range(16)))
    assert server.count("ModelInfer") == 800
    assert len(server.peers) == 1


def test_headers_of_the_client_and_of_the_call_reach_the_server(server: Any) -> None:
    with Client(server.address, headers={"x-team": "vision"}, token=lambda: "rotating") as client:
        client.infer("echo", {"x": 1.0}, headers={"traceparent": "00-1", "raw-bin": b"\x00\x01"})
    metadata = server.calls[-1][1]
    assert metadata["x-team"] == "vision"
    assert metadata["traceparent"] == "00-1"
    assert metadata["raw-bin"] == b"\x00\x01"
    assert metadata["authorization"] == "Bearer rotating"


@pytest.mark.parametrize(
    "headers",
    [{"Upper": "x"}, {"a b": "x"}, {"grpc-x": "1"}, {"k": "é"}, {"k": "a\nb"}, {"k-bin": "text"}, {"k": b"bytes"}],
)
def test_headers_that_http2_cannot_carry_are_refused_by_name(server: Any, headers: Any) -> None:
    with pytest.raises(e.ClientMisused, match="header '"):
        Client(server.address, headers=headers)


def test_a_closed_client_says_so(server: Any) -> None:
    client = Client(server.address)
    client.close()
    client.close()
    with pytest.raises(e.ClientMisused, match="closed"):
        client.live()


def test_closing_cancels_calls_in_flight(server: Any, make_server: Any) -> None:
    arrived, leave = threading.Event(), threading.Event()

    def hang(request: Any, context: Any) -> Any:
        arrived.set()
        leave.wait(20)
        return b""

    server.overrides["ModelInfer"] = hang
    client = Client(server.address)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.infer, "echo", {"x": 1.0})
        assert arrived.wait(20)
        client.close()
        with pytest.raises(e.CallCancelled):
            call.result(20)
    leave.set()


def test_a_client_carried_across_a_fork_says_so(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(e.ClientMisused, match="do not survive a fork"):
        client.live()


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_requests_can_be_compressed(server: Any, compression: Any) -> None:
    with Client(server.address, compression=compression) as client:
        x = np.zeros((4, 1000), np.float32)
        np.testing.assert_array_equal(client.infer("echo", {"x": x})["x"], x)
    assert compression in server.calls[-1][1].get("grpc-internal-encoding-request", compression)


@pytest.mark.parametrize(
    "setting",
    [
        {"compression": "zip"},
        {"load_balancing": "random"},
        {"deadline_s": 0},
        {"max_message_bytes": 0},
        {"keepalive_s": -1},
    ],
)
def test_a_senseless_setting_is_refused_with_its_value(setting: Any) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(e.ClientMisused, match=f"{name}.*{value}"):
        Client("127.0.0.1:1", **setting)


def _reply(**fields: Any) -> Any:
    return pb.ModelInferResponse(model_name="echo", **fields)


def _output(datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape}


@pytest.mark.parametrize(
    ("outputs", "raws", "words"),
    [
        ([_output("FP32", 2)], [b"1234"], "takes 8 bytes, got 4"),
        ([_output("FP32", -1)], [b"1234"], "negative"),
        ([_output("FP99", 1)], [b"1234"], "unknown datatype 'FP99'"),
        ([], [b"1234"], "0 outputs came with 1 raw"),
        ([_output("FP16", 1)], [], "without raw contents"),
        ([_output("FP32", 3)], [], "came with 0 values"),
        ([_output("BYTES", 1)], [b"\xff\xff\xff\xff"], "ends inside element 0"),
        ([_output("BYTES", 2**40)], [b"\0" * 8], "1099511627776 BYTES elements"),
        ([_output("BYTES", 1)], [b"\0" * 7], "3 bytes beyond"),
        ([_output("BOOL", 1), _output("BOOL", 1)], [b"1", b"0"], "came twice"),
    ],
)
def test_a_reply_that_does_not_add_up_is_malformed(
    server: Any, client: Client, outputs: Any, raws: Any, words: Any
) -> None:
    server.overrides["ModelInfer"] = lambda request, context: _reply(outputs=outputs, raw_output_contents=raws)
    with pytest.raises(e.MalformedReply, match=words) as caught:
        client.infer("echo", {"x": 1.0})
    assert caught.value.model == "echo"


def test_bytes_that_are_no_message_are_a_servers_fault(server: Any, client: Client) -> None:
    server.overrides["ModelInfer"] = lambda request, context: b"\xff\xff\xff"
    with pytest.raises(e.ServerFault):
        client.infer("echo", {"x": 1.0})


@pytest.mark.parametrize(
    ("datatype", "contents", "values"),
    [
        ("FP32", {"fp32_contents": [0.5, -1.0]}, [0.5, -1.0]),
        ("INT8", {"int_contents": [-128, 127]}, [-128, 127]),
        ("UINT64", {"uint64_contents": [2**64 - 1, 0]}, [2**64 - 1, 0]),
        ("BOOL", {"bool_contents": [True, False]}, [True, False]),
        ("BYTES", {"bytes_contents": [b"a\0", b""]}, [b"a\0", b""]),
    ],
)
def test_typed_contents_of_other_servers_are_read(
    server: Any, client: Client, datatype: Any, contents: Any, values: Any
) -> None:
    output = {"name": "x", "datatype": datatype, "shape": [2], "contents": contents}
    server.overrides["ModelInfer"] = lambda request, context: _reply(outputs=[output])
    assert client.infer("echo", {"x": 1.0})["x"].tolist() == values


def test_typed_contents_out_of_range_are_malformed(server: Any, client: Client) -> None:
    output = {"name": "x", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [300]}}
    server.overrides["ModelInfer"] = lambda request, context: _reply(outputs=[output])
    with pytest.raises(e.MalformedReply, match="300"):
        client.infer("echo", {"x": 1.0})
