"""A private copy of a version's files: nothing outside the repository is read, and nothing that is swapped in later.

The one thing to know: ONNX Runtime never sees the repository. Each file is opened here, component by component, without
following links (their targets are resolved first and must lie inside the repository), must be a regular file with one
name, is hashed while it is copied, and the copy is what gets loaded. So a path that escapes, a pipe that would block
for ever, a hard link to somebody else's file, and a file that changes after its check are all harmless.

Facts behind it: ONNX Runtime 1.31 refuses external data behind `..`, absolute paths and links, but follows a hard link,
and loading a pipe never returns; `onnx.checker` refuses links inside the folder, which ConfigMaps and git-sync use.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError, Message

from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle.repository import MODEL_FILE, ManifestMismatch, VersionFolder

_CHUNK_BYTES = 1 << 20


class UnsafeFile(LoadFailed):
    """A file of the version that must not be read: outside the repository, not a regular file, or hard-linked."""


@dataclass(frozen=True, kw_only=True)
class PrivateCopy:
    """The files of one version, ours alone.

    Args:
        folder: holds them under the names that they have in the version folder.
        model: the ONNX file in it.
        sha256: of the ONNX file.
    """

    folder: Path
    model: Path
    sha256: str


@contextlib.contextmanager
def private_copy(
    version: VersionFolder, *, root: Path, filename: str, bytes_max: int, scratch: Path | None = None
) -> Iterator[PrivateCopy]:
    """Copy and check the files of a version: with a manifest all that it lists, without one the model and its weights.

    The copy lasts as long as the context. A session outlives it: what is mapped of a deleted file stays mapped.

    Args:
        version: as found in the repository.
        root: of the repository; no file outside of it is read.
        filename: of the model within the version folder.
        bytes_max: of all files together.
        scratch: folder for the copy; the system's when None.

    Raises:
        UnsafeFile: a file that must not be read.
        ManifestMismatch: a file is missing or differs from the manifest.
        LoadFailed: no model, not ONNX, too large, or the disk refuses.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="forwardpass-", dir=scratch))
    except OSError as exc:
        raise LoadFailed(f"no place for the private copy of a version: {exc}; see --scratch-dir") from exc
    try:
        yield _Copier(version, root=root, folder=folder, bytes_max=bytes_max).copy(filename)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def external_locations(message: Message) -> frozenset[str]:
    """Every `location` of external data in a model: initializers, sparse ones, attributes, subgraphs, functions, all.

    A walk over the whole message, since the places that a list of places forgets become advisories.
    """
    locations: set[str] = set()
    stack: list[Message] = [message]
    while stack:
        current = stack.pop()
        if isinstance(current, onnx.TensorProto):
            locations.update(entry.value for entry in current.external_data if entry.key == "location")
            continue  # a tensor holds no tensors
        for field, value in current.ListFields():
            if field.message_type is not None:
                stack.extend([value] if isinstance(value, Message) else value)
    return frozenset(locations)


def open_inside(root: Path, path: Path) -> BinaryIO:
    """Open a regular file whose real place is inside `root`.

    Links are resolved first; then each component of the real path is opened from its parent and must not be a link, so
    that one put there in between is not followed.

    Raises:
        UnsafeFile: outside, not a regular file, a link, or with more than one name.
        FileNotFoundError: there is none.
        OSError: it cannot be opened.
    """
    real_root = Path(os.path.realpath(root, strict=True))
    real = Path(os.path.realpath(path, strict=True))
    if not real.is_relative_to(real_root):
        raise UnsafeFile(f"{_inside(root, path)} leads out of the repository; copy the file into the version folder")
    *folders, name = real.relative_to(real_root).parts or ("",)
    with contextlib.ExitStack() as stack:
        parent = _open_folder(real_root, None, stack)
        for each in folders:
            parent = _open_folder(each, parent, stack)
        # A pipe would block here without O_NONBLOCK, and opening a device may already do something: look before.
        status = os.stat(name or ".", dir_fd=parent, follow_symlinks=False)
        _check_regular(status, root, path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=parent)
        file = os.fdopen(descriptor, "rb")
        try:
            _check_regular(os.fstat(descriptor), root, path)
        except UnsafeFile:
            file.close()
            raise
        return file


def _open_folder(name: str | Path, parent: int | None, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    stack.callback(os.close, descriptor)
    return descriptor


def _check_regular(status: os.stat_result, root: Path, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFile(f"{_inside(root, path)} is {_kind(status.st_mode)}, not a regular file")
    if status.st_nlink > 1:
        raise UnsafeFile(
            f"{_inside(root, path)} is a hard link, one of {status.st_nlink} names of perhaps anybody's file; copy it"
        )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _inside(root: Path, path: Path) -> str:
    """The path as a reader of the repository knows it; messages never say where the repository is."""
    return repr(str(path.relative_to(root)) if path.is_relative_to(root) else path.name)


class _Copier:
    """Copies files of one version into one folder, and keeps the sum of their sizes below the limit."""

    def __init__(self, version: VersionFolder, *, root: Path, folder: Path, bytes_max: int) -> None:
        self._version = version
        self._root = root
        self._folder = folder
        self._bytes_max = bytes_max
        self._bytes_left = bytes_max

    def copy(self, filename: str) -> PrivateCopy:
        # A folder called model.onnx holds model.onnx and its weights: Triton's form of models with external data.
        name = f"{filename}/{MODEL_FILE}" if (self._version.path / filename).is_dir() else filename
        manifest = self._version.manifest
        hashes = {name: self._copy_one(name)}
        weights = {self._beside(name, location) for location in external_locations(self._parse(name))}
        for each in sorted(weights | (manifest.files.keys() if manifest else set())):
            if each not in hashes:
                hashes[each] = self._copy_one(each)
        return PrivateCopy(folder=self._folder, model=self._folder / name, sha256=hashes[name])

    def _copy_one(self, relative: str) -> str:
        """Copy one file, and return its SHA-256, which is the manifest's where there is one."""
        manifest = self._version.manifest
        expected = manifest.files.get(relative) if manifest else None
        if manifest and expected is None:
            raise ManifestMismatch(relative, "a record of it", "none")
        target = self._folder / relative
        digest, size_bytes = hashlib.sha256(), 0
        try:
            with open_inside(self._root, self._version.path / relative) as source:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as copy:
                    while chunk := source.read(_CHUNK_BYTES):
                        size_bytes += len(chunk)
                        self._spend(len(chunk))
                        digest.update(chunk)
                        copy.write(chunk)
        except FileNotFoundError as exc:
            if expected:
                raise ManifestMismatch(relative, f"{expected.bytes} bytes", "no such file") from exc
            raise LoadFailed(f"the version has no file {relative!r}") from exc
        except (OSError, ValueError) as exc:
            raise LoadFailed(f"{relative!r} cannot be copied: {getattr(exc, 'strerror', None) or exc}") from exc
        sha256 = digest.hexdigest()
        if expected and size_bytes != expected.bytes:
            raise ManifestMismatch(relative, f"{expected.bytes} bytes", f"{size_bytes} bytes")
        if expected and sha256 != expected.sha256:
            raise ManifestMismatch(relative, f"sha256 {expected.sha256}", f"sha256 {sha256}")
        return sha256

    def _spend(self, chunk_bytes: int) -> None:
        self._bytes_left -= chunk_bytes
        if self._bytes_left < 0:
            raise LoadFailed(f"the files of the version exceed {self._bytes_max} bytes; see --max-version-gib")

    def _parse(self, name: str) -> onnx.ModelProto:
        try:
            model = onnx.load_model(self._folder / name, load_external_data=False)
        except DecodeError as exc:
            raise LoadFailed(f"{name!r} is not an ONNX file, or was cut short: {exc}") from exc
        if not model.HasField("graph"):
            raise LoadFailed(f"{name!r} holds no graph; it is not an ONNX file, or it is empty")
        return model

    def _beside(self, name: str, location: str) -> str:
        """The path, relative to the version folder, of external data that the model at `name` points to."""
        path = PurePosixPath(location)
        # NOTE: ONNX Runtime takes the location "*/_ORT_MEM_ADDR_/*" for an address in its own memory.
        if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0] == "*" or "\0" in location:
            raise UnsafeFile(
                f"external data at {location!r:.200}: must be a path below the model file, without '..'; export again"
            )
        return (PurePosixPath(name).parent / path).as_posix()
