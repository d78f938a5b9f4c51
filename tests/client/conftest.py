"""A programmable v2 server on grpcio's own thread-pool server, which nobody here wrote; handlers see bytes."""

import datetime
import ipaddress
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from forwardpass import Client
from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import health_pb2

SERVICE = "/inference.GRPCInferenceService/"
RPCS = ["ModelInfer", "ModelMetadata", "ModelReady", "RepositoryIndex", "ServerMetadata", "ServerLive", "ServerReady"]
STREAM = "ModelStreamInfer"
MIB = 1024 * 1024
Handler = Callable[[Any, Any], Any]


@dataclass
class Model:
    """Tensors as (name, datatype, shape); `run` takes the request and fills the reply."""

    inputs: list[tuple[str, str, list[int]]]
    outputs: list[tuple[str, str, list[int]]]
    run: Callable[[pb.ModelInferRequest, pb.ModelInferResponse], None]
    version: str = "1"
    properties: dict[str, str] = field(default_factory=dict)


def echo(request: pb.ModelInferRequest, reply: pb.ModelInferResponse) -> None:
    """Every input comes back as an output of the same name."""
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        reply.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))
        reply.raw_output_contents.append(raw)


def echo_model(datatype: str, shape: list[int] | None = None) -> Model:
    tensor = ("x", datatype, shape or [-1])
    return Model([tensor], [tensor], echo)


class FakeServer:
    """Answers every rpc that the client has. Change `models`, `index`, `overrides` and `health` at will.

    `overrides[rpc](request, context)` replaces the answer of one rpc. `calls` lists (rpc, metadata) in order.
    `stream(requests, context)` answers ModelStreamInfer: it takes an iterator of requests and gives one of replies.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.index: list[tuple[str, str, str, str]] | None = None
        self.overrides: dict[str, Handler] = {}
        self.stream: Callable[[Iterator[pb.ModelInferRequest], Any], Iterator[pb.ModelStreamInferResponse]] | None = (
            None
        )
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.peers: set[str] = set()
        self.port = 0
        self._health = "SERVING"
        self._health_changed = threading.Condition()
        self._server: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def health(self) -> str:
        return self._health

    @health.setter
    def health(self, status: str) -> None:
        with self._health_changed:
            self._health = status
            self._health_changed.notify_all()

    def count(self, rpc: str) -> int:
        return sum(1 for name, _ in self.calls if name == rpc)

    def start(self, credentials: Any = None) -> "FakeServer":
        """Listen; after `stop`, on the same port again."""
        pool = futures.ThreadPoolExecutor(max_workers=40)
        options = [
            ("grpc.max_receive_message_length", 64 * MIB),
            ("grpc.max_send_message_length", 64 * MIB),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.server(pool, options=options)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        where = f"127.0.0.1:{self.port}"
        self.port = (
            self._server.add_insecure_port(where)
            if credentials is None
            else self._server.add_secure_port(where, credentials)
        )
        self._server.start()
        return self

    def stop(self) -> None:
        with self._health_changed:
            self._health_changed.notify_all()
        self._server.stop(0).wait()

    def _handlers(self) -> Any:
        fake = self
        types = {rpc: (getattr(pb, f"{rpc}Request"), getattr(fake, f"_{rpc}")) for rpc in RPCS}

        class Generic(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
            def service(self, details: Any) -> Any:
                rpc = details.method.rpartition("/")[2]
                if details.method == "/grpc.health.v1.Health/Watch":
                    return grpc.unary_stream_rpc_method_handler(fake._watch)
                if details.method == "/grpc.health.v1.Health/Check":
                    request_type, answer = health_pb2.HealthCheckRequest, fake._check
                elif details.method == SERVICE + STREAM and fake.stream is not None:
                    return grpc.stream_stream_rpc_method_handler(fake._stream)
                elif details.method == SERVICE + rpc and rpc in types:
                    request_type, answer = types[rpc]
                else:
                    return None

                def handle(body: bytes, context: Any) -> bytes:
                    fake.calls.append((rpc, dict(context.invocation_metadata())))
                    fake.peers.add(context.peer())
                    reply = fake.overrides.get(rpc, answer)(request_type.FromString(body), context)
                    return reply if isinstance(reply, bytes) else reply.SerializeToString()

                return grpc.unary_unary_rpc_method_handler(handle)

        return Generic()

    def _stream(self, bodies: Iterator[bytes], context: Any) -> Iterator[bytes]:
        self.calls.append((STREAM, dict(context.invocation_metadata())))
        assert self.stream is not None
        for reply in self.stream(map(pb.ModelInferRequest.FromString, bodies), context):
            yield reply.SerializeToString()

    def _check(self, request: Any, context: Any) -> Any:
        if request.service not in ("", *self.models):
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        return health_pb2.HealthCheckResponse(status=self._health)

    def _watch(self, body: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self._wake)
        said = ""
        while context.is_active():
            with self._health_changed:
                self._health_changed.wait_for(lambda: self._health != said or not context.is_active())  # noqa: B023
                said = self._health
            yield health_pb2.HealthCheckResponse(status=said).SerializeToString()

    def _wake(self) -> None:
        with self._health_changed:
            self._health_changed.notify_all()

    def _model(self, name: str, context: Any) -> Model:
        if name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return self.models[name]

    def _ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - named like the rpc
        model = self._model(request.model_name, context)
        reply = pb.ModelInferResponse(model_name=request.model_name, model_version=model.version, id=request.id)
        takes = {name: datatype for name, datatype, _ in model.inputs}
        for tensor in request.inputs:
            if tensor.datatype != takes.get(tensor.name):
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"input '{tensor.name}' is {tensor.datatype}, but the model takes {takes.get(tensor.name)}",
                )
        model.run(request, reply)
        return reply

    def _ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        model = self._model(request.name, context)
        reply = pb.ModelMetadataResponse(
            name=request.name, versions=[model.version], platform="onnxruntime_onnx", properties=model.properties
        )
        for sink, tensors in ((reply.inputs, model.inputs), (reply.outputs, model.outputs)):
            for name, datatype, shape in tensors:
                sink.add(name=name, datatype=datatype, shape=shape)
        return reply

    def _ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._model(request.name, context)
        return pb.ModelReadyResponse(ready=True)

    def _RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.index is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "RepositoryIndex is not served here")
        reply = pb.RepositoryIndexResponse()
        for name, version, state, reason in self.index or ():
            if state == "READY" or not request.ready:
                reply.models.add(name=name, version=version, state=state, reason=reason)
        return reply

    def _ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerMetadataResponse(name="fake", version="9", extensions=["model_repository"])

    def _ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def _ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._health == "SERVING")


@pytest.fixture
def make_server() -> Iterator[Callable[..., FakeServer]]:
    """Starts servers, and stops them all at the end."""
    servers: list[FakeServer] = []

    def make(credentials: Any = None) -> FakeServer:
        servers.append(FakeServer())
        return servers[-1].start(credentials)

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def server(make_server: Callable[..., FakeServer]) -> FakeServer:
    """One server, with the model `echo` (FP32)."""
    fake = make_server()
    fake.models["echo"] = echo_model("FP32", [-1, -1])
    return fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, deadline_s=20) as one:
        yield one


@pytest.fixture
def make_model() -> Callable[..., Model]:
    return Model


@pytest.fixture
def make_echo() -> Callable[..., Model]:
    return echo_model


@dataclass
class Certificates:
    """PEM files of a throw-away authority, a server (127.0.0.1 and model.test) and a client."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    def server_credentials(self, *, ask_client: bool) -> Any:
        pair = (self.server_key.read_bytes(), self.server_cert.read_bytes())
        return grpc.ssl_server_credentials([pair], self.ca.read_bytes() if ask_client else None, ask_client)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)

    def issue(name: str, issuer: tuple[Any, Any] | None) -> tuple[Any, Any, Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer[0].subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("model.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            )
        )
        certificate = builder.sign(key if issuer is None else issuer[1], hashes.SHA256())
        cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, key, cert_file, key_file

    authority = issue("authority", None)
    served = issue("server", authority[:2])
    caller = issue("caller", authority[:2])
    return Certificates(authority[2], served[2], served[3], caller[2], caller[3])
