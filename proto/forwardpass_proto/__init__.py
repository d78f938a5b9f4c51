"""Message classes of the wire, built from `descriptors.bin` in a pool of our own.

NOTE: protobuf's default pool refuses a second definition of `inference.*`, and `tritonclient`, `kserve` and others each
bring one (kserve#3099, MLServer#1034). A private pool lets all of them live in one process. The price: a message of
ours and one of theirs are different classes, so pass bytes between them, not messages.

The classes live in the modules `grpc_service_pb2`, `model_config_pb2`, `health_pb2` and `reflection_pb2`, with stubs
written by protoc. `proto/generate.py` makes `descriptors.bin` and the stubs.
"""

from importlib import resources

from google.protobuf import descriptor_pb2, descriptor_pool

__all__ = ["FILES", "POOL"]

_SET = descriptor_pb2.FileDescriptorSet.FromString(resources.files(__name__).joinpath("descriptors.bin").read_bytes())

FILES: dict[str, bytes] = {file.name: file.SerializeToString() for file in _SET.file}
"""Serialized FileDescriptorProto by file name, in the order of their imports; what reflection sends."""

POOL = descriptor_pool.DescriptorPool()
"""The private pool that holds every type of `FILES`."""

for _file in FILES.values():
    POOL.AddSerializedFile(_file)
