"""gRPC's server reflection: the classes of `reflection.proto`, from the private pool. Types stand in the stub beside this file."""

from forwardpass_proto._classes import of_file

globals().update(of_file("reflection.proto"))
