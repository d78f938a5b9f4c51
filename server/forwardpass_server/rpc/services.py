"""Which handler answers which method, for every rpc of every service that is served."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

import forwardpass_proto
from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2
from forwardpass_server.access.gate import Gate
from forwardpass_server.errors import NotImplementedHere
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.logs import LogControl
from forwardpass_server.observe.tracing import Tracer
from forwardpass_server.rpc import metadata, reflection, status
from forwardpass_server.rpc.everywhere import SHARED, Obeying, Together, everywhere
from forwardpass_server.rpc.guarded import guard, guarded, guarded_change, guarded_stream
from forwardpass_server.rpc.health import Health
from forwardpass_server.rpc.infer import Infer
from forwardpass_server.rpc.messages import parse
from forwardpass_server.rpc.metadata import Metadata
from forwardpass_server.rpc.model_config import ModelConfig
from forwardpass_server.rpc.reflection import Reflection
from forwardpass_server.rpc.repository import Repository
from forwardpass_server.rpc.response_cache import ResponseCache
from forwardpass_server.rpc.settings import LogSettings, trace_setting
from forwardpass_server.rpc.shared_memory import CudaMemory, SystemMemory
from forwardpass_server.rpc.statistics import Statistics
from forwardpass_server.rpc.stream import InferStream
from forwardpass_server.rpc.triton_codes import translated, translated_stream
from forwardpass_server.tensors.shared_memory import SharedMemory
from forwardpass_server.tensors.wire import Decoder, Encoder
from forwardpass_server.transport.call import Call, StreamFactory, UnaryHandler

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

Req = TypeVar("Req", bound=Message)


@dataclass(frozen=True)
class Services:
    """All handlers by full method name, "/package.Service/Method", for the transport; and the health they share.

    Args:
        unary, streams: what callers reach.
        health: of the server.
        obeying: what carries out here what was ordered of every process of the server.
    """

    unary: dict[str, UnaryHandler]
    streams: dict[str, StreamFactory]
    health: Health
    obeying: Obeying


def build(
    models: ModelManager,
    *,
    server_version: str,
    enable_reflection: bool = False,
    memory: SharedMemory | None = None,
    cache: ResponseCache | None = None,
    gate: Gate | None = None,
    triton_codes: bool = False,
    together: Together | None = None,
    tracer: Tracer | None = None,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> Services:
    """The handlers of one server.

    Args:
        models: the versions it serves.
        server_version: of this distribution, for ServerMetadata.
        enable_reflection: serve grpc.reflection too.
        memory: the regions of shared memory; None refuses whatever has to do with it.
        cache: answers of models that want theirs kept; None keeps none.
        gate: who may call what; None leaves data rpcs open and admin rpcs closed.
        triton_codes: fail with the status codes that Triton has.
        together: the way to the other processes of this server; None where it is the only one.
        tracer: chooses the requests that are traced; None traces none.
        clock_ns: the monotonic clock.
    """
    gate = gate or Gate()
    health = Health(models)
    extensions = [*metadata.FEATURES]
    about = Metadata(models, health.ready, server_version, extensions)
    infer = Infer(models, Decoder(), Encoder(), memory, cache, tracer, clock_ns)
    repository = Repository(models)
    unary: dict[str, UnaryHandler] = {
        f"/{INFERENCE}/ModelInfer": answering(infer),
        f"/{INFERENCE}/ServerLive": replying(pb.ServerLiveRequest, about.server_live),
        f"/{INFERENCE}/ServerReady": replying(pb.ServerReadyRequest, about.server_ready),
        f"/{INFERENCE}/ModelReady": replying(pb.ModelReadyRequest, about.model_ready),
        f"/{INFERENCE}/ServerMetadata": replying(pb.ServerMetadataRequest, about.server_metadata),
        f"/{INFERENCE}/ModelMetadata": replying(pb.ModelMetadataRequest, about.model_metadata),
        f"/{INFERENCE}/ModelConfig": replying(pb.ModelConfigRequest, ModelConfig(models).model_config),
        f"/{INFERENCE}/ModelStatistics": replying(pb.ModelStatisticsRequest, Statistics(models).model_statistics),
        f"/{INFERENCE}/RepositoryIndex": replying(pb.RepositoryIndexRequest, repository.index),
        f"/{INFERENCE}/RepositoryModelLoad": answering(repository.load),
        f"/{INFERENCE}/RepositoryModelUnload": answering(repository.unload),
        f"/{INFERENCE}/LogSettings": replying(pb.LogSettingsRequest, LogSettings(LogControl()).log_settings),
        f"/{INFERENCE}/TraceSetting": replying(pb.TraceSettingRequest, trace_setting),
        f"/{HEALTH}/Check": replying(health_pb2.HealthCheckRequest, health.check),
        f"/{HEALTH}/List": replying(health_pb2.HealthListRequest, health.list),
    }
    if memory is not None:
        unary |= _shared_memory(memory)
    streams: dict[str, StreamFactory] = {
        f"/{INFERENCE}/ModelStreamInfer": lambda call: InferStream(infer, call),
        f"/{HEALTH}/Watch": health.watch,
    }
    if enable_reflection:
        named = {name: f"{name}.ServerReflection" for name in (reflection.V1, reflection.V1ALPHA)}
        stream = Reflection([INFERENCE, HEALTH, *named.values()]).stream
        streams |= {f"/{service}/ServerReflectionInfo": stream for service in named.values()}
    extensions += [name for rpc, name in metadata.EXTENSION_OF.items() if f"/{INFERENCE}/{rpc}" in unary]
    if memory is None:
        _refuse_shared_memory(unary)
    obeying = Obeying({method: unary[method] for method in SHARED}, lambda: models.asked)
    if together is not None:
        unary |= {method: everywhere(unary[method], shared, together) for method, shared in SHARED.items()}
    for rpc, kind in (("LogSettings", pb.LogSettingsRequest), ("TraceSetting", pb.TraceSettingRequest)):
        unary[f"/{INFERENCE}/{rpc}"] = guarded_change(unary[f"/{INFERENCE}/{rpc}"], gate, kind)
    guard(unary, gate, guarded)
    guard(streams, gate, guarded_stream)
    if triton_codes:
        unary = {method: translated(handle) for method, handle in unary.items()}
        streams = {method: translated_stream(make) for method, make in streams.items()}
    return Services(unary, streams, health, obeying)


def answering(handle: UnaryHandler) -> UnaryHandler:
    """`handle`, with whatever it raises answered by its status."""

    def answer(call: Call, body: bytes) -> None:
        try:
            handle(call, body)
        except Exception as error:  # noqa: BLE001 - the edge: status.of logs what is ours
            call.fail(*status.of(error))

    return answer


def replying(kind: type[Req], respond: Callable[[Req], Message]) -> UnaryHandler:
    """A handler that replies at once with what `respond` returns."""

    def handle(call: Call, body: bytes) -> None:
        call.reply(respond(parse(kind, body)).SerializeToString())

    return answering(handle)


def _shared_memory(memory: SharedMemory) -> dict[str, UnaryHandler]:
    """The rpcs of shared memory."""
    system, cuda = SystemMemory(memory), CudaMemory()
    return {
        f"/{INFERENCE}/SystemSharedMemoryRegister": answering(system.register),
        f"/{INFERENCE}/SystemSharedMemoryUnregister": replying(
            pb.SystemSharedMemoryUnregisterRequest, system.unregister
        ),
        f"/{INFERENCE}/SystemSharedMemoryStatus": replying(pb.SystemSharedMemoryStatusRequest, system.status),
        f"/{INFERENCE}/CudaSharedMemoryRegister": replying(pb.CudaSharedMemoryRegisterRequest, cuda.register),
        f"/{INFERENCE}/CudaSharedMemoryUnregister": replying(pb.CudaSharedMemoryUnregisterRequest, cuda.unregister),
        f"/{INFERENCE}/CudaSharedMemoryStatus": replying(pb.CudaSharedMemoryStatusRequest, cuda.status),
    }


def _refuse_shared_memory(unary: dict[str, UnaryHandler]) -> None:
    """Have the rpcs of shared memory say that it is off, and how it goes on."""
    for method in forwardpass_proto.POOL.FindServiceByName(INFERENCE).methods:
        if "SharedMemory" in method.name:
            error = NotImplementedHere(f"{method.name} is off: start the server with --enable-shared-memory")
            unary[f"/{INFERENCE}/{method.name}"] = _refusing(error)


def _refusing(error: NotImplementedHere) -> UnaryHandler:
    def refuse(_call: Call, _body: bytes) -> None:
        raise error

    return answering(refuse)
