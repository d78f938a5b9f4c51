"""Clients that nobody here wrote: `tritonclient`, unary, streaming and asyncio, against a real server."""

import asyncio
import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException, shared_memory

if TYPE_CHECKING:
    from tests.integration.conftest import Process, Serve


def save(root: Path, name: str, config: str = "", labels: str = "") -> None:
    """Model `name`: x FP32 [batch, 3] → y = 2 · x."""
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", 3]) for each in "xy")
    two = numpy_helper.from_array(np.array([2], np.float32), "two")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["y"])], "double", [x], [y], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = root / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(model.SerializeToString())
    if config:
        (folder / "config.pbtxt").write_text(config)
    if labels:
        (folder / "labels.txt").write_text(labels)


def save_with_default(root: Path, name: str) -> None:
    """Model `name`: x FP32 [rows, 3], bias FP32 [3], 10 where it is left out → y = x + bias."""
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, ["rows", 3]) for each in "xy")
    bias = helper.make_tensor_value_info("bias", TensorProto.FLOAT, [3])
    ten = numpy_helper.from_array(np.full(3, 10, np.float32), "bias")
    graph = helper.make_graph([helper.make_node("Add", ["x", "bias"], ["y"])], "add", [x, bias], [y], [ten])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.onnx").write_bytes(model.SerializeToString())
    (root / name / "config.pbtxt").write_text(
        """
        input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }
        input { name: "bias" data_type: TYPE_FP32 dims: [ 3 ] optional: true }
        """
    )


@pytest.fixture
def process(root: Path, serve: "Serve") -> "Process":
    save_with_default(root, "biased")
    save(root, "double", labels="red\ngreen\nblue\n")
    save(root, "kept", config="max_batch_size: 8 response_cache { enable: true }")
    process = serve("--enable-shared-memory")
    process.client()
    return process


@pytest.fixture
def address(process: "Process") -> str:
    return str(next(line["address"] for line in process.lines if line["message"] == "serving"))


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


def tensor(array: np.ndarray, name: str = "x") -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


ROWS = np.array([[1, 3, 2], [6, 5, 4]], np.float32)


def test_classes_come_with_their_labels(client: triton.InferenceServerClient) -> None:
    result = client.infer("double", [tensor(ROWS)], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    found = result.as_numpy("y")
    assert found.tolist() == [[b"6.000000:1:green", b"4.000000:2:blue"], [b"12.000000:0:red", b"10.000000:1:green"]]


def test_an_input_with_a_default_may_be_given_or_left_out(client: triton.InferenceServerClient) -> None:
    bias = np.array([1, 2, 3], np.float32)
    assert (client.infer("biased", [tensor(ROWS)]).as_numpy("y") == ROWS + 10).all()
    assert (client.infer("biased", [tensor(bias, "bias"), tensor(ROWS)]).as_numpy("y") == ROWS + bias).all()
    with pytest.raises(InferenceServerException, match="missing 'x'"):
        client.infer("biased", [tensor(bias, "bias")])
    inputs = client.get_model_config("biased").config.input
    assert [(each.name, each.optional) for each in inputs] == [("x", False), ("bias", True)]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_may_be_compressed(client: triton.InferenceServerClient, algorithm: str) -> None:
    rows = np.ones((64, 3), np.float32)
    result = client.infer("double", [tensor(rows)], compression_algorithm=algorithm)
    assert (result.as_numpy("y") == 2 * rows).all()


def test_a_stream_is_answered_in_order_with_errors_inside(client: triton.InferenceServerClient) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        rows = np.full((1, 3), number, np.float32)
        name = "nobody" if number == 7 else "double"
        client.async_stream_infer(name, [tensor(rows)], request_id=str(number), enable_empty_final_response=True)
    client.stop_stream()  # half-closes, and waits for what is pending
    got = [answers.get(timeout=10) for _ in range(20)]
    assert answers.empty()
    for number, (result, error) in enumerate(got):
        if number == 7:
            assert "nobody" in str(error)
            continue
        assert error is None
        response = result.get_response()
        assert (response.id, response.parameters["triton_final_response"].bool_param) == (str(number), True)
        assert result.as_numpy("y")[0, 0] == 2 * number


def test_a_stream_may_be_left_while_it_is_answered(client: triton.InferenceServerClient) -> None:
    first: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: first.put((result, error)))
    for _ in range(200):
        client.async_stream_infer("double", [tensor(ROWS)])
    first.get(timeout=10)
    client.stop_stream(cancel_requests=True)
    assert client.infer("double", [tensor(ROWS)]).as_numpy("y").shape == (2, 3)


def test_an_error_may_end_the_stream_as_its_status(client: triton.InferenceServerClient) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
    client.async_stream_infer("nobody", [tensor(ROWS)])
    _, error = answers.get(timeout=10)
    assert error.status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def test_asyncio_streams_too(address: str) -> None:
    async def run() -> list[float]:
        async with triton_aio.InferenceServerClient(address) as client:

            async def requests() -> Any:
                for number in range(5):
                    yield {"model_name": "double", "inputs": [tensor(np.full((1, 3), number, np.float32))]}

            return [float(result.as_numpy("y")[0, 0]) async for result, _ in client.stream_infer(requests())]

    assert asyncio.run(run()) == [0, 2, 4, 6, 8]


def test_inputs_and_outputs_in_shared_memory(client: triton.InferenceServerClient) -> None:
    regions = {
        name: shared_memory.create_shared_memory_region(name, f"/test_{name}_{id(client)}", ROWS.nbytes)
        for name in ("in", "out")
    }
    try:
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        shared_memory.set_shared_memory_region(regions["in"], [ROWS])
        for name in regions:
            client.register_system_shared_memory(name, f"/test_{name}_{id(client)}", ROWS.nbytes)
        assert set(client.get_system_shared_memory_status(as_json=True)["regions"]) == {"in", "out"}
        assert dict(client.get_cuda_shared_memory_status().regions) == {}
        made = triton.InferInput("x", list(ROWS.shape), "FP32")
        made.set_shared_memory("in", ROWS.nbytes)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("out", ROWS.nbytes)
        result = client.infer("double", [made], outputs=[wanted])
        assert result.get_output("y").parameters["shared_memory_region"].string_param == "out"
        found = shared_memory.get_contents_as_numpy(regions["out"], np.float32, list(ROWS.shape))
        assert (found == 2 * ROWS).all()
        client.unregister_system_shared_memory()
        with pytest.raises(InferenceServerException, match="'in' is not registered"):
            client.infer("double", [made])
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            client.register_cuda_shared_memory("gpu", b"AAAA", 0, 8)
    finally:
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)


def test_statistics_agree_with_the_metrics_page(process: "Process", client: triton.InferenceServerClient) -> None:
    assert "statistics" in client.get_server_metadata().extensions
    for _ in range(3):
        client.infer("kept", [tensor(ROWS)])
    (found,) = client.get_inference_statistics("kept").model_stats
    page = process.metrics()

    def metric(name: str, more: str = "") -> float:  # labels stand in alphabetical order
        pattern = rf'^{name}{{model="kept"{more},version="1"}} (\S+)$'
        match = re.search(pattern, page, re.MULTILINE)
        assert match, (pattern, page)
        return float(match[1])

    stats = found.inference_stats
    assert int(found.version) == 1
    assert (stats.cache_hit.count, stats.cache_miss.count) == (2, 1)
    assert stats.cache_hit.count == metric("infer_cache_hits_total")
    assert stats.cache_miss.count == metric("infer_cache_misses_total")
    assert stats.success.count == metric("infer_request_seconds_count") == 3
    assert stats.success.ns == pytest.approx(1e9 * metric("infer_request_seconds_sum"), abs=1)
    assert stats.queue.ns == pytest.approx(1e9 * metric("infer_queue_seconds_sum"), abs=1)
    assert stats.compute_infer.ns == pytest.approx(1e9 * metric("infer_compute_seconds_sum"), abs=1)
    assert found.inference_count == metric("infer_rows_total") == 6
    assert found.execution_count == metric("infer_batches_total") == 1
    assert metric("infer_requests_total", ',outcome="ok"') == 3
