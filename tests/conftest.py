"""For every test.

A property is about values, so a busy machine does not fail it (Hypothesis' 200 ms would). ONNX Runtime sends nobody
word of what is tested. And a test file that leaves a spinning thread behind fails, instead of slowing every file after
it.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("forwardpass", deadline=None)
settings.load_profile("forwardpass")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

GLANCE_S = 0.1
"""How long threads that a file left behind are watched; one that waits uses nothing in that time."""
WATCHED_S = 3.0
"""How long those that did use something are watched again: they may have been ending."""
BUSY_SHARE = 0.1
"""Share of that time on a core from which on a thread is busy: low, as others may want the cores too."""


@pytest.fixture(scope="module", autouse=True)
def no_busy_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """See the top of this file."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    suspects = [thread for thread, used_s in _use(left, GLANCE_S) if used_s]
    busy = [thread.name for thread, used_s in _use(suspects, WATCHED_S) if used_s > BUSY_SHARE * WATCHED_S]
    if busy:
        pytest.fail(f"{request.node.name} left threads that still use a core: {', '.join(busy)}")


def _use(threads: list[threading.Thread], seconds: float) -> list[tuple[threading.Thread, float]]:
    """CPU seconds of each within the next `seconds`."""
    if not threads:
        return []
    before = [_cpu_s(thread) for thread in threads]
    time.sleep(seconds)
    return [(thread, _cpu_s(thread) - used_s) for thread, used_s in zip(threads, before, strict=True)]


def _cpu_s(thread: threading.Thread) -> float:
    """CPU seconds of a thread of this process so far; 0 where Linux does not tell or the thread has ended."""
    try:
        fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
