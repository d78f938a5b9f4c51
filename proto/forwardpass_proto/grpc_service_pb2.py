"""The Open Inference Protocol with Triton's extensions: the classes of `grpc_service.proto`, from the private pool. Types stand in the stub beside this file."""

from forwardpass_proto._classes import of_file

globals().update(of_file("grpc_service.proto"))
