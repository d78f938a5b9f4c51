"""The classes of `health.proto`, from the private pool; the stub beside this file gives their types."""

from forwardpass_proto._classes import of_file

globals().update(of_file("health.proto"))
