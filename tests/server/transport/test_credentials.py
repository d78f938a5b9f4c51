"""TLS and mTLS with certificates made for the test and thrown away."""

import datetime
import ipaddress
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from served import Served, wait_until

from forwardpass_server.errors import StartFailed
from forwardpass_server.transport.call import Call
from forwardpass_server.transport.credentials import CredentialFiles, load

Serve = Callable[..., Served]
ECHO = "/test.Service/Echo"
DAY = datetime.timedelta(days=1)


@dataclass
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )  # fmt: skip


def issue(name: str, by: Identity | None = None) -> Identity:
    """A certificate for `name`, signed by `by`, or (None) by itself as an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    return Identity(builder.sign(by.key if by else key, hashes.SHA256()), key)


@pytest.fixture(scope="module")
def authority() -> Identity:
    return issue("authority")


@pytest.fixture
def files(tmp_path: Path, authority: Identity) -> CredentialFiles:
    server = issue("server", authority)
    found = CredentialFiles(
        certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=tmp_path / "client-ca.crt"
    )
    found.certificate.write_bytes(server.certificate_pem())
    found.key.write_bytes(server.key_pem())
    assert found.client_ca is not None
    found.client_ca.write_bytes(authority.certificate_pem())
    return found


def plain(files: CredentialFiles) -> CredentialFiles:
    return CredentialFiles(certificate=files.certificate, key=files.key)


class Seen:
    """An echo that keeps who called."""

    def __init__(self) -> None:
        self.identities: list[dict[str, tuple[bytes, ...]]] = []

    def __call__(self, call: Call, body: bytes) -> None:
        self.identities.append(dict(call.identity()))
        call.reply(body)


def ask(served: Served, root: Identity, client: Identity | None = None) -> bytes:
    credentials = grpc.ssl_channel_credentials(
        root.certificate_pem(), client and client.key_pem(), client and client.certificate_pem()
    )
    with grpc.secure_channel(served.target, credentials) as channel:
        return bytes(channel.unary_unary(ECHO)(b"1", timeout=5))


def test_a_caller_that_trusts_the_authority_is_served_over_tls(
    serve: Serve, files: CredentialFiles, authority: Identity
) -> None:
    seen = Seen()
    assert ask(serve({ECHO: seen}, credentials=load(plain(files))), authority) == b"1"
    assert seen.identities[0]["transport_security_type"] == (b"ssl",)
    assert "x509_common_name" not in seen.identities[0]


def test_a_caller_that_trusts_another_authority_is_not(serve: Serve, files: CredentialFiles) -> None:
    seen = Seen()
    served = serve({ECHO: seen}, credentials=load(plain(files)))
    with pytest.raises(grpc.RpcError) as caught:
        ask(served, issue("stranger"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not seen.identities


def test_a_plaintext_caller_of_a_tls_port_is_not_served(serve: Serve, files: CredentialFiles) -> None:
    seen = Seen()
    served = serve({ECHO: seen}, credentials=load(plain(files)))
    with pytest.raises(grpc.RpcError) as caught:
        served.unary(ECHO)(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not seen.identities


def test_mtls_says_who_the_client_is(serve: Serve, files: CredentialFiles, authority: Identity) -> None:
    seen = Seen()
    served = serve({ECHO: seen}, credentials=load(files))
    assert ask(served, authority, issue("backend-7", authority)) == b"1"
    assert seen.identities[0]["x509_common_name"] == (b"backend-7",)


@pytest.mark.parametrize("whose", ["nobody's", "a stranger's"])
def test_mtls_refuses_a_client_without_a_certificate_of_the_authority(
    serve: Serve, files: CredentialFiles, authority: Identity, whose: str
) -> None:
    seen = Seen()
    served = serve({ECHO: seen}, credentials=load(files))
    client = None if whose == "nobody's" else issue("backend", issue("stranger"))
    with pytest.raises(grpc.RpcError) as caught:
        ask(served, authority, client)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not seen.identities


def test_streams_and_stop_work_over_tls(serve: Serve, files: CredentialFiles, authority: Identity) -> None:
    held: list[Call] = []
    served = serve({ECHO: lambda call, _: held.append(call)}, credentials=load(files))
    client = issue("backend", authority)
    credentials = grpc.ssl_channel_credentials(
        authority.certificate_pem(), client.key_pem(), client.certificate_pem()
    )  # fmt: skip
    with grpc.secure_channel(served.target, credentials) as channel:
        futures = [channel.unary_unary(ECHO).future(b"", timeout=20) for _ in range(16)]
        assert wait_until(lambda: len(held) == 16)
        threading.Timer(0.05, lambda: [call.reply(b"2") for call in held]).start()
        served.stop()
        assert [future.result() for future in futures] == [b"2"] * 16


def replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    os.replace(beside, path)


def test_replaced_files_hold_for_new_connections(serve: Serve, files: CredentialFiles, authority: Identity) -> None:
    served = serve({ECHO: Seen()}, credentials=load(plain(files)))
    assert ask(served, authority) == b"1"
    other = issue("other authority")
    renewed = issue("server", other)
    replace(files.certificate, renewed.certificate_pem())
    replace(files.key, renewed.key_pem())
    assert ask(served, other) == b"1"
    with pytest.raises(grpc.RpcError):
        ask(served, authority)


def test_a_replacement_drops_no_connection_and_no_call(
    serve: Serve, files: CredentialFiles, authority: Identity
) -> None:
    held: list[Call] = []
    peers: list[str] = []

    def handle(call: Call, body: bytes) -> None:
        peers.append(call.peer)
        if body == b"wait":
            held.append(call)
        else:
            call.reply(body)

    served = serve({ECHO: handle}, credentials=load(plain(files)))
    credentials = grpc.ssl_channel_credentials(authority.certificate_pem())
    with grpc.secure_channel(served.target, credentials) as channel:
        echo = channel.unary_unary(ECHO)
        under_way = echo.future(b"wait", timeout=20)
        assert wait_until(lambda: bool(held))
        other = issue("other authority")
        renewed = issue("server", other)
        replace(files.certificate, renewed.certificate_pem())
        replace(files.key, renewed.key_pem())
        assert ask(served, other) == b"1", "newcomers are shown the new certificate"
        assert echo(b"2", timeout=20) == b"2", "who was here before goes on"
        held[0].reply(b"3")
        assert under_way.result() == b"3"
    assert peers[0] == peers[2] != peers[1], "over the connection that it had"


def test_a_replacement_that_cannot_be_used_leaves_the_one_before_it(
    serve: Serve, files: CredentialFiles, authority: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve({ECHO: Seen()}, credentials=load(plain(files)))
    replace(files.key, issue("somebody else").key_pem())
    assert ask(served, authority) == b"1"
    assert "new TLS files are not used, the ones before them stay" in caplog.text
    files.certificate.unlink()
    assert ask(served, authority) == b"1"


@pytest.mark.parametrize("which", ["certificate", "key", "client_ca"])
def test_a_missing_file_is_named(files: CredentialFiles, which: str) -> None:
    path = getattr(files, which)
    path.unlink()
    with pytest.raises(StartFailed, match=rf"cannot read the .* {path}: No such file or directory"):
        load(files)


@pytest.mark.parametrize("which", ["certificate", "key", "client_ca"])
@pytest.mark.parametrize(
    "content", [b"", b"not a PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_a_file_that_is_no_pem_is_named(files: CredentialFiles, which: str, content: bytes) -> None:
    path = getattr(files, which)
    path.write_bytes(content)
    with pytest.raises(StartFailed, match=str(path)):
        load(files)


def test_a_directory_is_named(files: CredentialFiles, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=f"cannot read the certificate {tmp_path}: Is a directory"):
        load(CredentialFiles(certificate=tmp_path, key=files.key))


def test_a_key_of_another_certificate_is_refused(files: CredentialFiles) -> None:
    files.key.write_bytes(issue("somebody else").key_pem())
    with pytest.raises(
        StartFailed, match=f"{files.key} does not belong to the first certificate of {files.certificate}"
    ):
        load(files)


def test_an_encrypted_key_is_refused_without_asking_for_its_password(
    files: CredentialFiles, authority: Identity
) -> None:
    server = issue("server", authority)
    files.certificate.write_bytes(server.certificate_pem())
    files.key.write_bytes(server.key_pem(b"secret"))
    with pytest.raises(StartFailed, match="the private key is encrypted"):
        load(files)
