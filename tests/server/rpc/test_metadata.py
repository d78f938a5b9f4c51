"""What the server and its models say of themselves."""

from typing import TYPE_CHECKING

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle.states import State
from forwardpass_server.rpc.metadata import EXTENSION_OF, FEATURES
from forwardpass_server.rpc.status import Code
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

BUILT = {"ModelStatistics", "ModelConfig", "RepositoryIndex", "RepositoryModelUnload", "LogSettings"}
"""The rpcs that are extensions, of those that this server was built with."""

INFERENCE = "/inference.GRPCInferenceService/"


def test_a_live_server_is_live_even_when_it_is_not_ready(server: "Server", models: "Models") -> None:
    models.is_ready = False
    assert server.get(pb.ServerLiveResponse, INFERENCE + "ServerLive", pb.ServerLiveRequest()).live
    assert not server.get(pb.ServerReadyResponse, INFERENCE + "ServerReady", pb.ServerReadyRequest()).ready


def test_a_leaving_server_is_live_and_not_ready(server: "Server") -> None:
    assert server.get(pb.ServerReadyResponse, INFERENCE + "ServerReady", pb.ServerReadyRequest()).ready
    server.health.leave()
    assert not server.get(pb.ServerReadyResponse, INFERENCE + "ServerReady", pb.ServerReadyRequest()).ready
    assert server.get(pb.ServerLiveResponse, INFERENCE + "ServerLive", pb.ServerLiveRequest()).live


def test_the_server_names_itself_and_only_extensions_it_serves(server: "Server") -> None:
    reply = server.get(pb.ServerMetadataResponse, INFERENCE + "ServerMetadata", pb.ServerMetadataRequest())
    assert (reply.name, reply.version) == ("forwardpass", "1.2.3")
    assert list(reply.extensions) == [*FEATURES, *(name for rpc, name in EXTENSION_OF.items() if rpc in BUILT)]


@pytest.mark.parametrize(
    ("name", "version", "ready"), [("double", "", True), ("double", "1", True), ("loading", "", False)]
)
def test_a_known_model_is_ready_or_not(
    server: "Server", models: "Models", name: str, version: str, ready: bool
) -> None:
    models.add("double", 1)
    models.know("loading", 1, State.LOADING)
    request = pb.ModelReadyRequest(name=name, version=version)
    assert server.get(pb.ModelReadyResponse, INFERENCE + "ModelReady", request).ready is ready


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
@pytest.mark.parametrize(
    ("name", "version", "code"),
    [
        ("nobody", "", Code.NOT_FOUND),
        ("", "", Code.NOT_FOUND),
        ("double", "9", Code.NOT_FOUND),
        ("double", "v1", Code.INVALID_ARGUMENT),
        ("double", "01", Code.INVALID_ARGUMENT),
    ],
)
def test_an_unknown_model_is_an_error_and_not_unready(
    server: "Server", models: "Models", method: str, name: str, version: str, code: Code
) -> None:
    models.add("double", 1)
    kind = pb.ModelReadyRequest if method == "ModelReady" else pb.ModelMetadataRequest
    assert server.ask(INFERENCE + method, kind(name=name, version=version)).code == code


def test_metadata_are_the_signatures_with_what_the_model_carries(server: "Server", models: "Models") -> None:
    signature = Signature(
        (TensorSpec("image", dtypes.UINT8, ("batch", 28, 28)), TensorSpec("note", dtypes.BYTES, (None,))),
        (TensorSpec("probabilities", dtypes.FP32, ("batch", 10)),),
        max_batch_size=0,
    )
    models.add("mnist_cnn", 2, signature)
    models.add("mnist_cnn", 10, signature)
    request = pb.ModelMetadataRequest(name="mnist_cnn")
    reply = server.get(pb.ModelMetadataResponse, INFERENCE + "ModelMetadata", request)
    assert (reply.name, list(reply.versions), reply.platform) == ("mnist_cnn", ["2", "10"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in reply.inputs] == [
        ("image", "UINT8", [-1, 28, 28]),
        ("note", "BYTES", [-1]),
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in reply.outputs] == [("probabilities", "FP32", [-1, 10])]
    assert dict(reply.properties) == {"forwardpass.labels": '["no", "yes"]'}


def test_metadata_of_a_model_that_is_not_ready_is_unavailable(server: "Server", models: "Models") -> None:
    models.know("loading", 1, State.FAILED, "no graph was found")
    result = server.ask(INFERENCE + "ModelMetadata", pb.ModelMetadataRequest(name="loading"))
    assert result.code == Code.UNAVAILABLE
    assert "no graph was found" in result.message
