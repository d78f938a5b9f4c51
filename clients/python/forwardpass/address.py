"""From what a user writes for an address to what gRPC dials. Pure."""

import ipaddress
import re
from dataclasses import dataclass

from forwardpass.errors import ClientMisused

DEFAULT_PORT = 8001
_FORMS = "give host:port, grpc://host:port, grpcs://host:port, ip:port,ip:port, dns:///host:port or unix:/path"

_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    text: str
    """As the user wrote it."""
    target: str
    """gRPC's name for it."""
    tls: bool
    """The user asked for TLS by writing grpcs://."""
    local: bool
    """On this machine: loopback or a Unix socket."""


def parse(text: str) -> Address:
    """Understand an address.

    A host alone gets port 8001. Several `ip:port` separated by commas are several servers; for several behind one
    name, give the name (a headless Service in Kubernetes) and let `round_robin` spread the calls.

    Raises:
        ClientMisused: not an address, with the forms that are.
    """
    scheme, separator, rest = text.partition("://")
    if text.startswith(("unix:", "unix-abstract:")):
        return Address(text, text, tls=False, local=True)
    if separator and scheme == "dns":
        return Address(text, text, tls=False, local=False)
    if separator and scheme not in ("grpc", "grpcs"):
        raise ClientMisused(f"no address of a gRPC server: '{text}'; {_FORMS}")
    hosts = [_host_port(part, text) for part in (rest if separator else text).rstrip("/").split(",")]
    if len(hosts) == 1:
        target = f"dns:///{_join(*hosts[0])}"
    else:
        families = {_family(host) for host, _ in hosts}
        if len(families) != 1 or None in families:
            raise ClientMisused(f"several servers need IP addresses of one family, got '{text}'; {_FORMS}")
        target = f"ipv{families.pop()}:" + ",".join(_join(host, port) for host, port in hosts)
    return Address(text, target, tls=scheme == "grpcs" and bool(separator), local=all(_is_local(h) for h, _ in hosts))


def _host_port(part: str, text: str) -> tuple[str, int]:
    if _family(part) == 6:
        return part, DEFAULT_PORT
    match = _HOST_PORT.fullmatch(part)
    if match is None or (match["ipv6"] is not None and _family(match["ipv6"]) != 6):
        raise ClientMisused(f"no address of a gRPC server: {text!r}; {_FORMS}")
    port = int(match["port"] or DEFAULT_PORT)
    if not 0 < port < 65536:
        raise ClientMisused(f"no address of a gRPC server: '{text}' (a port is 1 to 65535); {_FORMS}")
    return match["ipv6"] or match["host"], port


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:  # a name
        return None


def _is_local(host: str) -> bool:
    return host == "localhost" or (_family(host) is not None and ipaddress.ip_address(host).is_loopback)
