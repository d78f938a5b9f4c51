"""Triton's model configuration: the classes of `model_config.proto`, from the private pool. Types stand in the stub beside this file."""

from forwardpass_proto._classes import of_file

globals().update(of_file("model_config.proto"))
