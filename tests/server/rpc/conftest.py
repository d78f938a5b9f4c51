"""A server's rpcs over the transport's fake: real table of versions, real schedulers, sessions without ONNX Runtime."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from google.protobuf.message import Message

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import NotReady
from forwardpass_server.lifecycle.leases import Lease, Leases
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.lifecycle.registry import ModelDescription, Table, VersionStatus
from forwardpass_server.lifecycle.states import State
from forwardpass_server.rpc import services, status
from forwardpass_server.runtime.fake import FakeSession
from forwardpass_server.scheduling.ensemble import EnsembleScheduler
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec
from forwardpass_server.transport.fake import FakeResult, FakeServer, FakeUnaryCall

INFERENCE = "/inference.GRPCInferenceService/"

DOUBLE = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 4)),), (TensorSpec("y", dtypes.FP32, ("batch", 4)),), max_batch_size=8
)

M = TypeVar("M", bound=Message)


class Models:
    """Stands for the manager: a table that the test writes, read as the manager reads its own."""

    def __init__(self) -> None:
        self.table = Table(complete=True)
        self.is_ready = True
        self._closing: list[Scheduler | EnsembleScheduler] = []

    def add(
        self,
        model: str,
        number: int,
        signature: Signature = DOUBLE,
        limits: Limits | None = None,
        labels: dict[str, tuple[str, ...]] | None = None,
        cached: bool = False,
        settings: ModelSettings | None = None,
        **session: Any,
    ) -> FakeSession:
        """A version that serves; the highest of its model is its latest."""
        fake = FakeSession(**session)
        scheduler = Scheduler(f"{model}/{number}", [fake.run], signature, limits=limits or Limits())
        self.serve(
            LoadedVersion(
                model=model,
                number=number,
                signature=signature,
                scheduler=scheduler,
                settings=settings or ModelSettings(),
                provider=fake.provider,
                proved=True,
                sha256="0" * 64,
                properties={"forwardpass.labels": '["no", "yes"]'},
                release_session=fake.close,
                labels=labels or {},
                cached=cached,
            )
        )
        return fake

    def serve(self, version: LoadedVersion) -> None:
        """Let a version serve."""
        model, number = version.model, version.number
        self._closing.append(version.scheduler)
        leases = Leases(version)
        serving = {**self.table.serving, (model, str(number)): leases}
        latest = max(int(version) for name, version in serving if name == model and version)
        serving[model, ""] = serving[model, str(latest)]
        self.table = replace(self.table, serving=serving)
        self.know(model, number, State.READY)

    def know(self, model: str, number: int, state: State, reason: str = "") -> None:
        known = {**self.table.models.get(model, {})}
        known[number] = VersionStatus(model=model, version=number, state=state, reason=reason)
        self.table = replace(self.table, models={**self.table.models, model: known})

    def held(self, model: str) -> int:
        return self.table.serving[model, ""].held

    def scheduler(self, model: str) -> Scheduler | EnsembleScheduler:
        return self.table.version(model, "").scheduler

    def close(self) -> None:
        for scheduler in self._closing:
            assert scheduler.close()

    # What the rpcs ask of the manager.

    def lease(
        self, name: str, version: str, sequence_id: object = None, *, starts: bool = False
    ) -> Lease[LoadedVersion]:
        lease = self.table.lease(name, version)
        assert lease is not None
        return lease

    def describe(self, name: str, version: str) -> ModelDescription:
        return self.table.describe(name, version)

    def ready(self, name: str, version: str) -> bool:
        return self.table.ready(name, version)

    def version(self, name: str, version: str) -> LoadedVersion:
        return self.table.version(name, version)

    def serving(self) -> list[LoadedVersion]:
        return self.table.loaded()

    def server_ready(self) -> bool:
        return self.is_ready

    def order_load(self, model: str, _config: str | None, _answer: object) -> None:
        raise NotReady("models are not loaded by request here")

    def order_unload(self, model: str, _answer: object, *, with_steps: bool) -> None:
        raise NotReady("models are not unloaded by request here")

    def statuses(self) -> list[VersionStatus]:
        return self.table.statuses()


class Server:
    """The handlers behind the transport's fake."""

    def __init__(self, models: Models, **settings: Any) -> None:
        self.models = models
        built = services.build(models, server_version="1.2.3", **settings)  # type: ignore[arg-type]
        self.built = built
        self.health = built.health
        self.fake = FakeServer(built.unary, built.streams, on_error=lambda error: status.of(error)[:2])

    def ask(self, method: str, message: Message, **call: Any) -> FakeResult:
        return self.fake.unary(method, message.SerializeToString(), **call)

    def get(self, kind: type[M], method: str, message: Message) -> M:
        """The reply to a call that must succeed."""
        result = self.ask(method, message)
        assert (result.code, result.message) == (0, "")
        assert result.body is not None
        return kind.FromString(result.body)

    def infer(self, message: pb.ModelInferRequest, **call: Any) -> FakeResult:
        return self.ask(INFERENCE + "ModelInfer", message, **call)

    def begin(self, message: pb.ModelInferRequest, **call: Any) -> FakeUnaryCall:
        return self.fake.begin(INFERENCE + "ModelInfer", message.SerializeToString(), **call)

    def until(self, done: Callable[[], bool]) -> None:
        self.fake.run_until(done, 10.0)


@pytest.fixture
def models() -> Iterator[Models]:
    models = Models()
    yield models
    models.close()


@pytest.fixture
def server(models: Models) -> Server:
    return Server(models)


@pytest.fixture
def server_with(models: Models) -> Callable[..., Server]:
    """Makes a server with other settings."""
    return lambda **settings: Server(models, **settings)


@pytest.fixture
def request_for() -> Callable[..., pb.ModelInferRequest]:
    """Makes requests for models of `DOUBLE`."""

    def make(model: str = "double", rows: int = 1, value: float = 1.0, **fields: Any) -> pb.ModelInferRequest:
        message = pb.ModelInferRequest(model_name=model, **fields)
        message.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
        message.raw_input_contents.append(np.full((rows, 4), value, "<f4").tobytes())
        return message

    return make
