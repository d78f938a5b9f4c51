"""The rpcs that the client calls: full method names and message classes."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2 as health

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True, eq=False)
class Method(Generic[Request, Reply]):
    """One rpc."""

    path: str
    request: type[Request]
    reply: type[Reply]
    streams: bool = False
    """Messages go both ways, any number of them; else one each way."""


_SERVICE = "/inference.GRPCInferenceService/"

INFER = Method(_SERVICE + "ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
STREAM_INFER = Method(_SERVICE + "ModelStreamInfer", pb.ModelInferRequest, pb.ModelStreamInferResponse, streams=True)
METADATA = Method(_SERVICE + "ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
MODEL_READY = Method(_SERVICE + "ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
INDEX = Method(_SERVICE + "RepositoryIndex", pb.RepositoryIndexRequest, pb.RepositoryIndexResponse)
SERVER_METADATA = Method(_SERVICE + "ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse)
LIVE = Method(_SERVICE + "ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse)
READY = Method(_SERVICE + "ServerReady", pb.ServerReadyRequest, pb.ServerReadyResponse)
HEALTH = Method("/grpc.health.v1.Health/Check", health.HealthCheckRequest, health.HealthCheckResponse)
