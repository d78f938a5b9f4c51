"""The wire's classes: complete, private, and what the .proto files say."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from forwardpass_proto import FILES, POOL, grpc_service_pb2, health_pb2, model_config_pb2, reflection_pb2

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_descriptors_and_stubs_are_what_the_sources_give() -> None:
    run = subprocess.run([sys.executable, ROOT / "proto/generate.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_default_pool_is_left_alone() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("health.proto")


def test_every_file_and_every_rpc_is_there() -> None:
    assert list(FILES) == ["model_config.proto", "grpc_service.proto", "health.proto", "reflection.proto"]
    service = POOL.FindServiceByName("inference.GRPCInferenceService")
    assert [method.name for method in service.methods] == [
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelStreamInfer",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    ]
    assert [m.name for m in service.methods if m.client_streaming or m.server_streaming] == ["ModelStreamInfer"]


def test_messages_round_trip_through_bytes() -> None:
    request = grpc_service_pb2.ModelInferRequest(model_name="mnist_cnn", raw_input_contents=[b"\x00\xff"])
    request.parameters["priority"].uint64_param = 1
    assert grpc_service_pb2.ModelInferRequest.FromString(request.SerializeToString()) == request
    assert health_pb2.HealthCheckResponse.SERVING == 1
    assert model_config_pb2.TYPE_BF16 == 14
    assert reflection_pb2.ErrorResponse(error_code=5).error_code == 5


@pytest.mark.parametrize("mine", ["first", "second"])
def test_tritonclient_lives_in_the_same_process_in_either_order(mine: str) -> None:
    imports = [
        "from forwardpass_proto import grpc_service_pb2 as ours",
        "from tritonclient.grpc import service_pb2 as theirs",
    ]
    if mine == "second":
        imports.reverse()
    same = "assert theirs.ModelInferRequest.FromString(ours.ModelInferRequest(id='7').SerializeToString()).id == '7'"
    run = subprocess.run([sys.executable, "-c", "\n".join([*imports, same])], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_wire_agrees_with_tritonclient_field_by_field() -> None:
    """Every message that tritonclient's own definition has, with the same names, numbers and types."""
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    service = pytest.importorskip("tritonclient.grpc.service_pb2")

    def fields(message: object) -> dict[str, tuple[int, int, bool]]:
        return {f.name: (f.number, f.type, _repeated(f)) for f in message.fields}  # type: ignore[attr-defined]

    compared = 0
    for theirs in (model_config.DESCRIPTOR, service.DESCRIPTOR):
        pending = list(theirs.message_types_by_name.values())
        while pending:
            message = pending.pop()
            pending.extend(message.nested_types)
            ours = fields(POOL.FindMessageTypeByName(message.full_name))
            missing = {name: spec for name, spec in fields(message).items() if ours.get(name) != spec}
            assert not missing, f"{message.full_name}: theirs {missing}, ours {ours}"
            compared += 1
    assert compared > 100


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)
