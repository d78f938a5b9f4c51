"""TLS and mTLS by the server's own flags."""

import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from forwardpass_proto import grpc_service_pb2 as pb


class Authority:
    """Signs certificates that are good for a day."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._write("ca.pem", self._signed(self._name, self._key.public_key(), authority=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key files of `name`, good for localhost too."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._write(f"{name}.pem", self._signed(subject, key.public_key(), authority=False))
        key_file = self._folder / f"{name}.key"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, key_file

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self._folder / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def live(port: int, credentials: grpc.ChannelCredentials) -> bool:
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        return pb.ServerLiveResponse.FromString(call(b"", timeout=20)).live


def test_tls_and_mtls_by_flags(serve: Any, authority: Authority, publish: Any) -> None:
    publish("scale", 2.0)
    certificate, key = authority.issue("server")
    client_certificate, client_key = authority.issue("client")
    flags = (f"--tls-cert={certificate}", f"--tls-key={key}")
    trusting = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    known = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), client_key.read_bytes(), client_certificate.read_bytes()
    )
    with serve(*flags) as server:
        port = int(server.wait_for("serving")["address"].rpartition(":")[2])
        assert live(port, trusting)
        server.terminate()
        assert server.wait() == 0
    with serve(*flags, f"--tls-client-ca={authority.certificate}") as server:
        port = int(server.wait_for("serving")["address"].rpartition(":")[2])
        assert live(port, known)
        with pytest.raises(grpc.RpcError) as caught:
            live(port, trusting)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def serial_shown(port: int) -> int:
    """The serial number of the certificate that a newcomer is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("localhost", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_certificates_rotated_under_load_cost_no_call_and_no_connection(
    serve: Any, authority: Authority, publish: Any, tmp_path: Path
) -> None:
    publish("scale", 2.0)
    certificate, key = authority.issue("server")
    request = pb.ModelInferRequest(model_name="scale", raw_input_contents=[bytes(12)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    body = request.SerializeToString()
    trusting = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    serials, answered = [], 0
    with serve(f"--tls-cert={certificate}", f"--tls-key={key}") as server:
        port = int(server.wait_for("serving")["address"].rpartition(":")[2])
        with grpc.secure_channel(f"localhost:{port}", trusting) as channel:
            states: list[grpc.ChannelConnectivity] = []
            channel.subscribe(states.append)
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            infer(body, timeout=30)
            for number in range(5):
                futures = [infer.future(body, timeout=30) for _ in range(40)]
                for fresh, place in zip(authority.issue(f"server-{number}"), (certificate, key), strict=True):
                    fresh.rename(place)
                futures += [infer.future(body, timeout=30) for _ in range(40)]
                serials.append(serial_shown(port))
                answered += sum(future.code() is grpc.StatusCode.OK for future in futures)
            assert states.count(grpc.ChannelConnectivity.READY) == 1, "the client never had to connect again"
            assert grpc.ChannelConnectivity.TRANSIENT_FAILURE not in states
        server.terminate()
        assert server.wait() == 0
    assert answered == 400
    assert len(set(serials)) == 5
    said = [line for line in server.raw if "TLS files were replaced" in line]
    assert said


def test_a_key_of_another_certificate_ends_the_start_and_is_named(serve: Any, authority: Authority) -> None:
    certificate, _ = authority.issue("server")
    _, other_key = authority.issue("other")
    with serve(f"--tls-cert={certificate}", f"--tls-key={other_key}") as server:
        assert "other.key" in server.wait_for("cannot start")["reason"]
        assert server.wait() == 1


def test_names_in_client_certificates_are_good_for_what_they_are_said_to_be(
    serve: Any, authority: Authority, publish: Any
) -> None:
    publish("scale", 2.0)
    certificate, key = authority.issue("server")
    flags = (
        f"--tls-cert={certificate}",
        f"--tls-key={key}",
        f"--tls-client-ca={authority.certificate}",
        "--data-subject=alice",
        "--admin-subject=operator",
        "--enable-admin",
        "--model-control-mode=explicit",
    )
    load = pb.RepositoryModelLoadRequest(model_name="scale").SerializeToString()
    codes = {}
    with serve(*flags) as server:
        port = int(server.wait_for("serving")["address"].rpartition(":")[2])
        for name in ("mallory", "alice", "operator"):
            client_certificate, client_key = authority.issue(name)
            credentials = grpc.ssl_channel_credentials(
                authority.certificate.read_bytes(), client_key.read_bytes(), client_certificate.read_bytes()
            )
            assert live(port, credentials), "open to everybody"
            with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
                for method, body in (("ServerMetadata", b""), ("RepositoryModelLoad", load)):
                    call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}").future(body, timeout=30)
                    codes[name, method] = call.code()
        server.terminate()
        assert server.wait() == 0
    assert codes == {
        ("mallory", "ServerMetadata"): grpc.StatusCode.UNAUTHENTICATED,
        ("mallory", "RepositoryModelLoad"): grpc.StatusCode.UNAUTHENTICATED,
        ("alice", "ServerMetadata"): grpc.StatusCode.OK,
        ("alice", "RepositoryModelLoad"): grpc.StatusCode.PERMISSION_DENIED,
        ("operator", "ServerMetadata"): grpc.StatusCode.OK,
        ("operator", "RepositoryModelLoad"): grpc.StatusCode.OK,
    }
