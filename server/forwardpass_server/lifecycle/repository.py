"""The model repository: `publish` puts versions into it, `scan` finds them.

    <root>/<model>/[config.pbtxt] [labels.txt]
                   <version>/model.onnx [manifest.json] [test_data_set_0/ …]

The layout is Triton's. The one thing to know: a version folder appears whole, by one rename, or not at all. Whoever
reads the repository needs no lock; whoever writes it goes through `publish`.

Standard library only, and safe to import from training.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from forwardpass_server.errors import ForwardpassError, LoadFailed
from forwardpass_server.lifecycle.manifest import (
    FORMAT,
    MANIFEST_FILE,
    FileRecord,
    GoldenSet,
    InvalidManifest,
    Manifest,
    ManifestMismatch,
    Tolerance,
    fsync,
    read_manifest,
    record_files,
    write_manifest,
)

__all__ = [
    "CONFIG_FILE",
    "FORMAT",
    "LABELS_FILE",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "MODEL_NAME",
    "Contents",
    "FileRecord",
    "GoldenSet",
    "InvalidManifest",
    "Manifest",
    "ManifestMismatch",
    "ModelFolder",
    "Problem",
    "PublishFailed",
    "RepositoryUnreadable",
    "Scan",
    "Tolerance",
    "VersionFolder",
    "is_model_name",
    "publish",
    "read_manifest",
    "read_model",
    "read_version",
    "record_files",
    "scan",
    "version_number",
    "write_manifest",
]

MODEL_FILE = "model.onnx"
CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
MODEL_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
VERSION_MAX = 2**63 - 1  # ModelStatistics and the version policy carry int64

_VERSION = re.compile(r"[1-9][0-9]{0,18}")
_ALMOST_VERSION = re.compile(r"[0-9]+")
_STAGING = ".staging-"
_LOCK = ".publish.lock"
_OWNER = ".owner"

Stamp = tuple[tuple[str, int, int, int], ...]


class RepositoryUnreadable(ForwardpassError):
    """The root of the repository cannot be listed. Nothing is known about its models; keep what is being served."""


class PublishFailed(ForwardpassError):
    """Nothing was published; the repository is as it was."""


class Contents(TypedDict, total=False):
    """What a build says about the files that it wrote; all of it goes into the manifest."""

    golden: list[GoldenSet]
    provenance: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class VersionFolder:
    """One version as found.

    Args:
        model: name of the model folder.
        version: positive number of the folder.
        path: the folder.
        manifest: None when it has none: served, but unproved.
        problem: why this version must not be loaded (a manifest that is there and cannot be used), else None.
        stamp: name, size, mtime in ns and inode of every file below; equal stamps mean that nothing was touched.
        home: the model's folder, which holds what is not of one version; None: the one above `path`.
    """

    model: str
    version: int
    path: Path
    manifest: Manifest | None = None
    problem: str | None = None
    stamp: Stamp = field(default=(), repr=False)
    home: Path | None = None

    @property
    def model_folder(self) -> Path:
        """The folder that holds config.pbtxt, labels and warm-up data."""
        return self.home or self.path.parent

    def model_file(self, filename: str = MODEL_FILE) -> Path:
        """The ONNX file: `model.onnx`, or `model.onnx/model.onnx` when that is a folder, with external data beside it.

        Raises:
            LoadFailed: there is none.
        """
        for candidate in (self.path / filename, self.path / filename / MODEL_FILE):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(candidate.stat().st_mode):
                    return candidate
        raise LoadFailed(f"version {self.version} of {self.model!r} has no {filename}: looked in {self.path}")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """One model as found.

    Args:
        name: of the model.
        path: the folder.
        config: its `config.pbtxt`, if any.
        labels: its `labels.txt`, if any.
        versions: by number; empty while the first one is still being published.
        stamp: of `config` and `labels`, as in `VersionFolder`.
    """

    name: str
    path: Path
    config: Path | None = None
    labels: Path | None = None
    versions: Mapping[int, VersionFolder] = field(default_factory=dict)
    stamp: Stamp = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something in the repository that is not served as somebody may expect.

    Args:
        path: where.
        reason: what is wrong and the way out.
        model: name of the model concerned, None when the folder cannot be a model.
        version: its number, None when it concerns the whole model.
    """

    path: Path
    reason: str
    model: str | None = None
    version: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One look at the repository. A model folder that could not be read is in `problems` and not in `models`."""

    models: Mapping[str, ModelFolder]
    problems: tuple[Problem, ...] = ()


def is_model_name(name: str) -> bool:
    """Whether `name` may be a model's: 1 to 128 letters, digits, `_`, `.`, `-`, and neither `.` nor `-` first."""
    return MODEL_NAME.match(name) is not None


def version_number(name: str) -> int | None:
    """The number of a version folder of that name, or None for any other name (`01`, `v1`, `configs`)."""
    if _VERSION.fullmatch(name) and int(name) <= VERSION_MAX:
        return int(name)
    return None


# ---------------------------------------------------------------------------------------------------------- publish


def publish(
    root: Path, model: str, build: Callable[[Path], Contents], *, lock_timeout_s: float = 30.0
) -> VersionFolder:
    """Build a version in a staging folder, then give it the next free number.

    The number is above every number there is or was, so a deleted version's is not used again. Publishers of one model
    may run at once, in any process; each gets its own number. Killed at any point, it leaves a hidden staging folder at
    most, which the next publisher removes.

    Args:
        root: of the repository; made when it is not there.
        model: name of the model.
        build: writes `model.onnx` (a file, or a folder holding it and its external data) and the golden examples into
            the empty folder it is given, and says what the manifest shall say beside the hashes.
        lock_timeout_s: how long to wait for another publisher who is choosing its number.

    Raises:
        PublishFailed: a bad name, nothing to publish, values without JSON form, or the lock is not to be had.
        OSError: the disk refused.
        Exception: whatever `build` raises.
    """
    if not is_model_name(model):
        raise PublishFailed(f"{model!r:.160} is no model name: use 1 to 128 letters, digits, '_', '.', '-'")
    home = root / model
    home.mkdir(parents=True, exist_ok=True)
    with _staging(home, lock_timeout_s) as folder:
        contents = build(folder)
        files = record_files(folder)
        if MODEL_FILE not in files and f"{MODEL_FILE}/{MODEL_FILE}" not in files:
            raise PublishFailed(f"nothing to publish for {model!r}: the build wrote no {MODEL_FILE}")
        _flush(folder, files)
        with _lock(home, lock_timeout_s) as last:
            number = max([last.read(), *_numbers(home)]) + 1
            if number > VERSION_MAX:
                raise PublishFailed(f"{home} has a version {VERSION_MAX}, beyond which there are no numbers; remove it")
            manifest = Manifest(
                model=model,
                version=number,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                files=files,
                golden=tuple(contents.get("golden", ())),
                provenance=contents.get("provenance", {}),
                metrics=contents.get("metrics", {}),
            )
            try:
                Manifest.from_json(manifest.to_json())
            except (TypeError, ValueError, InvalidManifest) as exc:
                raise PublishFailed(f"the manifest of {model!r} would be of no use: {exc}") from exc
            write_manifest(folder, manifest)
            last.write(number)
            folder.rename(home / str(number))
            fsync(home)
    return read_version(model, number, home / str(number))


@contextlib.contextmanager
def _staging(home: Path, lock_timeout_s: float) -> Iterator[Path]:
    """A new empty folder, which no cleaner takes while this process lives.

    Its hidden parent holds `.owner`, locked by us: the kernel drops the lock when we die, however we die. Both making
    and cleaning happen under the lock of publishers, so no cleaner sees a folder whose owner has not locked it yet.
    """
    parent = home / f"{_STAGING}{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        with _lock(home, lock_timeout_s):
            _clean(home)
            parent.mkdir()
            owner = stack.enter_context((parent / _OWNER).open("w"))
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            folder = parent / "version"
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(parent, ignore_errors=True)


def _clean(home: Path) -> None:
    """Remove the staging folders whose owners are dead. Call under the lock of publishers."""
    for parent in home.glob(f"{_STAGING}*"):
        try:
            with (parent / _OWNER).open("r+") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:
            pass  # it died before it had made `.owner`, or while it cleaned up
        shutil.rmtree(parent, ignore_errors=True)


class _LastNumber:
    """The highest number ever given, kept in the lock file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> int:
        # A torn write by a killed publisher reads as no number or a wrong lower one; the folders found correct it.
        return version_number(os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()) or 0

    def write(self, number: int) -> None:
        os.pwrite(self._descriptor, f"{number}\n".encode(), 0)


@contextlib.contextmanager
def _lock(home: Path, timeout_s: float) -> Iterator[_LastNumber]:
    path = home / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        give_up = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise
                if time.monotonic() > give_up:
                    raise PublishFailed(
                        f"another publisher has held {path} for {timeout_s:g} s; try again when it is done"
                    ) from exc
                time.sleep(0.02)
        yield _LastNumber(descriptor)
    finally:
        os.close(descriptor)


def _numbers(home: Path) -> list[int]:
    """Every number that an entry of the model folder looks like, `007` and plain files included: none may be hit."""
    numbers = (int(name) for name in os.listdir(home) if _ALMOST_VERSION.fullmatch(name))
    return [number for number in numbers if number <= VERSION_MAX]


def _flush(folder: Path, files: Mapping[str, FileRecord]) -> None:
    for relative in files:
        fsync(folder / relative)
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync(path)


# ------------------------------------------------------------------------------------------------------------- scan


def scan(root: Path) -> Scan:
    """Look at the whole repository. Reads manifests, no models.

    One bad folder never hides another: it becomes a `Problem`. Hidden entries and plain files are passed over in
    silence, and so are folders of a model whose names are no numbers.

    Raises:
        RepositoryUnreadable: the root itself cannot be listed.
    """
    try:
        names = sorted(os.listdir(root))
    except OSError as exc:
        raise RepositoryUnreadable(f"model repository {root} cannot be listed: {exc.strerror or exc}") from exc
    models: dict[str, ModelFolder] = {}
    problems: list[Problem] = []
    for name in names:
        path = root / name
        if name.startswith(".") or not path.is_dir():
            continue
        if not is_model_name(name):
            reason = "not a model name: use 1 to 128 letters, digits, '_', '.', '-'; rename the folder"
            problems.append(Problem(path=path, reason=reason))
            continue
        try:
            models[name] = read_model(name, path, problems)
        except OSError as exc:
            problems.append(Problem(path=path, model=name, reason=f"cannot be read: {exc.strerror or exc}"))
    return Scan(models=models, problems=tuple(problems))


def read_version(model: str, version: int, path: Path) -> VersionFolder:
    """Look at one version folder.

    Raises:
        OSError: it cannot be listed.
    """
    stamp = _stamp(path)
    try:
        manifest, problem = read_manifest(path), None
    except InvalidManifest as exc:
        manifest, problem = None, str(exc)
    return VersionFolder(model=model, version=version, path=path, manifest=manifest, problem=problem, stamp=stamp)


def read_model(name: str, path: Path, problems: list[Problem]) -> ModelFolder:
    """Look at one model folder; what is wrong with a part of it is added to `problems`.

    Raises:
        OSError: it cannot be listed.
    """
    versions = {}
    for entry in sorted(os.listdir(path)):
        folder = path / entry
        number = version_number(entry)
        if number is None:
            if _ALMOST_VERSION.fullmatch(entry):
                reason = f"ignored: a version folder is a number from 1 to {VERSION_MAX} without leading zeros"
                problems.append(Problem(path=folder, model=name, reason=reason))
            continue
        try:
            versions[number] = version = read_version(name, number, folder)
        except OSError as exc:
            reason = f"cannot be read: {exc.strerror or exc}"
            problems.append(Problem(path=folder, model=name, version=number, reason=reason))
            continue
        if version.problem:
            problems.append(Problem(path=folder, model=name, version=number, reason=version.problem))
    if not versions and (path / MODEL_FILE).exists():
        reason = (
            f"holds {MODEL_FILE} and no version folder: move it to {name}/1/{MODEL_FILE}; or, if {path.parent} is "
            "itself a model, the folder above it is the repository"
        )
        problems.append(Problem(path=path, model=name, reason=reason))
    config, labels = path / CONFIG_FILE, path / LABELS_FILE
    return ModelFolder(
        name=name,
        path=path,
        config=config if config.is_file() else None,
        labels=labels if labels.is_file() else None,
        versions=dict(sorted(versions.items())),
        stamp=tuple(_file_stamp(file.name, file) for file in (config, labels) if file.is_file()),
    )


def _stamp(folder: Path) -> Stamp:
    """Of every file below. Links are followed to files and not into folders, which may loop; those count as files."""
    stamps = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(parent, name)
            stamps.append(_file_stamp(path.relative_to(folder).as_posix(), path))
    return tuple(stamps)


def _file_stamp(relative: str, path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
    except OSError:  # a dangling link, or a file that went away meanwhile
        return (relative, -1, -1, -1)
    return (relative, status.st_size, status.st_mtime_ns, status.st_ino)


def _raise(error: OSError) -> None:
    raise error
