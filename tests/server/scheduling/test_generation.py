"""The scheduler of a generator, over a model whose texts can be worked out by hand."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from math import inf

import pytest

from forwardpass_server.errors import (
    CallCancelled,
    DeadlineExpired,
    NotImplementedHere,
    NotReady,
    Overloaded,
    RunFailed,
    Stopping,
)
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.runtime.fake_generator import CHARACTERS, FakeGeneratorRun, fake_generator, right_text
from forwardpass_server.scheduling import generation
from forwardpass_server.scheduling.fake import FakeClock, make_request
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.scheduling.request import Array, Inputs
from forwardpass_server.scheduling.termination import Termination
from forwardpass_server.scheduling.text import Sampling, Text
from forwardpass_server.scheduling.watchdog import Watchdog

WAIT_S = 20.0


class Reader:
    """Remembers its text; may leave, fall behind, stop early, or break."""

    def __init__(self) -> None:
        self.cancelled = False
        self.behind = False
        self.tokens: list[int] = []
        self.pieces: list[int] = []
        self.stop_after: int | None = None
        self.error: Exception | None = None
        self.breaks: str = ""
        self.ended = threading.Event()
        self.calls_after_end = 0
        self.on_piece: Callable[[], None] = lambda: None
        self._last = False
        self._left: list[Callable[[], None]] = []
        self._taken: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if not self.cancelled:
                self._left.append(callback)
                return
        callback()

    def when_taken(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if self.behind:
                self._taken.append(callback)
                return
        callback()

    def take(self, tokens: Sequence[int], *, last: bool) -> int | None:
        self.calls_after_end += self.ended.is_set()
        if self.breaks == "take":
            raise ValueError("broken")
        until = None
        if self.stop_after is not None and len(self.tokens) + len(tokens) >= self.stop_after:
            until = self.stop_after - len(self.tokens)
            tokens = tokens[:until]
        self.tokens += tokens
        self.pieces.append(len(tokens))
        self._last = last or until is not None
        return until

    def say(self) -> None:
        self.calls_after_end += self.ended.is_set()
        if self.breaks == "say":
            raise ValueError("broken")
        self.on_piece()
        if self._last:
            self.ended.set()

    def fail(self, error: Exception) -> None:
        self.calls_after_end += self.ended.is_set()
        self.error = error
        self.ended.set()

    def leave(self) -> None:
        with self._lock:
            self.cancelled = True
            callbacks, self._left = self._left, []
        for callback in callbacks:
            callback()

    def catch_up(self) -> None:
        with self._lock:
            self.behind = False
            callbacks, self._taken = self._taken, []
        for callback in callbacks:
            callback()

    @property
    def text(self) -> str:
        return "".join(CHARACTERS[token] for token in self.tokens)


class Writing:
    """One scheduler, its model, and texts."""

    def __init__(
        self, *, slots: int = 4, max_texts: int = 100, watchdog: Watchdog | None = None, token_s: float = 0.0
    ) -> None:
        self.run = FakeGeneratorRun(fake_generator())
        self.clock = FakeClock()

        def run(inputs: Inputs, outputs: Sequence[int], termination: Termination | None = None, /) -> list[Array]:
            made = self.run(inputs, outputs, termination)
            self.clock.advance(token_s * self.run.steps[-1])
            return made

        self.scheduler = GenerationScheduler(
            "m/1",
            run,
            fake_generator(),
            slots=slots,
            max_texts=max_texts,
            watchdog=watchdog,
            clock_ns=self.clock,
        )
        self.statistics = self.scheduler.statistics

    def text(self, prompt: str, reader: Reader, deadline: float = inf, **sampling: float) -> Text:
        tokens = [CHARACTERS.index(character) for character in prompt]
        return Text(tokens, Sampling(**sampling), reader, Timeline(self.clock()), deadline)  # type: ignore[arg-type]

    def begin(
        self, prompt: str, max_tokens: int = 20, *, deadline: float = inf, reader: Reader | None = None, **rest: float
    ) -> Reader:
        reader = reader or Reader()
        self.scheduler.begin(self.text(prompt, reader, deadline, max_tokens=max_tokens, **rest))
        return reader

    def idle(self) -> None:
        """Everything is let go of, and nothing was said to anybody whose text was over."""
        assert self.scheduler.drain(WAIT_S)
        assert (self.scheduler.active, self.scheduler.depth, self.scheduler.parked) == (0, 0, 0)


@pytest.fixture
def writing() -> Iterator[Callable[..., Writing]]:
    made: list[Writing] = []

    def make(**settings: object) -> Writing:
        made.append(Writing(**settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.run.release()
        assert each.scheduler.close(WAIT_S)


Make = Callable[..., Writing]


def done(reader: Reader) -> Reader:
    assert reader.ended.wait(WAIT_S)
    return reader


# ------------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize("when", ["before", "riding", "waiting", "parked"])
def test_a_reader_who_leaves_frees_its_place_within_a_step(writing: Make, when: str) -> None:
    w = writing(slots=1)
    leaver, other = Reader(), Reader()
    if when == "before":
        leaver.cancelled = True
    w.run.hold()
    if when == "waiting":
        w.begin("b", 40, reader=other)
        assert w.run.wait_runs(1)
    leaver.behind = when == "parked"
    w.begin("a", 10**6, reader=leaver)
    if when in ("riding", "parked"):
        assert w.run.wait_runs(1)
    if when == "parked":
        w.run.release()
        wait_until(lambda: w.scheduler.parked == 1)
    ran = len(w.run.rows)
    leaver.leave()
    w.run.release()
    assert isinstance(done(leaver).error, CallCancelled)
    if when == "waiting":
        done(other)
    else:
        assert len(w.run.rows) <= ran + 1
    w.idle()
    assert w.statistics.snapshot().outcomes["canceled"] == 1
    assert leaver.calls_after_end == 0


def test_a_deadline_ends_a_text_while_it_is_written(writing: Make) -> None:
    w = writing()
    reader = Reader()
    reader.on_piece = lambda: w.clock.advance(1.0)
    w.begin("a", 10**6, reader=reader, deadline=w.clock.now_s + 3.5)
    error = done(reader).error
    assert isinstance(error, DeadlineExpired)
    assert "after" in str(error)
    assert len(reader.pieces) == 4
    w.idle()
    assert w.statistics.snapshot().outcomes["expired"] == 1


def test_a_deadline_that_has_passed_is_refused_and_nothing_is_run(writing: Make) -> None:
    w = writing()
    with pytest.raises(DeadlineExpired):
        w.begin("a", deadline=w.clock.now_s)
    assert w.run.rows == []
    w.idle()


def test_a_reader_who_is_behind_is_left_out_and_the_others_go_on(writing: Make) -> None:
    w = writing(slots=2)
    slow, quick = Reader(), Reader()
    slow.behind = True
    w.begin("s", 300, reader=slow)
    w.begin("q", 300, reader=quick)
    assert done(quick).text == right_text("q", Sampling(max_tokens=300))
    assert len(slow.pieces) == 1
    assert (w.scheduler.parked, w.scheduler.active) == (1, 1)
    assert not slow.ended.is_set()
    slow.catch_up()
    assert done(slow).text == right_text("s", Sampling(max_tokens=300))
    w.idle()


def test_a_reader_who_never_reads_is_given_up_in_the_end(writing: Make) -> None:
    w = writing()
    slow = Reader()
    slow.behind = True
    w.begin("s", 300, reader=slow)
    wait_until(lambda: w.scheduler.parked == 1)
    w.clock.advance(generation.PATIENCE_S - 1)
    done(w.begin("q", 5))
    assert not slow.ended.is_set()
    w.clock.advance(2)
    done(w.begin("q", 5))  # any news: the clock of a test wakes nobody
    assert isinstance(done(slow).error, DeadlineExpired)
    assert "nothing of the text was read for 300 s" in str(slow.error)
    w.idle()


def test_more_than_the_limit_are_told_when_to_come_again(writing: Make) -> None:
    w = writing(slots=2, max_texts=3)
    w.run.hold()
    inside = [w.begin("a", 5) for _ in range(3)]
    with pytest.raises(Overloaded, match="'m/1' is full \\(3 texts are under way\\); retry after") as caught:
        w.begin("b", 5)
    assert caught.value.retry_after_s >= generation.RETRY_AFTER_S
    assert w.statistics.snapshot().outcomes["shed"] == 1
    w.run.release()
    for reader in inside:
        done(reader)
    assert done(w.begin("b", 5)).error is None
    w.idle()


@pytest.mark.parametrize("poison", ["p", "q"])
def test_only_the_text_that_makes_a_run_fail_fails(writing: Make, poison: str) -> None:
    w = writing(slots=8)
    w.run.poison, w.run.error = CHARACTERS.index(poison), RunFailed("secret")
    prompts = [p for p in "bcpdq" if p in {"b", "c", "d", poison}]
    w.run.hold()
    first = w.begin("a", 1)
    assert w.run.wait_runs(1)
    readers = [w.begin(prompt, 1, temperature=0) for prompt in prompts]
    w.run.release()
    done(first)
    for prompt, reader in zip(prompts, readers, strict=True):
        if prompt == poison:
            assert isinstance(done(reader).error, RunFailed)
        else:
            assert done(reader).text == right_text(prompt, Sampling(max_tokens=1, temperature=0))
    w.idle()
    assert w.statistics.snapshot().outcomes["failed"] == 1
    assert w.statistics.snapshot().failed_executions >= 2


def test_texts_beside_one_that_fails_in_the_middle_go_on_rightly(writing: Make) -> None:
    w = writing(slots=8)
    # Tokens are fed at the beginning of each run: a poisoned one is met by those whose text holds it just there.
    w.run.poison, w.run.error = CHARACTERS.index("x"), RunFailed("x")
    prompts = [a + b for a in "abcdefgh" for b in "ijkl"]
    readers = {prompt: w.begin(prompt, 200, seed=9) for prompt in prompts}
    failed = 0
    for prompt, reader in readers.items():
        right = right_text(prompt, Sampling(max_tokens=200, seed=9))
        if done(reader).error is None:
            assert reader.text == right
        else:
            failed += 1
            assert right.startswith(reader.text)
            assert reader.text.endswith("x")
    assert 0 < failed < len(prompts)
    w.idle()


@pytest.mark.parametrize("where", ["take", "say"])
def test_a_reader_that_breaks_harms_nobody_else(writing: Make, where: str, caplog: pytest.LogCaptureFixture) -> None:
    w = writing()
    broken = Reader()
    broken.breaks = where
    w.run.hold()
    w.begin("a", 300, reader=broken)
    other = w.begin("b", 300)
    w.run.release()
    assert isinstance(done(broken).error, ValueError)
    assert done(other).text == right_text("b", Sampling(max_tokens=300))
    w.idle()


def test_a_reader_that_breaks_at_its_last_piece_is_told_so(writing: Make, caplog: pytest.LogCaptureFixture) -> None:
    w = writing()
    broken = Reader()
    broken.breaks = "say"
    w.begin("a", 1, reader=broken)
    assert isinstance(done(broken).error, ValueError)
    w.idle()
    assert sum(w.statistics.snapshot().outcomes.values()) == 1


def test_tokens_that_are_none_fail_the_text_and_not_the_server(writing: Make) -> None:
    w = writing()
    wrong = w.begin("a", 5, temperature=0, top_k=0)
    done(wrong)
    w.run._generator = fake_generator([*CHARACTERS, *"ABCDEFGH"])  # a model that writes beyond its vocabulary
    wrong = w.begin("a", 2000, seed=3)
    assert isinstance(done(wrong).error, RunFailed)
    assert "not tokens of its vocabulary" in str(wrong.error)
    w.idle()


def test_a_run_without_end_is_ended_and_the_next_text_is_written(writing: Make) -> None:
    watchdog = Watchdog(1.0, clock_ns=lambda: 0)
    w = writing(watchdog=watchdog)
    watchdog._clock_ns = w.clock
    w.run.hold()
    stuck = w.begin("a", 5)
    assert w.run.wait_runs(1)
    watchdog.look()
    w.clock.advance(2.0)
    watchdog.look()
    assert isinstance(done(stuck).error, DeadlineExpired)
    w.run.release()
    assert done(w.begin("b", 5)).error is None
    w.idle()


def test_closing_waits_for_texts_and_then_ends_them_with_a_clear_word(writing: Make) -> None:
    w = writing(slots=1)
    parked = Reader()
    parked.behind = True
    w.begin("p", 300, reader=parked)
    wait_until(lambda: w.scheduler.parked == 1)
    w.run.hold()
    riding = w.begin("a", 300)
    assert w.run.wait_runs(2)
    waiting = w.begin("b", 300)
    assert w.scheduler.close(0.01)
    for reader in (parked, riding, waiting):
        assert isinstance(done(reader).error, Stopping)
        assert "unloaded before the text was at its end" in str(reader.error)
        assert reader.calls_after_end == 0
    with pytest.raises(NotReady, match="being unloaded"):
        w.begin("c")
    assert w.scheduler.inflight == 0


def test_closing_lets_a_text_come_to_its_end(writing: Make) -> None:
    w = writing()
    w.run.hold()
    reader = w.begin("a", 300)
    assert w.run.wait_runs(1)
    closing = threading.Thread(target=w.scheduler.close, args=(WAIT_S,))
    closing.start()
    w.run.release()
    assert done(reader).text == right_text("a", Sampling(max_tokens=300))
    closing.join(WAIT_S)
    assert not closing.is_alive()


def test_a_request_that_is_no_text_is_refused(writing: Make) -> None:
    w = writing()
    request, _ = make_request([None], rows=1)
    with pytest.raises(NotImplementedHere, match="writes texts"):
        w.scheduler.submit(request)


# ---------------------------------------------------------------------------------------------------------- bookkeeping


def test_a_crowd_that_comes_and_goes_as_it_likes(writing: Make) -> None:
    """Readers by the hundred: some leave, some fall behind, some stop early; the rest get their texts, right."""
    luck = random.Random(5)
    w = writing(slots=7, max_texts=1000)
    readers: list[tuple[str, Sampling, Reader, str]] = []
    for number in range(300):
        fate = luck.choice(["reads", "reads", "slow", "leaves", "stops"])
        prompt = "".join(luck.choices(CHARACTERS, k=luck.randint(1, 60)))
        sampling = Sampling(
            max_tokens=luck.randint(1, 150),
            temperature=luck.choice([0.0, 0.5, 1.0]),
            top_k=luck.choice([0, 0, 5]),
            top_p=luck.choice([1.0, 0.5]),
            seed=number,
        )
        reader = Reader()
        at = luck.randint(0, 3)
        if fate == "slow":

            def fall_behind(reader: Reader = reader) -> None:
                reader.behind = luck.random() < 0.5
                if reader.behind:
                    threading.Timer(0.0005, reader.catch_up).start()

            reader.on_piece = fall_behind
        elif fate == "leaves":

            def leave(reader: Reader = reader, at: int = at) -> None:
                if len(reader.pieces) > at:
                    reader.leave()

            reader.on_piece = leave
        elif fate == "stops":
            reader.stop_after = luck.randint(1, sampling.max_tokens)
        readers.append((prompt, sampling, reader, fate))
    for prompt, sampling, reader, _ in readers:
        w.scheduler.begin(Text([CHARACTERS.index(c) for c in prompt], sampling, reader, Timeline(w.clock())))
    for prompt, sampling, reader, fate in readers:
        done(reader)
        right = right_text(prompt, sampling)
        if fate == "stops":
            right = right[: reader.stop_after]
        if fate == "leaves":
            assert right.startswith(reader.text)
        else:
            assert (reader.error, reader.text) == (None, right)
        assert reader.calls_after_end == 0
        assert all(reader.pieces)
    w.idle()
    account = w.statistics.snapshot()
    assert sum(account.outcomes.values()) == len(readers)
    assert account.outcomes["ok"] + account.outcomes["canceled"] == len(readers)
    assert max(w.run.rows) == 7
    assert account.rows == sum(w.run.rows) == account.batch_size.total
    assert account.executions == len(w.run.rows)


def test_the_same_seed_is_the_same_text_alone_in_company_and_in_other_steps(writing: Make) -> None:
    sampling = Sampling(max_tokens=400, temperature=0.8, seed=-7)
    alone = done(writing(slots=1).begin("to be", 400, temperature=0.8, seed=-7)).text
    assert alone == right_text("to be", sampling)
    w = writing(slots=64)
    others = [w.begin("abc"[: 1 + number % 3], 1 + number * 7, seed=number) for number in range(63)]
    beside = w.begin("to be", 400, temperature=0.8, seed=-7)
    assert done(beside).text == alone
    for other in others:
        done(other)
    assert len(set(w.run.steps)) > 1


def test_a_short_text_is_not_kept_by_long_ones_nor_by_long_prompts(writing: Make) -> None:
    w = writing(slots=4)
    w.run.hold()
    long = [w.begin("a", 10**5) for _ in range(6)] + [w.begin("b" * 5000, 1) for _ in range(5)]
    assert w.run.wait_runs(1)
    short, over_at = Reader(), []
    short.on_piece = lambda: over_at.append(len(w.run.rows))
    before = len(w.run.rows)
    w.begin("c", 8, reader=short)
    w.run.release()
    done(short)
    for reader in long:
        reader.leave()
    # Twelve texts in four slots take turns: three steps a round, and the short text needs one.
    assert over_at[0] - before <= 3
    w.idle()


def test_steps_of_a_slow_model_become_short_so_that_nobody_waits_long(writing: Make) -> None:
    w = writing(token_s=0.02)
    assert done(w.begin("to be", 200)).text == right_text("to be", Sampling(max_tokens=200))
    assert set(w.run.steps[2:-1]) == {2}  # 0.05 s
    assert w.scheduler.seconds_per_row > 0


def test_figures(writing: Make) -> None:
    w = writing(slots=2)
    w.run.hold()
    one = w.begin("ab", 100)
    assert w.run.wait_runs(1)
    two = w.begin("c", 10)
    assert (w.scheduler.inflight, w.scheduler.depth, w.scheduler.active) == (2, 1, 1)
    w.run.release()
    done(one)
    done(two)
    w.idle()
    account, texts = w.statistics.snapshot(), w.statistics.texts()
    assert texts.tokens == 110
    assert sum(texts.first_piece_seconds.counts) == 2
    assert sum(texts.first_piece_seconds.counts) + sum(texts.between_pieces_seconds.counts) == len(one.pieces) + len(
        two.pieces
    )
    assert account.outcomes["ok"] == account.success.count == account.queue.count == account.compute_infer.count == 2
    assert w.scheduler.queue_bytes == 0


def wait_until(condition: Callable[[], bool]) -> None:
    never = threading.Event()
    for _ in range(20_000):
        if condition():
            return
        never.wait(0.001)
    raise AssertionError("not so after 20 s")
