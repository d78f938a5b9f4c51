"""Reflection: from its answers alone, a client can rebuild every service in both versions of the protocol."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from forwardpass_proto import reflection_pb2 as pb
from forwardpass_server.rpc.status import Code

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Server

VERSIONS = ["grpc.reflection.v1", "grpc.reflection.v1alpha"]


@pytest.fixture
def reflecting(server_with: Callable[..., "Server"]) -> "Server":
    return server_with(enable_reflection=True)


def ask(server: "Server", *questions: dict[str, Any], version: str = VERSIONS[0]) -> list[pb.ServerReflectionResponse]:
    stream = server.fake.stream(f"/{version}.ServerReflection/ServerReflectionInfo")
    stream.say(*(pb.ServerReflectionRequest(**question).SerializeToString() for question in questions))
    stream.half_close()
    assert stream.result().code == 0
    return [pb.ServerReflectionResponse.FromString(body) for body in stream.heard]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_listed_service_can_be_rebuilt(reflecting: "Server", version: str) -> None:
    (listed,) = ask(reflecting, {"list_services": ""}, version=version)
    names = [service.name for service in listed.list_services_response.service]
    assert names == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    for name in names:
        (answer,) = ask(reflecting, {"file_containing_symbol": name}, version=version)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(file)
            for file in answer.file_descriptor_response.file_descriptor_proto
        ]
        pool = descriptor_pool.DescriptorPool()
        for file in reversed(files):  # imports come last
            pool.Add(file)
        served = {
            path.rpartition("/")[2] for path in (*reflecting.built.unary, *reflecting.built.streams) if name in path
        }
        assert set(pool.FindServiceByName(name).methods_by_name) == served


@pytest.mark.parametrize(
    "symbol",
    [
        "inference.ModelInferRequest",
        "inference.ModelInferRequest.InferInputTensor",
        "inference.GRPCInferenceService.ModelInfer",
        "inference.ModelConfig",
    ],
)
def test_symbols_of_every_kind_are_found(reflecting: "Server", symbol: str) -> None:
    (answer,) = ask(reflecting, {"file_containing_symbol": symbol})
    assert answer.file_descriptor_response.file_descriptor_proto


def test_files_come_with_what_they_import(reflecting: "Server") -> None:
    (answer,) = ask(reflecting, {"file_by_filename": "grpc_service.proto"})
    files = answer.file_descriptor_response.file_descriptor_proto
    assert [descriptor_pb2.FileDescriptorProto.FromString(file).name for file in files] == [
        "grpc_service.proto",
        "model_config.proto",
    ]


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_by_filename": "../etc/passwd"}, Code.NOT_FOUND),
        ({"file_containing_symbol": "inference.Nobody"}, Code.NOT_FOUND),
        ({"file_containing_symbol": "inference.GRPCInferenceService.Nothing"}, Code.NOT_FOUND),
        ({"file_containing_symbol": ""}, Code.NOT_FOUND),
        ({"file_containing_extension": pb.ExtensionRequest(containing_type="x")}, Code.NOT_FOUND),
        ({"all_extension_numbers_of_type": "inference.Nobody"}, Code.NOT_FOUND),
        ({}, Code.INVALID_ARGUMENT),
    ],
)
def test_what_is_not_known_is_an_error_and_the_stream_goes_on(
    reflecting: "Server", question: dict[str, Any], code: Code
) -> None:
    error, after = ask(reflecting, {"host": "h", **question}, {"list_services": ""})
    assert error.error_response.error_code == code
    assert (error.valid_host, error.original_request) == ("h", pb.ServerReflectionRequest(host="h", **question))
    assert len(after.list_services_response.service) == 4


def test_a_message_without_extensions_has_none(reflecting: "Server") -> None:
    (answer,) = ask(reflecting, {"all_extension_numbers_of_type": "inference.ModelConfig"})
    assert answer.all_extension_numbers_response.base_type_name == "inference.ModelConfig"
    assert not answer.all_extension_numbers_response.extension_number


def test_bytes_that_are_no_question_end_the_stream(reflecting: "Server") -> None:
    stream = reflecting.fake.stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    stream.say(b"\xff")
    assert stream.result().code == Code.INVALID_ARGUMENT


def test_reflection_is_off_unless_asked_for(server: "Server") -> None:
    assert not [path for path in (*server.built.unary, *server.built.streams) if "reflection" in path]
