"""Free memory goes back to the system, and only when that disturbs nobody."""

import platform
import subprocess
import sys

import pytest

from forwardpass_server import memory


class Process:
    """A process whose memory is set by hand; a trim leaves what is in use."""

    def __init__(self) -> None:
        self.resident = self.in_use = 100
        self.memory = memory.Memory(lambda: self.resident, self.trim)
        self.memory.tend(idle=True)

    def trim(self) -> None:
        self.resident = self.in_use

    def looks(self, count: int) -> list[bool]:
        """Which of so many looks give memory back."""
        return [self.memory.tend(idle=True) for _ in range(count)]


def test_nothing_is_given_back_while_somebody_is_served() -> None:
    process = Process()
    process.resident = 1000
    assert not any(process.memory.tend(idle=False) for _ in range(10))
    assert process.memory.tend(idle=True)
    assert process.resident == 100


def test_memory_that_has_grown_is_given_back_at_once() -> None:
    process = Process()
    process.resident = 103
    assert process.looks(1) == [True]
    assert process.resident == 100


def test_memory_that_has_not_grown_is_given_back_now_and_then() -> None:
    process = Process()
    process.resident = 102
    assert process.looks(8) == [False, False, False, True] * 2


def test_memory_that_was_in_use_when_it_was_looked_at_goes_back_later() -> None:
    process = Process()
    process.resident = process.in_use = 1000
    assert process.looks(1) == [True]
    process.in_use = 100  # freed, and kept by the C library
    process.looks(memory.LOOKS_BETWEEN)
    assert process.resident == 100


def test_a_library_that_cannot_trim_is_left_alone() -> None:
    assert not memory.Memory(lambda: 1000, None).tend(idle=True)


def test_this_process_has_a_size_and_can_be_trimmed_where_the_library_can() -> None:
    assert memory.resident_bytes() > 1 << 20
    trim = memory.trimmer()
    assert trim is None or trim() in (0, 1)


ARENAS = """
import ctypes, os, threading
from forwardpass_server import memory

print(memory.share_one_arena(os.environ), flush=True)
libc = ctypes.CDLL(None)
together = threading.Barrier(4)

def allocate():
    together.wait()
    for _ in range(200):
        libc.free(ctypes.c_void_p(libc.malloc(5000)))
    together.wait()

libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
@pytest.mark.parametrize(("environment", "said"), [({}, "True"), ({"MALLOC_ARENA_MAX": "2"}, "False")])
def test_threads_share_one_arena_unless_somebody_chose_otherwise(environment: dict[str, str], said: str) -> None:
    run = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.splitlines()[0] == said
    assert run.stdout.count("<heap nr=") == (1 if said == "True" else 2)
