"""Where data files live: the user's own folder first, then the cache, then the network. None is used unverified."""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from os import environ
from pathlib import Path

from forwardpass_training.data.download import OnProgress, download, sha256_of
from forwardpass_training.errors import DataError, DownloadFailed, HashMismatch

DATA_DIR_VARIABLE = "FORWARDPASS_DATA_DIR"

Progress = Callable[[str], AbstractContextManager[OnProgress | None]]
"""Opens a progress display with a title, and gives what to call as bytes arrive."""


@dataclass(frozen=True)
class RemoteFile:
    """A file known by its hash.

    Attributes:
        name: its path below a data folder, as `mnist/train-images-idx3-ubyte.gz`.
        size_bytes: exactly.
        sha256: hex.
        urls: where to fetch it, best first.
    """

    name: str
    size_bytes: int
    sha256: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class DataStore:
    """Finds files by hash.

    Attributes:
        cache: files are downloaded into it; created when first needed.
        folder: searched first and never written to; None: there is none.
        progress: how downloads are shown; quiet unless told.
    """

    cache: Path
    folder: Path | None = None
    progress: Progress = lambda _title: nullcontext()

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = environ, progress: Progress | None = None) -> "DataStore":
        """`FORWARDPASS_DATA_DIR` as the folder; `$XDG_CACHE_HOME/forwardpass` (or `~/.cache/forwardpass`) as the cache.

        Raises:
            DataError: `FORWARDPASS_DATA_DIR` is not a folder.
        """
        cache_home = variables.get("XDG_CACHE_HOME", "")
        # the XDG specification says to ignore a relative path
        cache = Path(cache_home) if Path(cache_home).is_absolute() else Path.home() / ".cache"
        folder = Path(variables[DATA_DIR_VARIABLE]) if variables.get(DATA_DIR_VARIABLE) else None
        if folder and not folder.is_dir():
            raise DataError(f"{DATA_DIR_VARIABLE} is {str(folder)!r}, which is not a folder; correct or unset it")
        store = cls(cache / "forwardpass", folder)
        return cls(store.cache, folder, progress) if progress else store

    def path(self, file: RemoteFile) -> Path:
        """A verified local copy of `file`, downloaded when there is none.

        Raises:
            HashMismatch: the copy in `folder` is another file.
            DownloadFailed: no copy anywhere; the text says how to bring one by hand.
            DataError: the cache cannot be written.
        """
        if self.folder and (own := self.folder / file.name).is_file():
            if (sha256 := sha256_of(own)) != file.sha256:
                raise HashMismatch(
                    f"{own} has SHA-256 {sha256}, not {file.sha256}: it is another file, or a damaged one; "
                    f"replace or delete it (it then is downloaded), or point {DATA_DIR_VARIABLE} elsewhere"
                )
            return own
        cached = self.cache / file.name
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with _locked(cached.with_name(cached.name + ".lock")):
                if not cached.is_file() or sha256_of(cached) != file.sha256:
                    self._download(file, cached)
        except OSError as exc:
            raise DataError(
                f"cannot keep {file.name} in the cache {self.cache} ({exc}); make it writable, set XDG_CACHE_HOME, "
                f"or put the file into a folder and name that in {DATA_DIR_VARIABLE}"
            ) from exc
        return cached

    def _download(self, file: RemoteFile, cached: Path) -> None:
        try:
            with self.progress(f"downloading {file.name}") as on_progress:
                download(file.urls, cached, size_bytes=file.size_bytes, sha256=file.sha256, on_progress=on_progress)
        except DownloadFailed as exc:
            raise DownloadFailed(
                f"cannot download {file.name} ({file.size_bytes:,} bytes):\n{exc}\n"
                f"With no network here: fetch it elsewhere, put it at {cached}, "
                f"or at DIR/{file.name} and set {DATA_DIR_VARIABLE}=DIR."
            ) from exc


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, so that two runs never write one partial download; the kernel frees it if we die."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
