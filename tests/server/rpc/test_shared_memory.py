"""Tensors in shared memory, over the rpcs: registered, read, written, and every way to misuse them."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.rpc.status import Code
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.shared_memory import SharedMemory
from forwardpass_server.tensors.signature import Signature, TensorSpec
from forwardpass_server.transport.fake import FakeResult

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

INFERENCE = "/inference.GRPCInferenceService/"

TWO = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 4)), TensorSpec("z", dtypes.FP32, ("batch", 4))),
    (TensorSpec("y", dtypes.FP32, ("batch", 4)), TensorSpec("text", dtypes.BYTES, ("batch",))),
    max_batch_size=8,
)


def add(inputs: list[np.ndarray]) -> list[np.ndarray]:
    return [inputs[0] + inputs[1], np.array(["text"] * len(inputs[0]), object)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "object").write_bytes(np.arange(64, dtype="<f4").tobytes())
    return tmp_path


@pytest.fixture
def shared(server_with: Callable[..., "Server"], models: "Models", folder: Path) -> Iterator["Server"]:
    """A server with shared memory, region "r" over the whole object of 256 bytes, and a model of two inputs."""
    models.add("two", 1, TWO, compute=add)
    server = server_with(memory=SharedMemory(1 << 20, folder))
    assert register(server).code == 0
    yield server
    server.until(lambda: models.held("two") == 0)


def register(
    server: "Server", name: str = "r", key: str = "/object", offset: int = 0, byte_size: int = 256
) -> FakeResult:
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
    return server.ask(INFERENCE + "SystemSharedMemoryRegister", request)


def place(tensor: object, region: str = "r", byte_size: int = 16, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = region  # type: ignore[attr-defined]
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size  # type: ignore[attr-defined]
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset  # type: ignore[attr-defined]


def asking(**places: Mapping[str, object] | None) -> pb.ModelInferRequest:
    """A request of two rows of ones for each input that has no place."""
    message = pb.ModelInferRequest(model_name="two")
    for name in ("x", "z"):
        tensor = message.inputs.add(name=name, datatype="FP32", shape=[1, 4])
        where = places.get(name)
        if where is None:
            message.raw_input_contents.append(np.ones(4, "<f4").tobytes())
        else:
            place(tensor, **where)  # type: ignore[arg-type]
    for name in ("y", "text"):
        if name in places:
            place(message.outputs.add(name=name), **places[name] or {})  # type: ignore[arg-type]
    return message


def reply(server: "Server", message: pb.ModelInferRequest) -> pb.ModelInferResponse:
    result = server.infer(message)
    assert result.body is not None, result
    return pb.ModelInferResponse.FromString(result.body)


@pytest.mark.parametrize("apart", ["x", "z"])
def test_raw_tensors_belong_to_the_inputs_that_are_in_the_message(shared: "Server", apart: str) -> None:
    for _ in range(3):  # again, with whatever the decoder remembers
        found = reply(shared, asking(**{apart: {"offset": 32}}))
        assert np.frombuffer(found.raw_output_contents[0], "<f4").tolist() == [9.0, 10.0, 11.0, 12.0]


def test_all_inputs_may_be_in_shared_memory(shared: "Server") -> None:
    found = reply(shared, asking(x={}, z={"offset": 16}))
    assert np.frombuffer(found.raw_output_contents[0], "<f4").tolist() == [4.0, 6.0, 8.0, 10.0]


def test_an_output_in_shared_memory_keeps_an_empty_raw_entry(shared: "Server", folder: Path) -> None:
    message = asking(y={"offset": 64, "byte_size": 20})
    message.outputs.add(name="text")
    found = reply(shared, message)
    assert [output.name for output in found.outputs] == ["y", "text"]
    assert list(found.raw_output_contents) == [b"", b"\x04\0\0\0text"]
    given = found.outputs[0].parameters
    assert given["shared_memory_region"].string_param == "r"
    assert (given["shared_memory_byte_size"].int64_param, given["shared_memory_offset"].int64_param) == (16, 64)
    content = np.frombuffer((folder / "object").read_bytes(), "<f4")
    assert content[16:20].tolist() == [2.0] * 4
    assert content[20] == 20  # behind the tensor nothing was touched


def test_text_may_be_written_there_too(shared: "Server", folder: Path) -> None:
    found = reply(shared, asking(text={"byte_size": 64}))
    assert list(found.raw_output_contents) == [b""]
    assert (folder / "object").read_bytes()[:8] == b"\x04\0\0\0text"


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"x": {"region": "nobody"}}, "'nobody' is not registered"),
        ({"x": {"offset": 244}}, "16 bytes at 244 pass the end of shared memory region 'r', which has 256"),
        ({"x": {"byte_size": 12}}, "input 'x': expected 16 bytes for FP32 [1, 4], got 12"),
        ({"x": {"byte_size": 256}}, "input 'x': expected 16 bytes for FP32 [1, 4], got 256"),
        ({"x": {"byte_size": -1}}, "'shared_memory_byte_size' is an integer from 0 up, got -1"),
        ({"x": {"offset": -8}}, "'shared_memory_offset' is an integer from 0 up, got -8"),
        ({"x": {"offset": 2**63 - 1}}, "pass the end"),
        ({"x": {"region": ""}}, "is the name of a region"),
        ({"y": {"region": "nobody"}}, "output 'y': shared memory region 'nobody' is not registered"),
        ({"y": {"byte_size": 8}}, "output 'y' has 16 bytes; its part of shared memory region 'r' has 8"),
        ({"y": {"byte_size": 257}}, "pass the end"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_and_counted_so(
    shared: "Server", models: "Models", folder: Path, places: dict[str, dict[str, object]], words: str
) -> None:
    before = (folder / "object").read_bytes()
    result = shared.infer(asking(**places))
    assert result.code == Code.INVALID_ARGUMENT
    assert words in result.message
    assert (folder / "object").read_bytes() == before
    outcomes = models.scheduler("two").statistics.snapshot().outcomes
    assert (outcomes["ok"], outcomes["invalid"]) == (0, 1)


def test_data_in_two_places_are_refused(shared: "Server") -> None:
    message = asking(x={})
    message.raw_input_contents.append(bytes(16))
    result = shared.infer(message)
    assert (result.code, "1 inputs but 2 raw_input_contents" in result.message) == (Code.INVALID_ARGUMENT, True)
    message = asking(x={}, z={})
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    result = shared.infer(message)
    assert (result.code, "both in shared memory and in contents" in result.message) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("key", ["shared_memory_byte_size", "shared_memory_offset"])
def test_a_size_without_a_region_is_refused(shared: "Server", key: str) -> None:
    message = asking()
    message.inputs[0].parameters[key].int64_param = 1
    result = shared.infer(message)
    assert (result.code, key in result.message) == (Code.INVALID_ARGUMENT, True)


def test_classification_does_not_go_into_shared_memory(shared: "Server") -> None:
    message = asking(y={})
    message.outputs[0].parameters["classification"].int64_param = 1
    result = shared.infer(message)
    assert (result.code, "does not go together" in result.message) == (Code.INVALID_ARGUMENT, True)


def test_a_region_unregistered_during_a_run_takes_the_answer(shared: "Server", models: "Models", folder: Path) -> None:
    session = models.add("two", 2, TWO, compute=add)
    session.hold()
    call = shared.begin(asking(y={"offset": 64}))
    assert session.wait_runs(1)
    shared.get(
        pb.SystemSharedMemoryUnregisterResponse,
        INFERENCE + "SystemSharedMemoryUnregister",
        pb.SystemSharedMemoryUnregisterRequest(),
    )
    session.release()
    assert call.result().code == 0
    assert np.frombuffer((folder / "object").read_bytes(), "<f4")[16:20].tolist() == [2.0] * 4
    assert shared.infer(asking(y={"offset": 64})).code == Code.INVALID_ARGUMENT


def test_a_client_that_shrinks_its_object_gets_an_error(shared: "Server", folder: Path) -> None:
    os.truncate(folder / "object", 8)
    result = shared.infer(asking(x={}))
    assert (result.code, "has shrunk" in result.message) == (Code.INVALID_ARGUMENT, True)


def test_regions_are_listed_and_forgotten(shared: "Server") -> None:
    assert register(shared, "s", "object", 16, 32).code == 0
    again = register(shared, "s")
    assert again.code == Code.ALREADY_EXISTS

    def status(name: str = "") -> dict[str, tuple[str, int, int]]:
        request = pb.SystemSharedMemoryStatusRequest(name=name)
        found = shared.get(pb.SystemSharedMemoryStatusResponse, INFERENCE + "SystemSharedMemoryStatus", request)
        return {name: (region.key, region.offset, region.byte_size) for name, region in found.regions.items()}

    assert status() == {"r": ("/object", 0, 256), "s": ("object", 16, 32)}
    assert status("s") == {"s": ("object", 16, 32)}
    missing = shared.ask(INFERENCE + "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="t"))
    assert missing.code == Code.NOT_FOUND
    shared.ask(INFERENCE + "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="r"))
    assert list(status()) == ["s"]


def test_there_are_no_regions_on_a_gpu_and_none_can_be_made(shared: "Server") -> None:
    """perf_analyzer asks to forget all of both kinds before it registers one."""
    for verb, message in (
        ("Unregister", pb.CudaSharedMemoryUnregisterRequest()),
        ("Status", pb.CudaSharedMemoryStatusRequest()),
    ):
        assert shared.ask(f"{INFERENCE}CudaSharedMemory{verb}", message).code == 0
    named = shared.ask(INFERENCE + "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="r"))
    assert named.code == Code.NOT_FOUND
    made = shared.ask(INFERENCE + "CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="r", byte_size=8))
    assert (made.code, "system shared memory" in made.message) == (Code.UNIMPLEMENTED, True)


def test_a_server_without_it_says_how_to_turn_it_on(server: "Server", models: "Models") -> None:
    models.add("two", 1, TWO, compute=add)
    for kind in ("System", "Cuda"):
        for verb in ("Register", "Unregister", "Status"):
            result = server.fake.unary(f"{INFERENCE}{kind}SharedMemory{verb}", b"")
            assert (result.code, "--enable-shared-memory" in result.message) == (Code.UNIMPLEMENTED, True)
    for name in "xy":
        result = server.infer(asking(**{name: {}}))
        assert (result.code, "--enable-shared-memory" in result.message) == (Code.UNIMPLEMENTED, True)
    metadata = server.get(pb.ServerMetadataResponse, INFERENCE + "ServerMetadata", pb.ServerMetadataRequest())
    assert "system_shared_memory" not in metadata.extensions


def test_a_server_with_it_lists_the_extension(shared: "Server") -> None:
    metadata = shared.get(pb.ServerMetadataResponse, INFERENCE + "ServerMetadata", pb.ServerMetadataRequest())
    assert "system_shared_memory" in metadata.extensions
    assert "cuda_shared_memory" not in metadata.extensions
