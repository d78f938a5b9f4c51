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
    """One unary rpc."""

    path: str
    request: type[Request]
    reply: type[Reply]


_SERVICE = "/inference.GRPCInferenceService/"

INFER = Method(_SERVICE + "ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
METADATA = Method(_SERVICE + "ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
MODEL_READY = Method(_SERVICE + "ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
INDEX = Method(_SERVICE + "RepositoryIndex", pb.RepositoryIndexRequest, pb.RepositoryIndexResponse)
SERVER_METADATA = Method(_SERVICE + "ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse)
LIVE = Method(_SERVICE + "ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse)
READY = Method(_SERVICE + "ServerReady", pb.ServerReadyRequest, pb.ServerReadyResponse)
HEALTH = Method("/grpc.health.v1.Health/Check", health.HealthCheckRequest, health.HealthCheckResponse)
