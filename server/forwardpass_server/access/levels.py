"""What it takes to call each rpc. One that is not listed takes the most.

Open whatever is set are only the questions "do you live?" and "are you ready?", which probes and load balancers ask
and cannot sign; they name no model. Everything else is about models and their data, or changes the server for all.
"""

from enum import IntEnum


class Level(IntEnum):
    """What a caller must be good for."""

    OPEN = 0
    """Nothing."""
    DATA = 1
    """Asking models, and about models."""
    ADMIN = 2
    """Changing what the server does for everybody."""


_INFERENCE = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/"

_LEVELS = {
    **dict.fromkeys(
        (f"{_INFERENCE}ServerLive", f"{_INFERENCE}ServerReady", f"{_HEALTH}Check", f"{_HEALTH}Watch"), Level.OPEN
    ),
    **dict.fromkeys(
        (
            f"{_INFERENCE}ModelReady",
            f"{_INFERENCE}ServerMetadata",
            f"{_INFERENCE}ModelMetadata",
            f"{_INFERENCE}ModelInfer",
            f"{_INFERENCE}ModelStreamInfer",
            f"{_INFERENCE}ModelConfig",
            f"{_INFERENCE}ModelStatistics",
            f"{_INFERENCE}RepositoryIndex",
            f"{_INFERENCE}SystemSharedMemoryStatus",
            f"{_INFERENCE}SystemSharedMemoryRegister",
            f"{_INFERENCE}SystemSharedMemoryUnregister",
            f"{_INFERENCE}CudaSharedMemoryStatus",
            f"{_INFERENCE}CudaSharedMemoryRegister",
            f"{_INFERENCE}CudaSharedMemoryUnregister",
            # To read the settings; who changes them must be an admin, and the handlers see to that.
            f"{_INFERENCE}TraceSetting",
            f"{_INFERENCE}LogSettings",
            f"{_HEALTH}List",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ),
        Level.DATA,
    ),
}


def level_of(method: str) -> Level:
    """What it takes to call `method`, "/package.Service/Method"."""
    return _LEVELS.get(method, Level.ADMIN)
