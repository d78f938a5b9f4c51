"""Every method of tritonclient's blocking client, its stream included. Usage: ADDRESS ADMIN_TOKEN"""

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shared
from admin import Admin
from checks import Checks, Recorder, refused

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
LOCAL = {"plugin", "register_plugin", "unregister_plugin", "close"}
"""What the client does by itself, without a call."""


def tensor(name: str, array: np.ndarray, datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def reports(client, check) -> None:
    with check("is_server_live, is_server_ready, is_model_ready"):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("halved")
        assert client.is_model_ready("halved", "1")
        assert client.is_model_ready("graded")
        refused("NOT_FOUND", client.is_model_ready, "nobody")
    with check("get_server_metadata"):
        about = client.get_server_metadata()
        assert about.name
        assert about.version
        assert {"statistics", "model_configuration", "model_repository", "system_shared_memory"} <= set(
            about.extensions
        )
        assert client.get_server_metadata(as_json=True)["name"] == about.name
    with check("get_model_metadata"):
        about = client.get_model_metadata("halved")
        assert (about.name, list(about.versions), about.platform) == ("halved", ["1", "2"], "onnxruntime_onnx")
        assert (about.inputs[0].name, about.inputs[0].datatype, list(about.inputs[0].shape)) == ("x", "FP32", [-1, 4])
        assert client.get_model_metadata("graded").platform == "ensemble"
        assert client.get_model_metadata("words").inputs[0].datatype == "BYTES"
    with check("get_model_config"):
        config = client.get_model_config("halved").config
        assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("halved", 16, [4])
        assert config.HasField("dynamic_batching")
        assert config.backend == "onnxruntime"
        steps = client.get_model_config("graded").config.ensemble_scheduling.step
        assert [step.model_name for step in steps] == ["halved", "pets"]
        derived = client.get_model_config("words", as_json=True)["config"]
        assert (derived["input"][0]["name"], derived["input"][0]["data_type"]) == ("text", "TYPE_STRING")
    with check("get_model_repository_index"):
        index = {(each.name, each.version): each.state for each in client.get_model_repository_index().models}
        assert index[("halved", "1")] == index[("halved", "2")] == index[("pets", "1")] == "READY"
        assert ("graded", "1") in index
        assert ("words", "1") in index


def inference(client, check) -> None:
    with check("infer: the newest version, and each"):
        for version, factor in (("", 0.25), ("1", 0.5), ("2", 0.25)):
            answer = client.infer("halved", [tensor("x", X)], version, request_id="seven")
            assert answer.get_response().id == "seven"
            assert answer.get_response().model_version == (version or "2")
            np.testing.assert_array_equal(answer.as_numpy("y"), X * factor)
            assert answer.get_output("y").datatype == "FP32"
    with check("infer: compression, timeout, priority, parameters, headers, outputs"):
        for compression in ("gzip", "deflate", None):
            answer = client.infer(
                "halved",
                [tensor("x", X)],
                outputs=[triton.InferRequestedOutput("y")],
                compression_algorithm=compression,
                timeout=30_000_000,
                client_timeout=30.0,
                headers={"x-request-id": "1"},
                parameters={"colour": "blue", "count": 3, "deep": True},
            )
            np.testing.assert_array_equal(answer.as_numpy("y"), X / 4)
    with check("infer: classification"):
        asked = [triton.InferRequestedOutput("probability", class_count=2)]
        answer = client.infer("pets", [tensor("y", X)], outputs=asked).as_numpy("probability")
        assert answer.shape == (2, 2), answer
        value, index, label = answer[0, 0].decode().split(":")
        assert (index, label) == ("3", "fox"), answer
        assert abs(float(value) - 0.6439) < 1e-3
    with check("infer: BYTES"):
        words = np.array([b"", "né".encode(), b"\x41" * 1000], np.object_)
        answer = client.infer("words", [tensor("text", words, "BYTES")])
        assert answer.as_numpy("same").tolist() == words.tolist()
    with check("infer: an ensemble"):
        grades = np.exp(X / 4) / np.exp(X / 4).sum(1, keepdims=True)
        answer = client.infer("graded", [tensor("image", X)])
        np.testing.assert_allclose(answer.as_numpy("grade"), grades, rtol=1e-5)
    with check("infer: what is wrong is refused"):
        refused("NOT_FOUND", client.infer, "nobody", [tensor("x", X)])
        refused("NOT_FOUND", client.infer, "halved", [tensor("x", X)], "9")
        refused("INVALID_ARGUMENT", client.infer, "halved", [tensor("x", X[:, :3])])
        refused("INVALID_ARGUMENT", client.infer, "halved", [tensor("x", np.ones((17, 4), np.float32))])
        refused("INVALID_ARGUMENT", client.infer, "halved", [tensor("z", X)])
    with check("async_infer, and its cancellation"):
        arrived: queue.Queue = queue.Queue()
        for number in range(20):
            rows = X + number
            client.async_infer(
                "halved", [tensor("x", rows)], lambda result, error, rows=rows: arrived.put((rows, result, error))
            )
        for rows, result, error in (arrived.get(timeout=30) for _ in range(20)):
            assert error is None, error
            np.testing.assert_array_equal(result.as_numpy("y"), rows / 4)
        client.async_infer("halved", [tensor("x", X)], lambda result, error: arrived.put(error)).cancel()
        error = arrived.get(timeout=30)
        assert error is None or "CANCELLED" in str(error), error


def streams(client, check) -> None:
    arrived: queue.Queue = queue.Queue()

    def arrive(result, error) -> None:
        arrived.put((result, error))

    with check("start_stream, async_stream_infer, stop_stream: in order"):
        client.start_stream(arrive)
        for number in range(50):
            client.async_stream_infer("halved", [tensor("x", X + number)], request_id=str(number))
        for number in range(50):
            result, error = arrived.get(timeout=30)
            assert error is None, error
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("y"), (X + number) / 4)
    with check("stream: an error is an answer, and the stream goes on"):
        client.async_stream_infer("nobody", [tensor("x", X)])
        result, error = arrived.get(timeout=30)
        assert "nobody" in str(error), error
        client.async_stream_infer("halved", [tensor("x", X)], enable_empty_final_response=True)
        result, error = arrived.get(timeout=30)
        assert error is None, error
        assert result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()
        assert arrived.empty()
    with check("stream: an ensemble, compression, and the end by cancellation"):
        client.start_stream(arrive, compression_algorithm="gzip")
        client.async_stream_infer("graded", [tensor("image", X)])
        result, error = arrived.get(timeout=30)
        assert error is None, error
        assert result.as_numpy("grade").shape == (2, 4)
        client.stop_stream(cancel_requests=True)


def shared_memory(client, check) -> None:
    with check("register_system_shared_memory, infer through it, status, unregister"):
        client.unregister_system_shared_memory()
        region = shared.create_shared_memory_region("both", "/compat-both", 2 * X.nbytes)
        try:
            shared.set_shared_memory_region(region, [X])
            client.register_system_shared_memory("both", "/compat-both", 2 * X.nbytes)
            status = client.get_system_shared_memory_status()
            assert (status.regions["both"].key, status.regions["both"].byte_size) == ("/compat-both", 64)
            given = triton.InferInput("x", [2, 4], "FP32")
            given.set_shared_memory("both", X.nbytes)
            asked = triton.InferRequestedOutput("y")
            asked.set_shared_memory("both", X.nbytes, offset=X.nbytes)
            answer = client.infer("halved", [given], outputs=[asked])
            assert answer.get_output("y").parameters["shared_memory_region"].string_param == "both"
            written = shared.get_contents_as_numpy(region, np.float32, [2, 4], offset=X.nbytes)
            np.testing.assert_array_equal(written, X / 4)
            client.unregister_system_shared_memory("both")
            assert not client.get_system_shared_memory_status().regions
        finally:
            shared.destroy_shared_memory_region(region)
    with check("CUDA shared memory, where there is no GPU: none to register, none there"):
        refused("UNIMPLEMENTED", client.register_cuda_shared_memory, "c", b"\0" * 64, 0, 64)
        assert not client.get_cuda_shared_memory_status().regions
        client.unregister_cuda_shared_memory()


def accounts(client, check) -> None:
    with check("get_inference_statistics"):
        before = {each.version: each for each in client.get_inference_statistics("halved").model_stats}
        for _ in range(5):
            client.infer("halved", [tensor("x", X)])
        after = {each.version: each for each in client.get_inference_statistics("halved").model_stats}
        assert set(after) == {"1", "2"}
        assert after["1"].inference_count == before["1"].inference_count
        assert after["2"].inference_count - before["2"].inference_count == 10
        assert after["2"].execution_count - before["2"].execution_count == 5
        assert after["2"].inference_stats.success.count - before["2"].inference_stats.success.count == 5
        assert after["2"].inference_stats.queue.count == after["2"].inference_stats.success.count
        assert {each.name for each in client.get_inference_statistics().model_stats} >= {"halved", "pets", "graded"}
    with check("get_log_settings, update_log_settings"):
        settings = client.get_log_settings(as_json=True)["settings"]
        assert settings["log_error"]["bool_param"] is True
        changed = client.update_log_settings({"log_verbose_level": 1}, as_json=True)["settings"]
        assert int(changed["log_verbose_level"]["uint32_param"]) == 1
        client.update_log_settings({"log_verbose_level": 0})
    with check("get_trace_settings, update_trace_settings"):
        assert "trace_level" in client.get_trace_settings().settings
        assert "trace_level" in client.get_trace_settings("halved").settings
        off = client.update_trace_settings(settings={"trace_level": ["OFF"]})
        assert list(off.settings["trace_level"].value) == ["OFF"]


def repository(client, check) -> None:
    with check("unload_model, load_model"):
        client.unload_model("words")
        states = [each.state for each in client.get_model_repository_index().models if each.name == "words"]
        assert "READY" not in states, states
        client.load_model("words")
        assert client.is_model_ready("words")
    with check("load_model: with a config of one's own, and back"):
        other = {"max_batch_size": 4, "input": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}]}
        client.load_model("pets", config=json.dumps(other))
        assert client.get_model_config("pets").config.max_batch_size == 4
        client.load_model("pets")
        assert client.get_model_config("pets").config.max_batch_size == 8
    with check("load_model: what there is not"):
        refused("", client.load_model, "nobody")


def main(address: str, token: str) -> None:
    check = Checks()
    with triton.InferenceServerClient(address) as plain:
        plain.register_plugin(Admin(token))
        client = Recorder(plain)
        for part in (reports, inference, streams, shared_memory, accounts, repository):
            part(client, check)
        with check("every method was called"):
            assert not (never := client.never_called(but=LOCAL)), never
    check.finish()


main(*sys.argv[1:])
