"""From the private pool to the names that protoc would have put into a `_pb2` module."""

from typing import Any

from google.protobuf import message_factory
from google.protobuf.internal import enum_type_wrapper

from forwardpass_proto import POOL


def of_file(name: str) -> dict[str, Any]:
    """The top-level names of one .proto file.

    Args:
        name: for instance "grpc_service.proto".

    Returns:
        Message classes, enum wrappers and enum values by name, and `DESCRIPTOR`.
    """
    file = POOL.FindFileByName(name)
    names: dict[str, Any] = {"DESCRIPTOR": file}
    for message in file.message_types_by_name.values():
        names[message.name] = message_factory.GetMessageClass(message)
    for enum in file.enum_types_by_name.values():
        names[enum.name] = enum_type_wrapper.EnumTypeWrapper(enum)
        names.update({value.name: value.number for value in enum.values})
    return names
