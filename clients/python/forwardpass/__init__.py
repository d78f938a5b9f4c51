"""Client of Forwardpass, and of every server of the Open Inference Protocol v2 over gRPC.

    from forwardpass import Client

    with Client("127.0.0.1:8001") as client:
        result = client.infer("mnist_cnn", {"image": array})
        result["probabilities"]

`AsyncClient` is the same with `await`. Errors are in `forwardpass.errors`; the command line is `forwardpass`.
"""

from forwardpass.aio import AsyncClient
from forwardpass.client import Client
from forwardpass.credentials import TLS
from forwardpass.errors import ForwardpassError
from forwardpass.results import Health, InferResult, ModelMetadata, ModelStatus, ServerMetadata, TensorMetadata
from forwardpass.retry import RetryPolicy

__all__ = [
    "TLS",
    "AsyncClient",
    "Client",
    "ForwardpassError",
    "Health",
    "InferResult",
    "ModelMetadata",
    "ModelStatus",
    "RetryPolicy",
    "ServerMetadata",
    "TensorMetadata",
]
