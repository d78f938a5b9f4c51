"""ModelConfig: the configuration that a version runs with."""

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle.config_in_force import config_in_force
from forwardpass_server.lifecycle.manager import ModelManager


class ModelConfig:
    """Configurations in force. Loop thread."""

    def __init__(self, models: ModelManager) -> None:
        self._models = models

    def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Raises NotFound, NotReady or InvalidRequest, as inference would."""
        version = self._models.version(request.name, request.version)
        return pb.ModelConfigResponse(config=config_in_force(version))
