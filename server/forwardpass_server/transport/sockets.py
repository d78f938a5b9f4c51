"""The sockets under a gRPC port, found among this process's own descriptors, since the core does not show them.

Used at the two moments when the core's interface is not enough: to say why a port could not be bound, and to stop
without losing calls (`stop`): first the listening sockets, much later the accepted connections.
"""

import os
import socket
import stat
from collections.abc import Iterator

_INET = (socket.AF_INET, socket.AF_INET6)


def listening(port: int) -> list[socket.socket]:
    """Duplicates of this process's sockets that listen on TCP `port`; the caller closes them."""
    return [own for own in _own_sockets() if _keep(own, _port(own) == port and _listens(own))]


def accepted(port: int) -> list[socket.socket]:
    """Duplicates of this process's connections that were accepted on TCP `port`; the caller closes them."""
    return [own for own in _own_sockets() if _keep(own, _port(own) == port and not _listens(own) and _connected(own))]


def shut_down(sockets: list[socket.socket]) -> int:
    """End both directions of each socket, in whoever's hands it is, and close our duplicates. Returns how many."""
    for each in sockets:
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already disconnected by the other side: what was wanted
        finally:
            each.close()
    return len(sockets)


def why_not_bindable(host: str, port: int) -> str:
    """Why `host:port` cannot be bound, in the system's words; "" when it now could be."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"the host does not resolve: {error.strerror or error}"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
    return ""


def _own_sockets() -> Iterator[socket.socket]:
    for name in os.listdir("/dev/fd"):
        try:
            descriptor = int(name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            own = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # closed by its owner while we looked
        if own.family in _INET and own.type == socket.SOCK_STREAM:
            yield own
        else:
            own.close()


def _keep(own: socket.socket, wanted: bool) -> bool:
    if not wanted:
        own.close()
    return wanted


def _port(own: socket.socket) -> int:
    return int(own.getsockname()[1])


def _listens(own: socket.socket) -> bool:
    return bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _connected(own: socket.socket) -> bool:
    try:
        own.getpeername()
    except OSError:
        return False
    return True
