"""Files over HTTP, from a server on this machine that misbehaves as told."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from forwardpass_training.data.download import download, sha256_of
from forwardpass_training.data.store import DATA_DIR_VARIABLE, DataStore, RemoteFile
from forwardpass_training.errors import DataError, DownloadFailed, HashMismatch

GOOD = bytes(range(256)) * 1_000
SHA256 = hashlib.sha256(GOOD).hexdigest()

Answer = Callable[[BaseHTTPRequestHandler], None]


def _send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, stated: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if stated is None else stated))
    handler.end_headers()
    handler.wfile.write(body)


def good(handler: BaseHTTPRequestHandler) -> None:
    _send(handler, GOOD)


def resumable(handler: BaseHTTPRequestHandler) -> None:
    found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    offset = int(found[1]) if found else 0
    body = GOOD[offset:]
    handler.send_response(206 if found else 200)
    handler.send_header("Content-Length", str(len(body)))
    if found:
        handler.send_header("Content-Range", f"bytes {offset}-{len(GOOD) - 1}/{len(GOOD)}")
    handler.end_headers()
    handler.wfile.write(body)


def wrong_bytes(handler: BaseHTTPRequestHandler) -> None:
    _send(handler, bytes(len(GOOD)))


def truncated(handler: BaseHTTPRequestHandler) -> None:
    _send(handler, GOOD[:100_000], stated=len(GOOD))


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(GOOD)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the caller had enough, which is the point


def missing(handler: BaseHTTPRequestHandler) -> None:
    _send(handler, b"no such file", status=404)


class Mirror:
    """Serves one answer per path, and remembers the Range of every request."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str | None]] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.requests.append((self.path, self.headers.get("Range")))
                mirror.answers[self.path](self)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def url(self, answer: Answer) -> str:
        path = f"/{answer.__name__}"
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    yield mirror
    mirror.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(target: Path, *urls: str) -> None:
    download(urls, target, size_bytes=len(GOOD), sha256=SHA256)


def test_a_good_file_arrives_whole_and_leaves_nothing_beside_it(mirror: Mirror, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    urls = (mirror.url(good),)
    download(
        urls,
        tmp_path / "f",
        size_bytes=len(GOOD),
        sha256=SHA256,
        on_progress=lambda got, size: seen.append((got, size)),
    )
    assert (tmp_path / "f").read_bytes() == GOOD
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert seen[-1] == (len(GOOD), len(GOOD))
    assert seen == sorted(seen)


@pytest.mark.parametrize("bad", [missing, wrong_bytes, endless])
def test_a_bad_mirror_is_passed_over(mirror: Mirror, tmp_path: Path, bad: Answer) -> None:
    fetch(tmp_path / "f", mirror.url(bad), mirror.url(good))
    assert (tmp_path / "f").read_bytes() == GOOD


def test_wrong_bytes_are_never_visible_and_the_reason_names_both_hashes(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=SHA256) as caught:
        fetch(tmp_path / "f", mirror.url(wrong_bytes))
    assert hashlib.sha256(bytes(len(GOOD))).hexdigest() in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_endless_answer_is_cut_off(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="longer than the 256,000 bytes"):
        fetch(tmp_path / "f", mirror.url(endless))
    assert list(tmp_path.iterdir()) == []


def test_every_mirror_is_listed_with_its_reason(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed) as caught:
        fetch(tmp_path / "f", mirror.url(missing), mirror.url(wrong_bytes), "http://127.0.0.1:1/refused")
    text = str(caught.value)
    assert "/missing: HTTP 404" in text
    assert "/wrong_bytes: its SHA-256 is" in text
    assert "/refused: [Errno 111] Connection refused" in text


def test_a_truncated_answer_is_completed_by_the_next_mirror(mirror: Mirror, tmp_path: Path) -> None:
    fetch(tmp_path / "f", mirror.url(truncated), mirror.url(resumable))
    assert (tmp_path / "f").read_bytes() == GOOD
    assert mirror.requests == [("/truncated", None), ("/resumable", "bytes=100000-")]


def test_a_truncated_answer_is_kept_for_the_next_call(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="ended after 100,000 of 256,000 bytes"):
        fetch(tmp_path / "f", mirror.url(truncated))
    assert not (tmp_path / "f").exists()
    assert (tmp_path / "f.part").read_bytes() == GOOD[:100_000]
    fetch(tmp_path / "f", mirror.url(resumable))
    assert (tmp_path / "f").read_bytes() == GOOD
    assert not (tmp_path / "f.part").exists()


def test_a_server_that_ignores_the_range_starts_from_the_beginning(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(GOOD[:5_000])
    fetch(tmp_path / "f", mirror.url(good))
    assert (tmp_path / "f").read_bytes() == GOOD


def test_a_poisoned_beginning_is_thrown_away_and_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"poison" * 100)
    fetch(tmp_path / "f", mirror.url(resumable))
    assert (tmp_path / "f").read_bytes() == GOOD
    assert mirror.requests == [("/resumable", "bytes=600-"), ("/resumable", None)]


@pytest.mark.parametrize("beginning", [GOOD, GOOD + b"more", bytes(len(GOOD))])
def test_a_complete_or_overlong_beginning_ends_well(mirror: Mirror, tmp_path: Path, beginning: bytes) -> None:
    (tmp_path / "f.part").write_bytes(beginning)
    fetch(tmp_path / "f", mirror.url(good))
    assert (tmp_path / "f").read_bytes() == GOOD


# the store


def remote(mirror: Mirror, answer: Answer = good) -> RemoteFile:
    return RemoteFile("set/f.bin", len(GOOD), SHA256, (mirror.url(answer),))


def test_the_own_folder_comes_first_and_is_not_written(mirror: Mirror, tmp_path: Path) -> None:
    own = tmp_path / "own" / "set" / "f.bin"
    own.parent.mkdir(parents=True)
    own.write_bytes(GOOD)
    store = DataStore(tmp_path / "cache", tmp_path / "own")
    assert store.path(remote(mirror)) == own
    assert mirror.requests == []
    assert not (tmp_path / "cache").exists()


def test_another_file_in_the_own_folder_is_refused_not_replaced(mirror: Mirror, tmp_path: Path) -> None:
    own = tmp_path / "own" / "set" / "f.bin"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"tampered")
    with pytest.raises(HashMismatch, match=SHA256) as caught:
        DataStore(tmp_path / "cache", tmp_path / "own").path(remote(mirror))
    assert str(own) in str(caught.value)
    assert own.read_bytes() == b"tampered"
    assert mirror.requests == []


def test_a_download_happens_once(mirror: Mirror, tmp_path: Path) -> None:
    store = DataStore(tmp_path / "cache", tmp_path)
    first, second = store.path(remote(mirror)), store.path(remote(mirror))
    assert first == second == tmp_path / "cache" / "set" / "f.bin"
    assert len(mirror.requests) == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    store = DataStore(tmp_path / "cache")
    path = store.path(remote(mirror))
    path.write_bytes(b"bit rot")
    assert store.path(remote(mirror)).read_bytes() == GOOD
    assert len(mirror.requests) == 2


def test_many_at_once_download_once(mirror: Mirror, tmp_path: Path) -> None:
    store, file = DataStore(tmp_path / "cache"), remote(mirror)
    threads = [threading.Thread(target=store.path, args=(file,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sha256_of(tmp_path / "cache" / "set" / "f.bin") == SHA256
    assert len(mirror.requests) == 1


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    file = RemoteFile("set/f.bin", len(GOOD), SHA256, ("http://127.0.0.1:1/f.bin",))
    with pytest.raises(DownloadFailed) as caught:
        DataStore(tmp_path / "cache").path(file)
    text = str(caught.value)
    assert f"put it at {tmp_path / 'cache' / 'set' / 'f.bin'}" in text
    assert f"{DATA_DIR_VARIABLE}=DIR" in text


def test_a_cache_that_cannot_be_written_says_what_to_do(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        DataStore(tmp_path / "file").path(remote(mirror))


def test_the_environment_is_read_as_documented(tmp_path: Path) -> None:
    variables = {DATA_DIR_VARIABLE: str(tmp_path), "XDG_CACHE_HOME": "/somewhere"}
    assert DataStore.from_environment(variables).folder == tmp_path
    assert DataStore.from_environment(variables).cache == Path("/somewhere/forwardpass")
    home = Path.home() / ".cache" / "forwardpass"
    assert DataStore.from_environment({"XDG_CACHE_HOME": "relative"}).cache == home
    assert DataStore.from_environment({}).cache == home
    assert DataStore.from_environment({}).folder is None


def test_a_data_dir_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        DataStore.from_environment({DATA_DIR_VARIABLE: str(tmp_path / "absent")})
