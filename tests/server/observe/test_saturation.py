"""The figure to scale by: linear in what is asked, above 1 when it is too much, blind to nothing."""

import pytest

from forwardpass_server.errors import CallCancelled, DeadlineExpired, InvalidRequest, Overloaded, RunFailed
from forwardpass_server.observe.saturation import WINDOW_S, Demand, RecentLag, Saturation
from forwardpass_server.observe.statistics import VersionStatistics
from forwardpass_server.observe.timeline import Timeline


class Rider:
    timeline = Timeline(1)


class Serving:
    """One instance that takes 2 ms a row."""

    def __init__(self) -> None:
        self.statistics = VersionStatistics()
        self.depth = 0
        self.instances = 1
        self.seconds_per_row = 0.002

    def run(self, requests: int, rows: int) -> None:
        self.statistics.ran([Rider()] * requests, rows, 0, 0, 1)


def test_rows_that_ran_count_in_whatever_batches_they_rode() -> None:
    alone, together = Serving(), Serving()
    for _ in range(8):
        alone.run(1, 4)
    together.run(8, 32)
    for serving in (alone, together):
        demand = Demand()
        demand.sample(serving)
        assert demand.seconds == pytest.approx(32 * 0.002)


def test_what_was_refused_was_asked_for_too_and_a_mistake_was_not() -> None:
    serving = Serving()
    serving.run(10, 30)
    demand = Demand()
    demand.sample(serving)
    for error in (
        Overloaded("x", retry_after_s=1),
        DeadlineExpired("x"),
        CallCancelled("x"),
        RunFailed("x"),
        InvalidRequest("x"),
    ):
        serving.statistics.refused(error)
    serving.depth = 6
    demand.sample(serving)
    assert demand.seconds == pytest.approx((30 + 4 * 3 + 6 * 3) * 0.002)


def test_a_request_that_waited_and_then_ran_is_asked_for_once() -> None:
    serving = Serving()
    demand = Demand()
    serving.depth = 5
    demand.sample(serving)
    serving.depth = 0
    demand.sample(serving)  # taken, and not yet counted
    serving.run(5, 5)
    demand.sample(serving)
    assert demand.seconds == pytest.approx(5 * 0.002)


def test_answers_from_the_cache_ask_nothing_of_an_instance() -> None:
    serving = Serving()
    serving.statistics.found(1, 1, 1)
    demand = Demand()
    demand.sample(serving)
    assert demand.seconds == 0


def test_the_ratio_is_that_of_the_busiest_and_of_the_window() -> None:
    saturation = Saturation()
    one, other = Demand(), Demand()
    for second in range(61):
        one.seconds = 0.5 * second
        other.seconds = 1.8 * second  # of two instances
        saturation.sample(float(second), 0.3 * second, [(one, 1), (other, 2)])
    assert saturation.ratio == pytest.approx(0.9)
    for second in range(61, 61 + int(WINDOW_S)):
        one.seconds += 2.5
        saturation.sample(float(second), 0.3 * second, [(one, 1), (other, 2)])
    assert saturation.ratio == pytest.approx(2.5), "more than it can do; and what was before the window is forgotten"
    saturation.sample(100.0, 30.0, [])
    assert 0 < saturation.ratio < 1, "a version that was unloaded asks for nothing; the loop remains"


def test_nothing_is_asked_by_two_looks_at_one_time_nor_by_an_ensemble() -> None:
    saturation = Saturation()
    for _ in range(2):
        saturation.sample(5.0, 1.0, [(Demand(seconds=3.0), 0)])
    assert saturation.ratio == 0


def test_a_long_round_is_seen_by_every_scraper_and_forgotten_after_two_windows() -> None:
    lag = RecentLag()
    assert lag.read(0.0, 0.5) == (0.5, False)
    assert lag.read(1.0, 0.7) == (0.7, False)
    assert lag.read(2.0, 0.7) == (0.7, False)
    assert lag.read(WINDOW_S, 0.7) == (0.7, True)
    assert lag.read(WINDOW_S + 1, 0.1) == (0.7, False)
    assert lag.read(2 * WINDOW_S, 0.1) == (0.7, True)
    assert lag.read(2 * WINDOW_S + 1, 0.0) == (0.1, False)
