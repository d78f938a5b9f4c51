"""grpc.health.v1: Check, List and Watch.

Three kinds of service: "" and the inference service's own name are the server's readiness for inference, "liveness" is
the process itself, and any other name is a model's (it has a ready version). When the server is leaving, all but
"liveness" say NOT_SERVING.
"""

from typing import TypeAlias

from forwardpass_proto import health_pb2 as pb
from forwardpass_server.errors import NotFound
from forwardpass_server.lifecycle.manager import ModelManager
from forwardpass_server.rpc.messages import parse
from forwardpass_server.rpc.status import Code
from forwardpass_server.transport.call import StreamCall

LIVENESS = "liveness"
READINESS = ("", "inference.GRPCInferenceService")
"""What asks for the server's readiness: no name, or, as gRPC's convention has it, that of the service to be called."""
WATCHES_MAX = 10_000

ServingStatus: TypeAlias = pb.HealthCheckResponse.ServingStatus
SERVING = pb.HealthCheckResponse.SERVING
NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The health of the server and its models. Every method: loop thread."""

    def __init__(self, models: ModelManager) -> None:
        self._models = models
        self._leaving = False
        self._watches: set[Watch] = set()

    def ready(self) -> bool:
        """Whether the server takes inference requests."""
        return not self._leaving and self._models.server_ready()

    def status(self, service: str) -> ServingStatus:
        """SERVING, NOT_SERVING or SERVICE_UNKNOWN."""
        if service == LIVENESS:
            return SERVING
        if service in READINESS:
            return SERVING if self.ready() else NOT_SERVING
        try:
            ready = self._models.ready(service, "")
        except NotFound:
            return SERVICE_UNKNOWN
        return SERVING if ready and not self._leaving else NOT_SERVING

    def changed(self) -> None:
        """Something may be ready that was not, or the reverse: tell those who watch."""
        for watch in tuple(self._watches):
            watch.update()

    def leave(self) -> None:
        """The server is going away: be not ready from now on, and say so."""
        self._leaving = True
        self.changed()

    def close(self) -> None:
        """End every watch, so that the transport finds nothing in flight that would never end by itself."""
        for watch in tuple(self._watches):
            watch.close()

    def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        status = self.status(request.service)
        if status == SERVICE_UNKNOWN:
            raise NotFound(f"unknown service '{request.service}': it is none of {[*READINESS, LIVENESS]}, and no model")
        return pb.HealthCheckResponse(status=status)

    def list(self, _request: pb.HealthListRequest) -> pb.HealthListResponse:
        services = [*READINESS, LIVENESS, *sorted({version.model for version in self._models.statuses()})]
        return pb.HealthListResponse(statuses={s: pb.HealthCheckResponse(status=self.status(s)) for s in services})

    def watch(self, call: StreamCall) -> "Watch":
        """The handler of one Watch stream."""
        return Watch(self, call)

    def add(self, watch: "Watch") -> bool:
        """Keep a watch informed; False when there are too many."""
        if len(self._watches) >= WATCHES_MAX:
            return False
        self._watches.add(watch)
        return True

    def remove(self, watch: "Watch") -> None:
        self._watches.discard(watch)


class Watch:
    """One Watch stream: the status now, then each change. A `transport.call.StreamHandler`.

    A watcher that does not read is failed by the transport when its backlog is full.
    """

    def __init__(self, health: Health, call: StreamCall) -> None:
        self._health = health
        self._call = call
        self._service: str | None = None
        self._sent: ServingStatus | None = None

    def on_message(self, body: bytes) -> None:
        if self._service is not None:
            self._end(Code.INVALID_ARGUMENT, "Watch takes one request a stream")
            return
        self._service = parse(pb.HealthCheckRequest, body).service
        if self._health.add(self):
            self.update()
        else:
            self._end(Code.RESOURCE_EXHAUSTED, f"{WATCHES_MAX} streams watch already")

    def on_half_close(self) -> None:
        if self._service is None:
            self._end(Code.INVALID_ARGUMENT, "Watch without a request")

    def on_cancel(self) -> None:
        self._health.remove(self)

    def update(self) -> None:
        """Send the status if it is not the one sent last."""
        assert self._service is not None, "a watch is added when it knows its service"
        status = self._health.status(self._service)
        if status != self._sent:
            self._sent = status
            if not self._call.send(pb.HealthCheckResponse(status=status).SerializeToString()):
                self._health.remove(self)

    def close(self) -> None:
        """End the stream, since the server is stopping."""
        self._end(Code.UNAVAILABLE, "the server is stopping")

    def _end(self, code: Code, message: str) -> None:
        self._health.remove(self)
        self._call.fail(code, message)
