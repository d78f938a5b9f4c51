"""Shared memory as a weapon: what section 3 of the list says of it, against a server that has it on."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from conformance import models
from conformance.process import IN_FLIGHT, ServerProcess, wait_until
from conformance.wire import Caller, Outcome, ask, invalid, ok, refused, trips, zeros

from forwardpass_proto import grpc_service_pb2 as pb

SHM = Path("/dev/shm")
KEY = f"fp-conformance-{os.getpid()}"
BYTES = 4096

case = pytest.mark.case("shm", "shared memory as a weapon", "INVALID_ARGUMENT or less; nobody else's memory is touched")


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("shm")
    models.publish(folder / "models", "identity_fp32", models.identity(models.IDENTITIES["FP32"]))
    models.publish(folder / "models", "slow", models.slow())
    with ServerProcess(folder / "models", folder / "log", "--enable-shared-memory") as server:
        server.wait_until_ready()
        server.take_baseline()
        yield server
        server.stop()


@pytest.fixture
def memory(server: ServerProcess) -> Iterator[Path]:
    """An object of ours, and after the test no region and no object."""
    path = SHM / KEY
    path.write_bytes(np.arange(BYTES // 4, dtype=np.float32).tobytes())
    yield path
    assert server.caller.call("SystemSharedMemoryUnregister").ok  # of all
    for each in SHM.glob(f"{KEY}*"):
        each.unlink()


def register(caller: Caller, name: str = "r", key: str = KEY, offset: int = 0, size: int = BYTES) -> Outcome:
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    return caller.call("SystemSharedMemoryRegister", request.SerializeToString())


def unregister(caller: Caller, name: str) -> Outcome:
    request = pb.SystemSharedMemoryUnregisterRequest(name=name)
    return caller.call("SystemSharedMemoryUnregister", request.SerializeToString())


def placed(offset: int, size: int, region: str = "r", elements: int = 4) -> pb.ModelInferRequest:
    """A request to identity_fp32 whose input lies in a region."""
    request = ask("identity_fp32", zeros("FP32", (1, elements)))
    del request.raw_input_contents[:]
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_offset"].int64_param = offset
    parameters["shared_memory_byte_size"].int64_param = size
    return request


@case
def test_what_is_registered_is_read(caller: Caller, memory: Path) -> None:
    assert register(caller).ok
    assert ok(caller.infer(placed(8, 16)))["y"].array.tolist() == [[2, 3, 4, 5]]


@case
@pytest.mark.parametrize(
    "key",
    [
        "../etc/passwd",
        "/../x",
        "a/b",
        "/sem.x",
        "sem.x",
        "",
        "/",
        ".",
        "..",
        "x" * 65,
        "x\0y",
        "x\n",
        "％２ｅ",
        "ghost-key",
    ],
)
def test_a_key_that_leads_elsewhere_is_refused(caller: Caller, memory: Path, key: str) -> None:
    outcome = register(caller, key=key)
    assert outcome.code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}, outcome
    assert str(SHM) not in outcome.details, "a path of the server in a message"
    assert len(outcome.details) < 2000


@case
@pytest.mark.parametrize("key", ["forwardpass", "/forwardpass-internal", "forwardpass_0"])
def test_the_servers_own_names_are_refused_whether_there_is_such_a_thing_or_not(
    caller: Caller, memory: Path, key: str
) -> None:
    refused(register(caller, key=key), grpc.StatusCode.INVALID_ARGUMENT)


@case
@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, BYTES + 1),
        (BYTES, 1),
        (1, BYTES),
        ((1 << 64) - 1, 2),
        ((1 << 63), 1 << 63),
        (BYTES - 1, (1 << 64) - 1),
        (0, (1 << 64) - 1),
    ],
)
def test_a_range_beyond_the_object_is_refused_also_where_it_wraps(
    caller: Caller, memory: Path, offset: int, size: int
) -> None:
    invalid(register(caller, offset=offset, size=size))


@case
@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, BYTES + 4), (BYTES, 16), (BYTES - 8, 16), (-4, 16), (-(1 << 63), 16), ((1 << 63) - 1, 16), (0, -16)],
)
def test_a_tensor_beyond_its_region_is_refused_also_where_it_wraps(
    caller: Caller, memory: Path, offset: int, size: int
) -> None:
    assert register(caller).ok
    invalid(caller.infer(placed(offset, size)))


@case
def test_links_and_pipes_are_not_followed(caller: Caller, memory: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(BYTES))
    (SHM / f"{KEY}-link").symlink_to(secret)
    os.mkfifo(SHM / f"{KEY}-pipe")
    for kind in ("link", "pipe"):
        invalid(register(caller, key=f"{KEY}-{kind}"))


@case
def test_an_object_that_its_owner_shrinks_fails_the_request_and_not_the_server(caller: Caller, memory: Path) -> None:
    assert register(caller).ok
    os.truncate(memory, 8)
    invalid(caller.infer(placed(0, 16)))


@case
def test_regions_come_to_an_end_and_room_comes_back(caller: Caller, memory: Path) -> None:
    codes = [register(caller, name=f"r{number}").code for number in range(600)]
    taken = codes.count(grpc.StatusCode.OK)
    assert 1 <= taken <= 512
    assert set(codes[taken:]) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert unregister(caller, "r0").ok
    assert register(caller, name="again").ok


@case
def test_a_region_unregistered_during_a_run_takes_its_answer_all_the_same(
    server: ServerProcess, caller: Caller, memory: Path
) -> None:
    assert register(caller).ok
    request = ask("slow", trips(150_000), outputs=["y"])
    parameters = request.outputs[0].parameters
    parameters["shared_memory_region"].string_param = "r"
    parameters["shared_memory_byte_size"].int64_param = 8
    pending = caller.begin(request)
    wait_until(lambda: server.total(IN_FLIGHT, model="slow") == 1, "it runs")
    assert unregister(caller, "r").ok
    assert pending.outcome().ok
    assert int.from_bytes(memory.read_bytes()[:8], "little") == 150_000
    invalid(caller.infer(placed(0, 16)))


@case
def test_regions_that_come_and_go_under_load_harm_nobody(server: ServerProcess, caller: Caller, memory: Path) -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        with Caller(server.target) as own:
            while not stop.is_set():
                register(own)
                unregister(own, "r")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        outcomes = [caller.infer(placed(8, 16)) for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert {each.code for each in outcomes} <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    assert all(each.outputs["y"].array.tolist() == [[2, 3, 4, 5]] for each in outcomes if each.ok)
