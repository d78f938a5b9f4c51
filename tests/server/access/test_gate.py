"""The gate: closed by default, and each credential good for what it is good for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

import forwardpass_proto
from forwardpass_server.access.gate import Credentials, Gate
from forwardpass_server.access.levels import Level, level_of
from forwardpass_server.errors import PermissionDenied, Unauthenticated

INFERENCE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True)
class Held:
    """Tokens."""

    token: str

    def holds(self, token: str) -> bool:
        return token == self.token


@dataclass
class Caller:
    """A call that shows something."""

    metadata: tuple[tuple[str, str | bytes], ...] = ()
    subjects: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    method: str = f"{INFERENCE}RepositoryModelLoad"

    def identity(self) -> Mapping[str, tuple[bytes, ...]]:
        return self.subjects


NOBODY = Caller()
USER = Caller((("authorization", "Bearer data-token"),))
ADMIN = Caller((("authorization", "Bearer admin-token"),))
DATA_CREDENTIALS = Credentials(tokens=Held("data-token"), subjects=frozenset({"alice"}))
ADMIN_CREDENTIALS = Credentials(tokens=Held("admin-token"), subjects=frozenset({"root.example"}))
CLOSED = Gate(DATA_CREDENTIALS, ADMIN_CREDENTIALS)


def certificate(**names: bytes) -> Caller:
    return Caller(subjects={key: (name,) for key, name in names.items()})


@pytest.mark.parametrize(
    "caller",
    [
        NOBODY,
        Caller((("authorization", "Bearer wrong"),)),
        Caller((("authorization", "Bearer "),)),
        Caller((("authorization", "data-token"),)),
        Caller((("authorization", "Basic data-token"),)),
        Caller((("authorization", "Bearer admin-token data-token"),)),
        Caller((("authorization", b"Bearer admin-token"),)),
        Caller((("authorization", "Bearer wrong"), ("authorization", "Bearer admin-token"))),
        Caller((("x-authorization", "Bearer admin-token"),)),
        certificate(x509_common_name=b"mallory"),
        certificate(x509_common_name=b"alice\0"),
        certificate(x509_common_name=b"\xff"),
        certificate(peer=b"alice"),
    ],
)
def test_who_shows_nothing_good_is_unauthenticated(caller: Caller) -> None:
    for level in (Level.DATA, Level.ADMIN):
        with pytest.raises(Unauthenticated, match="needs credentials"):
            CLOSED.check(caller, level)


@pytest.mark.parametrize("caller", [USER, certificate(x509_common_name=b"alice")])
def test_data_credentials_are_good_for_data_and_no_more(caller: Caller) -> None:
    CLOSED.check(caller, Level.DATA)
    with pytest.raises(
        PermissionDenied, match="RepositoryModelLoad is for admins; these credentials are good for data"
    ):
        CLOSED.check(caller, Level.ADMIN)


@pytest.mark.parametrize("caller", [ADMIN, certificate(x509_subject_alternative_name=b"root.example")])
def test_admin_credentials_are_good_for_everything(caller: Caller) -> None:
    CLOSED.check(caller, Level.DATA)
    CLOSED.check(caller, Level.ADMIN)


@pytest.mark.parametrize("caller", [NOBODY, USER, ADMIN])
@pytest.mark.parametrize("gate", [Gate(), Gate(DATA_CREDENTIALS)])
def test_admin_rpcs_are_closed_to_everybody_where_there_are_no_admins(gate: Gate, caller: Caller) -> None:
    with pytest.raises(PermissionDenied, match="--enable-admin"):
        gate.check(caller, Level.ADMIN)


@pytest.mark.parametrize("gate", [Gate(), Gate(admin=ADMIN_CREDENTIALS)])
def test_data_rpcs_are_open_where_nobody_said_otherwise(gate: Gate) -> None:
    gate.check(NOBODY, Level.DATA)


def test_a_wrong_token_beside_a_good_certificate_passes() -> None:
    CLOSED.check(Caller((("authorization", "Bearer wrong"),), {"x509_common_name": (b"alice",)}), Level.DATA)


def test_what_takes_nothing_is_open_to_everybody() -> None:
    CLOSED.check(NOBODY, Level.OPEN)


def test_the_scheme_is_read_in_any_case() -> None:
    CLOSED.check(Caller((("authorization", "bearer data-token"),)), Level.DATA)


def test_an_rpc_that_nobody_has_thought_about_takes_an_admin() -> None:
    for method in ("", "/x/y", f"{INFERENCE}New", f"{INFERENCE}modelinfer", "/grpc.channelz.v1.Channelz/GetServers"):
        assert level_of(method) is Level.ADMIN


def test_only_probes_are_open_and_only_loads_are_for_admins_alone() -> None:
    levels = {
        f"/{service}/{method.name}": level_of(f"/{service}/{method.name}")
        for service in ("inference.GRPCInferenceService", "grpc.health.v1.Health")
        for method in forwardpass_proto.POOL.FindServiceByName(service).methods
    }
    names = {level: {path.rpartition("/")[2] for path in levels if levels[path] is level} for level in Level}
    assert names[Level.OPEN] == {"ServerLive", "ServerReady", "Check", "Watch"}
    assert names[Level.ADMIN] == {"RepositoryModelLoad", "RepositoryModelUnload"}
