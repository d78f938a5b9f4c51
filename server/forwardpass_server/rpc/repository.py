"""RepositoryIndex: every version that the server knows of, its state in the protocol's five words, and the reason."""

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import NotImplementedHere
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.lifecycle.states import State

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
        if request.repository_name:
            raise NotImplementedHere("there is one repository, without a name: leave repository_name empty")
        rows = [row for row in self._models.statuses() if row.state is State.READY or not request.ready]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=row.model, version=str(row.version), state=WORDS[row.state], reason=row.reason
                )
                for row in rows
            ]
        )
