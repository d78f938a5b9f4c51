"""Regions of shared memory: what may be registered, what is refused, and clients who pull the ground away."""

import os
from pathlib import Path

import pytest

from forwardpass_server.errors import AlreadyExists, InvalidRequest, NotFound, Overloaded, TooLarge
from forwardpass_server.tensors import shared_memory
from forwardpass_server.tensors.shared_memory import SharedMemory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(bytes(range(100)))
    return tmp_path


@pytest.fixture
def memory(folder: Path) -> SharedMemory:
    return SharedMemory(tensor_bytes_max=64, folder=folder)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_registered_is_read_where_it_lies(memory: SharedMemory) -> None:
    memory.register("r", "/key", 10, 50, "peer")
    assert bytes(memory.part("r", 5, 3, "x").read()) == bytes([15, 16, 17])
    assert bytes(memory.part("r", 50, 0, "x").read()) == b""


def test_what_is_written_lies_where_it_is_expected(memory: SharedMemory, folder: Path) -> None:
    memory.register("r", "key", 10, 50, "peer")
    memory.part("r", 40, 10, "y").write(memoryview(b"\xff" * 4), "y")
    content = (folder / "key").read_bytes()
    assert content[50:54] == b"\xff" * 4
    assert content[:50] + content[54:] == bytes([*range(50), *range(54, 100)])


@pytest.mark.parametrize(
    "key",
    ["", "/", "//key", "../key", "a/b", "/sem.x", "key.", "ke y", "key\0", "k" * 65, "ключ", ".", "..", "key\n"],
)
def test_a_key_that_could_lead_elsewhere_is_refused(memory: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidRequest, match="not allowed"):
        memory.register("r", key, 0, 1, "peer")


@pytest.mark.parametrize("key", ["forwardpass", "/forwardpass-internal", "forwardpass_1"])
def test_the_servers_own_prefix_is_refused(memory: SharedMemory, folder: Path, key: str) -> None:
    (folder / key.lstrip("/")).write_bytes(b"secret")
    with pytest.raises(InvalidRequest, match="reserved"):
        memory.register("r", key, 0, 1, "peer")


@pytest.mark.parametrize(
    ("offset", "nbytes", "words"),
    [
        (0, 0, "no bytes"),
        (0, 101, "would end at 101"),
        (100, 1, "would end at 101"),
        (2**64 - 1, 2, "would end at"),
        (2**64 - 8, 2**64 - 1, "would end at"),
        (2**63, 2**63, "would end at"),
    ],
)
def test_a_range_outside_the_object_is_refused(memory: SharedMemory, offset: int, nbytes: int, words: str) -> None:
    before = descriptors()
    with pytest.raises(InvalidRequest, match=words):
        memory.register("r", "key", offset, nbytes, "peer")
    assert descriptors() == before


@pytest.mark.parametrize(
    ("name", "words"), [("", "1 to 128"), ("r" * 129, "1 to 128, got 129".replace("to 128,", "to 128 characters,"))]
)
def test_a_name_that_cannot_be_is_refused(memory: SharedMemory, name: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        memory.register(name, "key", 0, 1, "peer")


def test_links_pipes_folders_and_second_names_are_refused(memory: SharedMemory, folder: Path) -> None:
    (folder / "target").write_bytes(bytes(8))
    (folder / "link").symlink_to(folder / "target")
    (folder / "hard").hardlink_to(folder / "target")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    before = descriptors()
    for key, words in [
        ("link", "it is a link"),
        ("hard", "not a plain"),
        ("folder", "cannot be opened"),
        ("pipe", "not a plain"),
        ("nothing", "cannot be opened: No such file"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            memory.register("r", key, 0, 1, "peer")
    assert descriptors() == before


def test_an_object_of_another_user_is_refused(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InvalidRequest, match=f"belongs to user {os.getuid()}; the server is user {os.getuid() + 1}"):
        memory.register("r", "key", 0, 1, "peer")


def test_a_name_is_registered_once_and_again_when_it_is_free(memory: SharedMemory) -> None:
    memory.register("r", "key", 0, 8, "peer")
    with pytest.raises(AlreadyExists, match="'r' already exists"):
        memory.register("r", "key", 0, 4, "peer")
    assert memory.status("r")[0].nbytes == 8
    memory.unregister("r")
    memory.register("r", "key", 0, 4, "peer")
    assert [(region.name, region.nbytes) for region in memory.status("")] == [("r", 4)]


def test_unregistering_closes_what_nobody_uses(memory: SharedMemory) -> None:
    before = descriptors()
    for name in "abc":
        memory.register(name, "key", 0, 8, "peer")
    assert descriptors() == before + 3
    memory.unregister("a")
    memory.unregister("a")  # known or not
    assert [region.name for region in memory.status("")] == ["b", "c"]
    memory.unregister("")
    assert descriptors() == before
    with pytest.raises(NotFound, match="'b' is not registered"):
        memory.status("b")


def test_a_region_unregistered_during_a_run_is_there_until_the_run_ends(memory: SharedMemory, folder: Path) -> None:
    before = descriptors()
    memory.register("r", "key", 0, 8, "peer")
    part = memory.part("r", 0, 8, "y")
    memory.unregister("")
    part.write(memoryview(b"\x01" * 8), "y")
    assert (folder / "key").read_bytes()[:9] == b"\x01" * 8 + b"\x08"
    with pytest.raises(InvalidRequest, match="not registered"):
        memory.part("r", 0, 8, "y")
    del part
    assert descriptors() == before


@pytest.mark.parametrize("count", [0, 5])
def test_an_object_that_its_client_shrinks_is_an_error_and_no_crash(
    memory: SharedMemory, folder: Path, count: int
) -> None:
    memory.register("r", "key", 0, 50, "peer")
    os.truncate(folder / "key", count)
    with pytest.raises(InvalidRequest, match=f"has shrunk: {count} of 8 bytes"):
        memory.part("r", 0, 8, "x").read()


def test_what_was_read_does_not_change_under_the_model(memory: SharedMemory, folder: Path) -> None:
    memory.register("r", "key", 0, 50, "peer")
    data = memory.part("r", 0, 4, "x").read()
    (folder / "key").write_bytes(bytes([9] * 100))
    assert bytes(data) == bytes([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [(0, 51), (50, 1), (51, 0), (2**64, 1), (49, 2**64)],
    ids=["long", "end", "past", "far", "wrap"],
)
def test_a_part_outside_its_region_is_refused(memory: SharedMemory, offset: int, nbytes: int) -> None:
    memory.register("r", "key", 10, 50, "peer")
    with pytest.raises(InvalidRequest, match="pass the end of shared memory region 'r', which has 50"):
        memory.part("r", offset, nbytes, "x")


def test_a_tensor_larger_than_any_queue_takes_is_refused_before_it_is_read(memory: SharedMemory) -> None:
    memory.register("r", "key", 0, 100, "peer")
    with pytest.raises(TooLarge, match="65 bytes in shared memory; a tensor has at most 64"):
        memory.part("r", 0, 65, "x")


def test_an_output_larger_than_its_part_is_refused(memory: SharedMemory, folder: Path) -> None:
    memory.register("r", "key", 0, 100, "peer")
    with pytest.raises(InvalidRequest, match="output 'y' has 5 bytes; its part of shared memory region 'r' has 4"):
        memory.part("r", 0, 4, "y").write(memoryview(bytes(5)), "y")
    assert (folder / "key").read_bytes() == bytes(range(100))


def test_one_connection_does_not_take_all_regions(memory: SharedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "REGIONS_MAX", 5)
    monkeypatch.setattr(shared_memory, "REGIONS_OF_ONE_MAX", 3)
    for number in range(3):
        memory.register(f"a{number}", "key", 0, 1, "a")
    with pytest.raises(Overloaded, match="3 shared memory regions are registered, 3 by this connection"):
        memory.register("a3", "key", 0, 1, "a")
    for number in range(2):
        memory.register(f"b{number}", "key", 0, 1, "b")
    with pytest.raises(Overloaded, match="5 shared memory regions"):
        memory.register("c", "key", 0, 1, "c")
    memory.unregister("b0")
    memory.register("c", "key", 0, 1, "c")
