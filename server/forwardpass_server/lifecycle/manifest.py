"""`manifest.json`: what a version folder must contain, byte for byte, and how its answers are to be proved.

The one thing to know: a manifest is written last. A folder that has one was complete when it was written, so whatever
differs from it now was changed or lost afterwards. Its `model` and `version` say under which name it was published
first; a folder copied to another name or number remains valid.

Standard library only: training writes manifests, the server reads them.
"""

import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from forwardpass_server.errors import LoadFailed

FORMAT = 1
MANIFEST_FILE = "manifest.json"
MANIFEST_BYTES_MAX = 16 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


class InvalidManifest(LoadFailed):
    """`manifest.json` is there and cannot be used: unreadable, of an unknown format, or saying impossible things."""


class ManifestMismatch(LoadFailed):
    """A file is not what the manifest says; raised by whoever reads the files in order to use them.

    Args:
        file: path relative to the version folder.
        expected: what the manifest says, with unit (`sha256 ab…`, `1201 bytes`).
        got: what was found.
    """

    def __init__(self, file: str, expected: str, got: str) -> None:
        super().__init__(f"file {file!r} differs from {MANIFEST_FILE}: expected {expected}, got {got}; publish again")
        self.file = file
        self.expected = expected
        self.got = got


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and SHA-256 (64 lower-case hexadecimal digits) of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """An answer `y` passes against the recorded `g` when `|y − g| <= atol + rtol · |g|`, element by element."""

    atol: float
    rtol: float


@dataclass(frozen=True, kw_only=True)
class GoldenSet:
    """One recorded request and its answers: `input_0.pb …`, `output_0.pb …` in `folder`, in the ONNX test-data layout.

    Args:
        folder: relative to the version folder, `test_data_set_0` say.
        atol: absolute tolerance of every output that `outputs` does not name.
        rtol: relative tolerance, likewise.
        outputs: tolerances of single outputs, by name.
    """

    folder: str
    atol: float
    rtol: float
    outputs: Mapping[str, Tolerance] = field(default_factory=dict)

    def tolerance(self, output: str) -> Tolerance:
        """The tolerance of the output of that name."""
        return self.outputs.get(output) or Tolerance(atol=self.atol, rtol=self.rtol)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says.

    Args:
        model: name under which it was published first.
        version: number under which it was published first.
        created: UTC, ISO 8601.
        files: every file of the version folder but the manifest, by relative POSIX path.
        golden: examples to replay before the version serves; empty means that nothing is proved.
        provenance: where it comes from: recipe, data, commit, library versions, parity.
        metrics: held-out metrics of the training run.
        format: of the manifest itself.
    """

    model: str
    version: int
    created: str
    files: Mapping[str, FileRecord]
    golden: tuple[GoldenSet, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """Sorted, indented, one trailing newline: readable, and equal for equal content.

        Raises:
            ValueError: a metric or provenance value is NaN, infinite, or has no JSON form.
        """
        return json.dumps(asdict(self), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Manifest":
        """The inverse of `to_json`.

        Raises:
            InvalidManifest: not JSON, an unknown format, or a field missing or wrong; the message names it.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise InvalidManifest(f"{MANIFEST_FILE} is not JSON: {exc}") from exc
        return _manifest(_Fields(content, "the manifest"))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a version folder, or None when it has none.

    Raises:
        InvalidManifest: there is one and it cannot be used.
    """
    try:
        with open_regular(folder / MANIFEST_FILE) as file:
            content = file.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise InvalidManifest(f"{MANIFEST_FILE} cannot be read: {exc.strerror or exc}") from exc
    if len(content) > MANIFEST_BYTES_MAX:
        raise InvalidManifest(f"{MANIFEST_FILE} is larger than {MANIFEST_BYTES_MAX} bytes")
    try:
        return Manifest.from_json(content.decode())
    except UnicodeDecodeError as exc:
        raise InvalidManifest(f"{MANIFEST_FILE} is not UTF-8: {exc}") from exc


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put the manifest into a version folder whose other files are on disk: written beside, flushed, renamed.

    Raises:
        ValueError: it has no JSON form.
        OSError: the disk refused.
    """
    text = manifest.to_json()
    beside = folder / f".{MANIFEST_FILE}.part"
    beside.write_text(text, encoding="utf-8")
    fsync(beside)
    beside.rename(folder / MANIFEST_FILE)
    fsync(folder)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file below `folder` but the manifest, by relative POSIX path, in order of path.

    A published folder was not changed as long as this equals `files` of its manifest.

    Raises:
        OSError: a file cannot be read, or is neither a regular file nor a folder (a link, a pipe).
    """
    records = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise OSError(f"{path} is a symbolic link; a version folder holds its own files")
        relative = path.relative_to(folder).as_posix()
        if relative != MANIFEST_FILE and not path.is_dir():
            records[relative] = _record(path)
    return records


@contextmanager
def open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading, and nothing else: a pipe or a device in its place cannot make us wait.

    Raises:
        OSError: there is none, or it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        yield file


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(path: Path) -> FileRecord:
    with open_regular(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(sha256=sha256, bytes=os.fstat(file.fileno()).st_size)


class _Fields:
    """A JSON object being read; every complaint says which field of which object."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise InvalidManifest(f"{where} must be an object, got {type(content).__name__}")
        self.content = content
        self.where = where

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        value = self.content.get(name, default)
        if value is None:
            raise InvalidManifest(f"{self.where} lacks {name!r}")
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidManifest(f"{name!r} of {self.where} must be {kind.__name__}, got {value!r:.80}")
        return value

    def objects(self, name: str) -> "dict[str, _Fields]":
        return {key: _Fields(value, f"{name}[{key!r}]") for key, value in self.get(name, dict, {}).items()}


def _manifest(fields: _Fields) -> Manifest:
    number = fields.get("format", int)
    if number != FORMAT:
        raise InvalidManifest(
            f"{MANIFEST_FILE} has format {number}, and this program reads format {FORMAT}; "
            "upgrade the server, or publish with the matching forwardpass-train"
        )
    files = {_inside(name): _file_record(record) for name, record in fields.objects("files").items()}
    if not files:
        raise InvalidManifest(f"{MANIFEST_FILE} lists no files")
    golden = [_Fields(entry, f"golden[{i}]") for i, entry in enumerate(fields.get("golden", list, []))]
    return Manifest(
        model=fields.get("model", str),
        version=fields.get("version", int),
        created=fields.get("created", str),
        files=files,
        golden=tuple(_golden_set(entry, files) for entry in golden),
        provenance=fields.get("provenance", dict, {}),
        metrics=fields.get("metrics", dict, {}),
    )


def _file_record(fields: _Fields) -> FileRecord:
    sha256, size_bytes = fields.get("sha256", str), fields.get("bytes", int)
    if not _SHA256.fullmatch(sha256):
        raise InvalidManifest(f"'sha256' of {fields.where} must be 64 hexadecimal digits, got {sha256!r:.80}")
    if size_bytes < 0:
        raise InvalidManifest(f"'bytes' of {fields.where} must not be negative, got {size_bytes}")
    return FileRecord(sha256=sha256, bytes=size_bytes)


def _golden_set(fields: _Fields, files: Mapping[str, FileRecord]) -> GoldenSet:
    folder = _inside(fields.get("folder", str))
    # Which inputs an example must bring only the model knows (some take none); `prove` asks it.
    if f"{folder}/output_0.pb" not in files:
        raise InvalidManifest(f"{fields.where} is in {folder!r}, and 'files' has no {folder}/output_0.pb")
    outputs = {name: _tolerance(entry) for name, entry in fields.objects("outputs").items()}
    overall = _tolerance(fields)
    return GoldenSet(folder=folder, atol=overall.atol, rtol=overall.rtol, outputs=outputs)


def _tolerance(fields: _Fields) -> Tolerance:
    atol, rtol = fields.get("atol", float), fields.get("rtol", float)
    for name, value in (("atol", atol), ("rtol", rtol)):
        if not (math.isfinite(value) and value >= 0):
            raise InvalidManifest(f"{name!r} of {fields.where} must be finite and not negative, got {value}")
    return Tolerance(atol=atol, rtol=rtol)


def _inside(relative: str) -> str:
    """The path itself, once it is known to stay inside the version folder."""
    path = PurePosixPath(relative)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in relative or path.as_posix() != relative:
        raise InvalidManifest(
            f"{MANIFEST_FILE} names {relative!r:.200}, which is no plain path inside the version folder"
        )
    return relative
