"""The sockets under a gRPC port, found among this process's own descriptors, since the core does not show them.

Used at the two moments when the core's interface is not enough: to say why a port could not be bound, and to stop
without losing calls (`stop`): first the listening sockets, much later the accepted connections.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator

_INET = (socket.AF_INET, socket.AF_INET6)
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def listening() -> dict[int, int]:
    """Inode and port of each TCP socket of this process that listens."""
    found = {}
    for own in _own_sockets():
        with own:
            if _listens(own):
                found[_inode(own)] = _port(own)
    return found


def shut_down_listening(inodes: frozenset[int]) -> int:
    """Stop these sockets listening, under whoever holds them. Returns how many they were."""
    count = 0
    for own in _own_sockets():
        with own:
            if _inode(own) in inodes and _listens(own):
                own.shutdown(socket.SHUT_RDWR)
                count += 1
    return count


def shut_down_accepted(port: int) -> int:
    """End, in both directions, this process's connections that were accepted on TCP `port`. Returns how many they were.

    Two servers of one process that share a port share their connections here.
    """
    count = 0
    for own in _own_sockets():
        with own:
            try:
                if _port(own) != port or _listens(own):
                    continue
                own.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side has left already
            count += 1
    return count


def why_not_bindable(host: str, port: int, *, reuse_port: bool = False) -> str:
    """Why `host:port` cannot be bound, in the system's words; "" when it can.

    A name may have several addresses, such as `localhost`: each must be free, and one must be this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"the host does not resolve: {error.strerror or error}"
    reasons = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if reuse_port:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                probe.bind(address)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            if error.errno in _TAKEN:
                return reason
            reasons.append(reason)
    return reasons[0] if len(reasons) == len(found) else ""


def hold(host: str, port: int) -> tuple[int, list[socket.socket]]:
    """Take `host:port` exclusively, then let the sockets of this user that ask for SO_REUSEPORT listen on it.

    It stays taken, for every other program too, until the sockets are closed; they never listen themselves.

    Returns:
        The real port, and the sockets that hold it.

    Raises:
        OSError: the host does not resolve, or somebody has the port.
    """
    held: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, (address, _, *scope) in found:
            own = socket.socket(family, kind, protocol)
            held.append(own)
            # Connections of an earlier server that are still closing (TIME_WAIT) are no reason to refuse.
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(len(found) > 1))
            own.bind((address, port, *scope))
            port = _port(own)
            # NOTE: both are read again at each later bind (Linux), so here the door is closed, and opened to our own.
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        for own in held:
            own.close()
        raise
    return port, held


def _own_sockets() -> Iterator[socket.socket]:
    """Duplicates of this process's TCP sockets, each socket once; the caller closes them."""
    seen = set()
    for name in os.listdir("/dev/fd"):
        try:
            descriptor = int(name)
            status = os.fstat(descriptor)
            if not stat.S_ISSOCK(status.st_mode) or status.st_ino in seen:
                continue
            own = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue  # closed by its owner while we looked
        seen.add(status.st_ino)
        if own.family in _INET and own.type == socket.SOCK_STREAM:
            yield own
        else:
            own.close()


def _inode(own: socket.socket) -> int:
    return os.fstat(own.fileno()).st_ino


def _port(own: socket.socket) -> int:
    return int(own.getsockname()[1])


def _listens(own: socket.socket) -> bool:
    return bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
