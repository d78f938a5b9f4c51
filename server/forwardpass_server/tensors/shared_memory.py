"""Regions of POSIX shared memory that clients register, for tensors that do not travel in messages.

The one thing to know: regions are read and written by system calls (`preadv`, `pwritev`), never mapped. A client that
shrinks a region which a server has mapped kills that server (SIGBUS), and one that writes to it while a model runs
changes values that were checked. Here the first gets an error, and the second changes nothing, at the price of one
copy, which does not go through gRPC, protobuf or a socket.

A region is closed when nobody holds it any more, so one may be unregistered while requests use it.
"""

import errno
import os
import re
import stat
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forwardpass_server.errors import AlreadyExists, InvalidRequest, NotFound, Overloaded, RunFailed, TooLarge

FOLDER = Path("/dev/shm")
"""Where the system keeps them; `shm_open("/key")` opens `/dev/shm/key`."""

KEY = re.compile(r"/?([A-Za-z0-9_-]{1,64})")
OWN_PREFIX = "forwardpass"
"""Keys that begin so are refused: nobody may name what a server might keep there itself."""
NAME_CHARACTERS = 128

REGIONS_MAX = 512
"""Regions at a time; each is an open file."""
REGIONS_OF_ONE_MAX = 256
"""Regions that one connection may have registered."""


class Region:
    """A part of a shared memory object. Any thread.

    Args:
        name: by which requests refer to it.
        key: of the object.
        offset: where in the object it begins, in bytes.
        nbytes: its size.
        owner: who registered it.
        descriptor: of the open object, which this closes when nobody holds it any more.
    """

    def __init__(self, name: str, key: str, offset: int, nbytes: int, owner: str, descriptor: int) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.nbytes = nbytes
        self.owner = owner
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, nbytes: int) -> memoryview:
        """A copy of a part, which was found to lie inside.

        Raises:
            InvalidRequest: the object has shrunk since it was registered.
        """
        copy = memoryview(np.empty(nbytes, np.uint8))  # type: ignore[arg-type]  # not zeroed, as a bytearray would be
        got = 0
        while got < nbytes:
            count = os.preadv(self._descriptor, [copy[got:]], self.offset + offset + got)
            if count == 0:
                raise InvalidRequest(
                    f"shared memory region '{self.name}' has shrunk: {got} of {nbytes} bytes are left at {offset}"
                )
            got += count
        return copy

    def write(self, offset: int, data: memoryview) -> None:
        """Write into a part, which was found to lie inside.

        Raises:
            RunFailed: the system has no memory left for it.
        """
        done = 0
        try:
            while done < len(data):
                done += os.pwritev(self._descriptor, [data[done:]], self.offset + offset + done)
        except OSError as error:
            raise RunFailed(f"shared memory region '{self.name}' cannot be written: {error.strerror}") from error


class Part:
    """A part of a region that a request reads a tensor from, or wants one written to.

    Args:
        region: held, so that it stays open.
        offset: from the beginning of the region, in bytes.
        nbytes: the size of the part.
    """

    __slots__ = ("nbytes", "offset", "region")

    def __init__(self, region: Region, offset: int, nbytes: int) -> None:
        self.region = region
        self.offset = offset
        self.nbytes = nbytes

    def read(self) -> memoryview:
        """See `Region.read`."""
        return self.region.read(self.offset, self.nbytes)

    def write(self, data: memoryview, output: str) -> None:
        """Write the data of an output.

        Raises:
            InvalidRequest: it is larger than the part.
            RunFailed: see `Region.write`.
        """
        if len(data) > self.nbytes:
            raise InvalidRequest(
                f"output '{output}' has {len(data)} bytes; its part of shared memory region '{self.region.name}' has "
                f"{self.nbytes}"
            )
        self.region.write(self.offset, data)


class SharedMemory:
    """The regions that are registered. Any thread.

    Args:
        tensor_bytes_max: bytes of one tensor that is read from a region.
        folder: where shared memory objects lie.
    """

    def __init__(self, tensor_bytes_max: int, folder: Path = FOLDER) -> None:
        self._tensor_bytes_max = tensor_bytes_max
        self._folder = folder
        self._regions: dict[str, Region] = {}
        self._lock = threading.Lock()

    def register(self, name: str, key: str, offset: int, nbytes: int, owner: str) -> None:
        """Open a region.

        Args:
            name: by which requests will refer to it.
            key: as given to `shm_open`.
            offset: of the region in the object, in bytes.
            nbytes: of the region.
            owner: the connection, for its quota.

        Raises:
            InvalidRequest: a name, key or range that cannot be; not a shared memory object of the server's own user.
            AlreadyExists: the name is taken.
            Overloaded: too many regions.
        """
        if not name or len(name) > NAME_CHARACTERS:
            raise InvalidRequest(
                f"a shared memory region's name has 1 to {NAME_CHARACTERS} characters, got {len(name)}"
            )
        matched = KEY.fullmatch(key)
        if matched is None:
            raise InvalidRequest(
                f"shared memory key {key!r:.80} is not allowed: 1 to 64 letters, digits, '_' and '-', after one '/' at "
                "most"
            )
        if matched[1].startswith(OWN_PREFIX):
            raise InvalidRequest(f"shared memory keys that begin with '{OWN_PREFIX}' are reserved, got {key!r}")
        if nbytes == 0:
            raise InvalidRequest(f"shared memory region '{name}' has no bytes")
        with self._lock:
            if name in self._regions:
                raise AlreadyExists(f"shared memory region '{name}' already exists; unregister it first")
            self._check_quota(owner)
            descriptor = self._open(matched[1], key, offset + nbytes)
            self._regions[name] = Region(name, key, offset, nbytes, owner, descriptor)

    def unregister(self, name: str) -> None:
        """Forget a region, known or not; "" forgets all. Requests that use it keep it."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def status(self, name: str) -> Sequence[Region]:
        """One region, or for "" all. Raises NotFound."""
        with self._lock:
            if not name:
                return [*self._regions.values()]
            region = self._regions.get(name)
        if region is None:
            raise NotFound(f"shared memory region '{name:.{NAME_CHARACTERS}}' is not registered")
        return [region]

    def part(self, name: str, offset: int, nbytes: int, where: str) -> Part:
        """A part of a region.

        Args:
            name: of the region.
            offset, nbytes: of the part, in bytes from the region's beginning.
            where: the tensor, for messages.

        Raises:
            InvalidRequest: there is no such region, or the part is not inside.
            TooLarge: more than a tensor may have.
        """
        region = self._regions.get(name)
        if region is None:
            raise InvalidRequest(f"{where}: shared memory region '{name:.{NAME_CHARACTERS}}' is not registered")
        if offset + nbytes > region.nbytes:
            raise InvalidRequest(
                f"{where}: {nbytes} bytes at {offset} pass the end of shared memory region '{name}', which has "
                f"{region.nbytes}"
            )
        if nbytes > self._tensor_bytes_max:
            raise TooLarge(f"{where}: {nbytes} bytes in shared memory; a tensor has at most {self._tensor_bytes_max}")
        return Part(region, offset, nbytes)

    def _check_quota(self, owner: str) -> None:
        of_owner = Counter(region.owner for region in self._regions.values())[owner]
        if len(self._regions) >= REGIONS_MAX or of_owner >= REGIONS_OF_ONE_MAX:
            raise Overloaded(
                f"{len(self._regions)} shared memory regions are registered, {of_owner} by this connection; at most "
                f"{REGIONS_MAX} and {REGIONS_OF_ONE_MAX}: unregister some",
                retry_after_s=1.0,
            )

    def _open(self, file: str, key: str, end: int) -> int:
        """A descriptor of the object, found to be one, ours, and at least `end` bytes long."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(self._folder / file, flags)
        except OSError as error:
            reason = "it is a link" if error.errno == errno.ELOOP else (error.strerror or str(error))
            raise InvalidRequest(f"shared memory {key!r} cannot be opened: {reason}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise InvalidRequest(f"shared memory {key!r} is not a plain shared memory object")
            if status.st_uid != os.geteuid():
                raise InvalidRequest(
                    f"shared memory {key!r} belongs to user {status.st_uid}; the server is user {os.geteuid()}"
                )
            if end > status.st_size:
                raise InvalidRequest(f"shared memory {key!r} has {status.st_size} bytes; the region would end at {end}")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
