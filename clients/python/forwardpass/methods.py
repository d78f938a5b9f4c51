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
    about_health: bool = False
    """A question that a server which is not SERVING must also get, so that it goes round the health-checked channel."""


_SERVICE = "/inference.GRPCInferenceService/"

INFER = Method(_SERVICE + "ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
METADATA = Method(_SERVICE + "ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
MODEL_READY = Method(_SERVICE + "ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse, about_health=True)
INDEX = Method(_SERVICE + "RepositoryIndex", pb.RepositoryIndexRequest, pb.RepositoryIndexResponse, about_health=True)
SERVER_METADATA = Method(_SERVICE + "ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse, True)
LIVE = Method(_SERVICE + "ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse, about_health=True)
READY = Method(_SERVICE + "ServerReady", pb.ServerReadyRequest, pb.ServerReadyResponse, about_health=True)
HEALTH = Method(
    "/grpc.health.v1.Health/Check", health.HealthCheckRequest, health.HealthCheckResponse, about_health=True
)
