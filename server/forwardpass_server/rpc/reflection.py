"""grpc.reflection, v1 and v1alpha: lets grpcurl and its kind explore the server without .proto files.

The two versions have the same messages under two package names, so one handler serves both.
"""

from collections.abc import Iterable, Sequence

from google.protobuf import descriptor_pb2, descriptor_pool

import forwardpass_proto
from forwardpass_proto import reflection_pb2 as pb
from forwardpass_server.errors import NotFound
from forwardpass_server.rpc.messages import parse
from forwardpass_server.rpc.status import Code
from forwardpass_server.transport.call import StreamCall

V1, V1ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"


class Reflection:
    """What can be known of the services from their definitions. Loop thread.

    Args:
        services: full names of those that are served.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = sorted(services)
        self._files = dict(forwardpass_proto.FILES)
        v1alpha = _v1alpha(self._files["reflection.proto"])
        self._files[v1alpha.name] = v1alpha.SerializeToString()
        self._pool = descriptor_pool.DescriptorPool()
        for file in self._files.values():
            self._pool.AddSerializedFile(file)

    def stream(self, call: StreamCall) -> "ReflectionStream":
        """The handler of one stream of questions."""
        return ReflectionStream(self, call)

    def answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """The answer to one question; what is not known is an error inside the answer, and the stream goes on."""
        response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        question = request.WhichOneof("message_request")
        try:
            if question == "list_services":
                response.list_services_response.service.extend(pb.ServiceResponse(name=name) for name in self._services)
            elif question == "file_by_filename":
                response.file_descriptor_response.file_descriptor_proto.extend(self._file(request.file_by_filename))
            elif question == "file_containing_symbol":
                file = self._file_of_symbol(request.file_containing_symbol)
                response.file_descriptor_response.file_descriptor_proto.extend(self._file(file))
            elif question == "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                self._file_of_symbol(name)
                response.all_extension_numbers_response.base_type_name = name  # proto3: nothing is ever extended
            elif question == "file_containing_extension":
                raise NotFound(f"no extensions of '{request.file_containing_extension.containing_type}'")
            else:
                response.error_response.error_code = Code.INVALID_ARGUMENT
                response.error_response.error_message = "a reflection request without a question"
        except NotFound as error:
            response.error_response.error_code = Code.NOT_FOUND
            response.error_response.error_message = str(error)
        return response

    def _file(self, name: str) -> Sequence[bytes]:
        """A file and all that it imports, itself first."""
        if name not in self._files:
            raise NotFound(f"no file '{name}'")
        found = {name: self._files[name]}
        for imported in descriptor_pb2.FileDescriptorProto.FromString(self._files[name]).dependency:
            for file in self._file(imported):
                found.setdefault(descriptor_pb2.FileDescriptorProto.FromString(file).name, file)
        return tuple(found.values())

    def _file_of_symbol(self, symbol: str) -> str:
        # the pool knows every symbol but methods, which stand as package.Service.Method
        for name in (symbol, symbol.rpartition(".")[0]):
            try:
                file = self._pool.FindFileContainingSymbol(name)
                if name == symbol or symbol.rpartition(".")[2] in self._pool.FindServiceByName(name).methods_by_name:
                    return str(file.name)
            except KeyError:
                continue
        raise NotFound(f"no symbol '{symbol}'")


class ReflectionStream:
    """Answers each question of one stream, in order. A `transport.call.StreamHandler`."""

    def __init__(self, reflection: Reflection, call: StreamCall) -> None:
        self._reflection = reflection
        self._call = call

    def on_message(self, body: bytes) -> None:
        self._call.send(self._reflection.answer(parse(pb.ServerReflectionRequest, body)).SerializeToString())

    def on_half_close(self) -> None:
        self._call.finish()

    def on_cancel(self) -> None:
        """Nothing is held between questions."""


def _v1alpha(v1: bytes) -> descriptor_pb2.FileDescriptorProto:
    """The definition of the older version: the newer one's, in another package."""
    file = descriptor_pb2.FileDescriptorProto.FromString(v1)
    file.name, file.package = "reflection_v1alpha.proto", V1ALPHA
    references = [field for message in file.message_type for field in message.field if field.type_name]
    for field in references:
        field.type_name = field.type_name.replace(f".{V1}.", f".{V1ALPHA}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{V1}.", f".{V1ALPHA}.")
        method.output_type = method.output_type.replace(f".{V1}.", f".{V1ALPHA}.")
    return file
