"""Stubs made by grpcio-tools from our .proto files, here and now, call every rpc.

Usage: PROTO_FOLDER OUTPUT ADDRESS ADMIN_TOKEN

Has grpcio, grpcio-tools and numpy, and nothing of ours but the .proto files.
"""

import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
from checks import Checks, refused

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


def generate(protos: Path, output: Path) -> None:
    files = sorted(str(path) for path in protos.glob("*.proto"))
    made = (f"--python_out={output}", f"--grpc_python_out={output}")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", *made, *files], check=True)
    sys.path.insert(0, str(output))


def main(protos: str, output: str, address: str, token: str) -> None:
    generate(Path(protos), Path(output))
    import grpc_service_pb2 as pb
    import grpc_service_pb2_grpc
    import health_pb2
    import health_pb2_grpc

    def question() -> "pb.ModelInferRequest":
        request = pb.ModelInferRequest(model_name="halved", raw_input_contents=[X.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=X.shape)
        return request

    admin = (("authorization", f"Bearer {token}"),)
    check = Checks()
    with grpc.insecure_channel(address) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answered = {
            "ServerLive": lambda: stub.ServerLive(pb.ServerLiveRequest()).live,
            "ServerReady": lambda: stub.ServerReady(pb.ServerReadyRequest()).ready,
            "ModelReady": lambda: stub.ModelReady(pb.ModelReadyRequest(name="halved")).ready,
            "ServerMetadata": lambda: stub.ServerMetadata(pb.ServerMetadataRequest()).extensions,
            "ModelMetadata": lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name="halved")).inputs,
            "ModelConfig": lambda: stub.ModelConfig(pb.ModelConfigRequest(name="halved")).config.input,
            "ModelStatistics": lambda: stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats,
            "RepositoryIndex": lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest()).models,
            "RepositoryModelUnload": lambda: (
                stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="words"), metadata=admin)
                is not None
            ),
            "RepositoryModelLoad": lambda: (
                stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="words"), metadata=admin) is not None
            ),
            "SystemSharedMemoryStatus": lambda: (
                not stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()).regions
            ),
            "SystemSharedMemoryUnregister": lambda: (
                stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest()) is not None
            ),
            "CudaSharedMemoryStatus": lambda: (
                not stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()).regions
            ),
            "CudaSharedMemoryUnregister": lambda: (
                stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest()) is not None
            ),
            "TraceSetting": lambda: stub.TraceSetting(pb.TraceSettingRequest(), metadata=admin).settings,
            "LogSettings": lambda: stub.LogSettings(pb.LogSettingsRequest(), metadata=admin).settings,
        }
        for rpc, call in answered.items():
            with check(rpc):
                assert call()
        with check("ModelInfer"):
            answer = stub.ModelInfer(question())
            y = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)
            np.testing.assert_array_equal(y, X / 4)
        with check("ModelStreamInfer"):
            replies = [reply.infer_response for reply in stub.ModelStreamInfer(iter([question()] * 3))]
            assert [reply.raw_output_contents[0] for reply in replies] == [(X / 4).tobytes()] * 3
        with check("SystemSharedMemoryRegister"):
            absent = pb.SystemSharedMemoryRegisterRequest(name="none", key="/compat-none", byte_size=64)
            refused("", stub.SystemSharedMemoryRegister, absent)
        with check("CudaSharedMemoryRegister"):
            refused("UNIMPLEMENTED", stub.CudaSharedMemoryRegister, pb.CudaSharedMemoryRegisterRequest(name="c"))
        with check("every rpc of the service was called"):
            rpcs = {method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
            others = {"ModelInfer", "ModelStreamInfer", "SystemSharedMemoryRegister", "CudaSharedMemoryRegister"}
            assert rpcs == answered.keys() | others
        with check("Health: Check, List, Watch"):
            health = health_pb2_grpc.HealthStub(channel)
            serving = health_pb2.HealthCheckResponse.SERVING
            assert health.Check(health_pb2.HealthCheckRequest()).status == serving
            assert health.List(health_pb2.HealthListRequest()).statuses[""].status == serving
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == serving
            watch.cancel()
    check.finish()


main(*sys.argv[1:])
