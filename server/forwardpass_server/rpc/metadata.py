"""ServerLive, ServerReady, ModelReady, ServerMetadata and ModelMetadata."""

from collections.abc import Callable, Sequence

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.tensors.specs import TensorSpec

SERVER_NAME = "forwardpass"

FEATURES = ("binary_tensor_data", "parameters", "schedule_policy", "classification", "sequence")
"""Extensions of the protocol that are features of requests."""
EXTENSION_OF = {
    "ModelStatistics": "statistics",
    "ModelConfig": "model_configuration",
    "RepositoryIndex": "model_repository",
    "RepositoryModelUnload": "model_repository(unload_dependents)",
    "SystemSharedMemoryRegister": "system_shared_memory",
    "LogSettings": "logging",
}
"""Extensions that are rpcs: clients branch on them, so one is listed where its rpc is served, and only there."""


class Metadata:
    """What the server and its models are, and whether they are ready. Loop thread.

    Args:
        models: the versions.
        ready: whether the server takes inference requests: its models are loaded, and it is not leaving.
        server_version: of this distribution.
        extensions: of the protocol that are served; may be filled until the first call.
    """

    def __init__(
        self, models: ModelManager, ready: Callable[[], bool], server_version: str, extensions: Sequence[str] = ()
    ) -> None:
        self._models = models
        self._ready = ready
        self._server_version = server_version
        self._extensions = extensions

    def server_live(self, _request: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)  # whoever can say so is

    def server_ready(self, _request: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=self._models.ready(request.name, request.version))

    def server_metadata(self, _request: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._server_version, extensions=self._extensions)

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Raises NotFound, NotReady or InvalidRequest, as inference would."""
        model = self._models.describe(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=model.platform,
            inputs=[_tensor(spec) for spec in model.signature.inputs],
            outputs=[_tensor(spec) for spec in model.signature.outputs],
            properties=model.properties,
        )


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.dtype.wire, shape=spec.wire_shape)
