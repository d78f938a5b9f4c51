"""When files count as complete that nothing else declares so."""

from forwardpass_server.lifecycle.repository import Stamp
from forwardpass_server.lifecycle.settling import Settling


class Clocks:
    """Both clocks, in seconds, moved by hand."""

    def __init__(self) -> None:
        self.monotonic = 100.0
        self.wall = 1_000_000.0
        self.settling = Settling(2.0, lambda: self.monotonic, lambda: self.wall)

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def file(self, age_s: float, size: int = 1) -> Stamp:
        return (("model.onnx", size, int((self.wall - age_s) * 1e9), 1),)


def test_old_files_are_settled_at_once() -> None:
    clocks = Clocks()
    assert clocks.settling.settled("m", clocks.file(age_s=2.001))


def test_new_files_are_not_until_they_are_old() -> None:
    clocks = Clocks()
    file = clocks.file(age_s=0.5)
    assert not clocks.settling.settled("m", file)
    clocks.pass_by(1.4)
    assert not clocks.settling.settled("m", file)
    clocks.pass_by(0.2)
    assert clocks.settling.settled("m", file)


def test_the_newest_file_counts() -> None:
    clocks = Clocks()
    assert not clocks.settling.settled("m", (*clocks.file(age_s=100), *clocks.file(age_s=1)))


def test_every_change_begins_the_wait_anew() -> None:
    clocks = Clocks()
    for size in range(10):
        assert not clocks.settling.settled("m", clocks.file(age_s=0, size=size))
        clocks.pass_by(1.9)
    assert not clocks.settling.settled("m", clocks.file(age_s=0, size=10))


def test_a_file_from_the_future_settles_when_it_has_been_watched_for_long_enough() -> None:
    clocks = Clocks()
    file = clocks.file(age_s=-3600)
    assert not clocks.settling.settled("m", file)
    clocks.pass_by(2.0)
    assert clocks.settling.settled("m", file)


def test_setting_the_wall_clock_back_does_not_unsettle_what_was_watched() -> None:
    clocks = Clocks()
    file = clocks.file(age_s=0)
    assert not clocks.settling.settled("m", file)
    clocks.pass_by(2.0)
    clocks.wall -= 86400
    assert clocks.settling.settled("m", file)


def test_keys_are_apart_and_forgotten_ones_begin_anew() -> None:
    clocks = Clocks()
    file = clocks.file(age_s=-3600)
    clocks.settling.settled("a", file)
    clocks.pass_by(2.0)
    assert clocks.settling.settled("a", file)
    assert not clocks.settling.settled("b", file)
    clocks.settling.forget("a")
    assert not clocks.settling.settled("a", file)


def test_no_files_are_settled_files() -> None:
    assert Clocks().settling.settled("m", ())
