"""gRPC's health service: the classes of `health.proto`, from the private pool. Types stand in the stub beside this file."""

from forwardpass_proto._classes import of_file

globals().update(of_file("health.proto"))
