"""What the supervisor decides, the link, and pages merged; no process is started."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from forwardpass_server.config import ServerConfig
from forwardpass_server.errors import StartFailed
from forwardpass_server.link import Link, LinkClosed, NoAnswer
from forwardpass_server.seat import Place, place_in
from forwardpass_server.supervisor import LONGEST_PAUSE_S, STEADY_S, Backoff

WAIT_S = 20.0


def test_the_pause_doubles_with_each_early_death_and_is_bounded() -> None:
    backoff = Backoff()
    pauses = [backoff.pause_s(lived_s=0.0) for _ in range(1000)]
    assert pauses[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_process_that_lived_long_is_started_again_at_once() -> None:
    backoff = Backoff(deaths=12)
    assert backoff.pause_s(lived_s=STEADY_S) == 0.1
    assert backoff.pause_s(lived_s=STEADY_S - 0.1) == 0.2


def test_what_one_process_would_know_alone_is_refused_with_several() -> None:
    ServerConfig(model_repository=Path(), processes=1, enable_shared_memory=True)
    with pytest.raises(StartFailed, match=r"--enable-shared-memory.*--processes=1, got 2"):
        ServerConfig(model_repository=Path(), processes=2, enable_shared_memory=True)


def test_a_process_finds_its_place_once_and_its_children_find_none() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        environment = {"FORWARDPASS_SUPERVISOR": f"3:{theirs.fileno()}", "OTHER": "kept"}
        assert place_in(environment) == Place(3, theirs.fileno())
        assert environment == {"OTHER": "kept"}
        assert place_in(environment) is None


@pytest.mark.parametrize("place", [Place(0, 3), Place(12, 7, again=True)])
def test_a_place_is_read_as_it_was_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.set_inheritable", lambda _descriptor, _inheritable: None)
    assert place_in({"FORWARDPASS_SUPERVISOR": str(place)}) == place


@pytest.mark.parametrize("text", ["", "1", "1:", ":3", "x:3", "1:-1", "1:3:4", "1:3:", "1:3:again:"])
def test_a_place_that_no_supervisor_wrote_is_refused(text: str) -> None:
    with pytest.raises(StartFailed, match="FORWARDPASS_SUPERVISOR"):
        place_in({"FORWARDPASS_SUPERVISOR": text})


class End:
    """One end of a link; answers a question with itself in capitals, and holds back the one that says `wait`."""

    def __init__(self, connection: object) -> None:
        self.notes: list[bytes] = []
        self.told, self.ended, self.go_on = threading.Event(), threading.Event(), threading.Event()
        self.link = Link(connection, on_note=self._note, answer=self._answer, on_end=self.ended.set)  # type: ignore[arg-type]
        self.link.start()

    def _note(self, note: bytes) -> None:
        self.notes.append(note)
        self.told.set()

    def _answer(self, question: bytes) -> bytes:
        if question == b"wait":
            self.go_on.wait(WAIT_S)
        return question.upper()


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    one, other = (End(connection) for connection in Pipe())
    yield one, other
    for end in (one, other):
        end.go_on.set()
        end.link.close()
        assert end.ended.wait(WAIT_S)


def test_both_ends_ask_at_once_and_a_late_answer_holds_up_no_other(ends: tuple[End, End]) -> None:
    one, other = ends
    late = one.link.ask(b"wait")
    assert other.link.ask(b"a").result(WAIT_S) == b"A"
    assert one.link.ask(b"b" * 300_000).result(WAIT_S) == b"B" * 300_000
    assert not late.done()
    other.go_on.set()
    assert late.result(WAIT_S) == b"WAIT"


def test_a_note_arrives(ends: tuple[End, End]) -> None:
    ends[0].link.tell(b"loaded")
    assert ends[1].told.wait(WAIT_S)
    assert ends[1].notes == [b"loaded"]


def test_when_one_end_goes_the_other_learns_it_and_no_question_waits_for_ever(ends: tuple[End, End]) -> None:
    one, other = ends
    waiting = one.link.ask(b"wait")
    other.link.close()
    with pytest.raises(LinkClosed):
        waiting.result(WAIT_S)
    assert one.ended.wait(WAIT_S)
    with pytest.raises(LinkClosed):
        one.link.ask(b"more").result(WAIT_S)
    one.link.tell(b"nobody hears")


def test_nobody_waits_for_an_end_that_does_not_read() -> None:
    ours, theirs = Pipe()
    end = End(ours)
    # More than any socket holds; a test that waited here would never end.
    asked = [end.link.ask(b"q" * 5_000_000) for _ in range(3)]
    assert not any(future.done() for future in asked)
    theirs.close()
    for future in asked:
        with pytest.raises(LinkClosed):
            future.result(WAIT_S)
    assert end.ended.wait(WAIT_S)


def test_a_question_that_cannot_be_answered_says_so(ends: tuple[End, End], caplog: pytest.LogCaptureFixture) -> None:
    one, other = ends
    other.go_on = None  # type: ignore[assignment]
    with pytest.raises(NoAnswer, match="its log says why"):
        one.link.ask(b"wait").result(WAIT_S)
    assert "could not be answered" in caplog.text
    other.go_on = threading.Event()
    assert one.link.ask(b"a").result(WAIT_S) == b"A"


def test_the_supervisor_imports_nothing_that_serves() -> None:
    program = (
        "import sys; import forwardpass_server.supervisor; "
        "print(sorted({'onnxruntime', 'onnx', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
