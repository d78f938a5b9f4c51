"""Leases: counted, released once, and heard of when the last is gone."""

import threading

import pytest

from forwardpass_server.errors import IllegalTransition
from forwardpass_server.lifecycle.leases import Lease, Leases


def acquired(leases: Leases[str]) -> Lease[str]:
    lease = leases.acquire()
    assert lease is not None
    return lease


def test_a_lease_names_its_version_and_is_counted_until_released() -> None:
    leases = Leases("v1")
    lease = acquired(leases)
    assert (lease.version, leases.held) == ("v1", 1)
    lease.release()
    assert leases.held == 0


def test_a_context_releases_even_when_its_body_raises() -> None:
    leases = Leases("v1")
    with pytest.raises(ZeroDivisionError), acquired(leases) as lease:
        raise ZeroDivisionError(lease.version)
    assert leases.held == 0


def test_a_second_release_is_refused_and_counts_nothing() -> None:
    leases = Leases("v1")
    first, second = acquired(leases), acquired(leases)
    first.release()
    with pytest.raises(IllegalTransition, match="twice"):
        first.release()
    assert leases.held == 1
    second.release()


def test_closed_leases_grant_no_more() -> None:
    leases = Leases("v1")
    leases.close(lambda: None)
    assert leases.acquire() is None


def test_drained_at_once_when_nobody_holds_one() -> None:
    heard: list[str] = []
    Leases("v1").close(lambda: heard.append("drained"))
    assert heard == ["drained"]


def test_drained_is_heard_once_and_only_after_the_last_release() -> None:
    heard: list[str] = []
    leases = Leases("v1")
    held = [acquired(leases) for _ in range(3)]
    leases.close(lambda: heard.append("drained"))
    for lease in held[:2]:
        lease.release()
    assert heard == []
    held[2].release()
    assert heard == ["drained"]


def test_nothing_is_heard_of_a_count_of_zero_before_closing() -> None:
    heard: list[str] = []
    leases = Leases("v1")
    acquired(leases).release()
    assert heard == []
    leases.close(lambda: heard.append("drained"))
    assert heard == ["drained"]


def test_closing_twice_is_refused() -> None:
    leases = Leases("v1")
    leases.close(lambda: None)
    with pytest.raises(IllegalTransition):
        leases.close(lambda: None)


def test_many_threads_lose_no_count_and_drain_exactly_once() -> None:
    heard: list[str] = []
    leases = Leases("v1")
    granted: list[int] = []
    start = threading.Barrier(9)

    def work() -> None:
        start.wait()
        count = 0
        while (lease := leases.acquire()) is not None:
            count += 1
            lease.release()
        granted.append(count)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    leases.close(lambda: heard.append("drained"))
    for thread in threads:
        thread.join()
    assert len(granted) == 8
    assert heard == ["drained"]
    assert leases.held == 0
