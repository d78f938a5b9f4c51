"""Client of Forwardpass, and of every server of the Open Inference Protocol v2 over gRPC.

    from forwardpass import Client

    with Client("127.0.0.1:8001") as client:
        result = client.infer("mnist_cnn", {"image": array})
        result["probabilities"]

`AsyncClient` is the same with `await`. Errors are in `forwardpass.errors`; the command line is `forwardpass`.
"""

from forwardpass.aio import AsyncClient
from forwardpass.aio_sequence import AsyncModelSequence
from forwardpass.aio_text import AsyncText
from forwardpass.client import Client
from forwardpass.credentials import TLS
from forwardpass.errors import ForwardpassError
from forwardpass.results import Health, InferResult, ModelMetadata, ModelStatus, ServerMetadata, TensorMetadata
from forwardpass.retry import RetryPolicy
from forwardpass.sequence import ModelSequence
from forwardpass.text import Text

__all__ = [
    "TLS",
    "AsyncClient",
    "AsyncModelSequence",
    "AsyncText",
    "Client",
    "ForwardpassError",
    "Health",
    "InferResult",
    "ModelMetadata",
    "ModelSequence",
    "ModelStatus",
    "RetryPolicy",
    "ServerMetadata",
    "TensorMetadata",
    "Text",
]
