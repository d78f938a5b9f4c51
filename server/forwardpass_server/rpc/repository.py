"""RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload.

The index has every version that the server knows of, its state in the protocol's five words, and the reason. Loads and
unloads are orders to the repository thread, which answers them when they are carried out.
"""

from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import Message

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest, NotImplementedHere
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.lifecycle.states import State
from forwardpass_server.rpc import status
from forwardpass_server.rpc.messages import parse
from forwardpass_server.transport.call import Call

V = TypeVar("V", str, bool)

WORDS = {
    State.FOUND: "UNAVAILABLE",  # the reason says whether it is waited for or not wanted
    State.VERIFYING: "LOADING",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.PROVING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
}


class Repository:
    """What the repository holds. Loop thread."""

    def __init__(self, models: ModelManager) -> None:
        self._models = models

    def index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """By model and number; with `ready`, only what serves. Raises NotImplementedHere for a named repository."""
        _check_repository(request.repository_name)
        rows = [row for row in self._models.statuses() if row.state is State.READY or not request.ready]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=row.model, version=str(row.version), state=WORDS[row.state], reason=row.reason
                )
                for row in rows
            ]
        )

    def load(self, call: Call, body: bytes) -> None:
        """Answered when every version that is to be served serves. Raises as `ModelManager.order_load`."""
        request = parse(pb.RepositoryModelLoadRequest, body)
        _check_repository(request.repository_name)
        config: str | None = None
        for key in sorted(request.parameters):
            if key == "config":
                config = _value(request.parameters, key, "string_param", str)
            elif key.startswith("file:"):
                raise InvalidRequest(
                    f"parameter {key!r:.160}: files are not taken from requests; publish the model into the repository"
                )
            else:
                raise InvalidRequest(f"unknown parameter {key!r:.160}; a load takes 'config'")
        self._models.order_load(request.model_name, config, _Answering(call, pb.RepositoryModelLoadResponse()))

    def unload(self, call: Call, body: bytes) -> None:
        """Answered when nothing is left of the model. Raises as `ModelManager.order_unload`."""
        request = parse(pb.RepositoryModelUnloadRequest, body)
        _check_repository(request.repository_name)
        with_steps = False
        for key in sorted(request.parameters):
            if key != "unload_dependents":
                raise InvalidRequest(f"unknown parameter {key!r:.160}; an unload takes 'unload_dependents'")
            with_steps = _value(request.parameters, key, "bool_param", bool)
        answer = _Answering(call, pb.RepositoryModelUnloadResponse())
        self._models.order_unload(request.model_name, answer, with_steps=with_steps)


class _Answering:
    """Answers a call with a message, or with an error's status."""

    def __init__(self, call: Call, message: Message) -> None:
        self._call = call
        self._message = message

    def __call__(self, error: Exception | None) -> None:
        if error is None:
            self._call.reply(self._message.SerializeToString())
        else:
            self._call.fail(*status.of(error))


def _check_repository(name: str) -> None:
    if name:
        raise NotImplementedHere("there is one repository, without a name: leave repository_name empty")


def _value(parameters: Mapping[str, pb.ModelRepositoryParameter], key: str, field: str, kind: type[V]) -> V:
    given = parameters[key].WhichOneof("parameter_choice")
    if given != field:
        raise InvalidRequest(f"parameter {key!r} is a {field}, got {given or 'nothing'}")
    return kind(getattr(parameters[key], field))
