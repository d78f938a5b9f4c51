"""Free memory goes back to the system, and only when that disturbs nobody."""

import pytest

from forwardpass_server import memory


class Process:
    """A process whose memory is set by hand; a trim leaves `floor` of it."""

    def __init__(self) -> None:
        self.resident = 100
        self.floor = 100
        self.trims = 0
        self.memory = memory.Memory(lambda: self.resident, self.trim)

    def settle(self) -> None:
        """Let it find out what is in use now."""
        while self.memory.tend(idle=True):
            pass
        self.trims = 0

    def trim(self) -> None:
        self.trims += 1
        self.resident = min(self.resident, self.floor)


@pytest.fixture
def process() -> Process:
    process = Process()
    process.settle()
    return process


def test_nothing_is_trimmed_while_somebody_is_served(process: Process) -> None:
    process.resident = 1000
    assert not process.memory.tend(idle=False)
    assert process.trims == 0
    assert process.memory.tend(idle=True)
    assert process.resident == 100


def test_memory_that_did_not_grow_is_left_alone(process: Process) -> None:
    process.resident = 101
    assert not process.memory.tend(idle=True)
    assert process.trims == 0


def test_memory_that_is_in_use_is_not_trimmed_again_and_again(process: Process) -> None:
    process.resident = process.floor = 1000
    assert [process.memory.tend(idle=True) for _ in range(10)] == [True, True, *[False] * 8]


def test_memory_that_was_still_in_use_at_the_first_trim_goes_at_the_second(process: Process) -> None:
    process.resident = process.floor = 1000
    assert process.memory.tend(idle=True)
    process.floor = 100  # freed, and kept by the C library
    assert process.memory.tend(idle=True)
    assert process.resident == 100


def test_growth_counts_from_the_lowest_since(process: Process) -> None:
    process.resident = process.floor = 1000
    process.settle()
    process.resident = process.floor = 100
    assert not process.memory.tend(idle=True)
    process.resident = 500
    assert process.memory.tend(idle=True)
    assert process.resident == 100


def test_a_library_that_cannot_trim_is_left_alone() -> None:
    assert not memory.Memory(lambda: 1000, None).tend(idle=True)


def test_this_process_has_a_size_and_can_be_trimmed_where_the_library_can() -> None:
    assert memory.resident_bytes() > 1 << 20
    trim = memory.trimmer()
    assert trim is None or trim() in (0, 1)
