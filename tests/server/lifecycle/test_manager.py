"""The repository thread, with loads that a test holds, fails or lets through. No model, no ONNX Runtime."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forwardpass_server.errors import (
    InvalidRequest,
    LoadFailed,
    NotFound,
    NotReady,
    Overloaded,
    StartFailed,
    Stopping,
)
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.manager import Enter, ModelManager, Watch
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.lifecycle.orders import ORDERS_MAX
from forwardpass_server.lifecycle.repository import VersionFolder
from forwardpass_server.lifecycle.states import State
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

WAIT_S = 20.0
SIGNATURE = Signature((TensorSpec("x", dtypes.FP32, ("b",)),), (TensorSpec("y", dtypes.FP32, ("b",)),), 4)
STAGES = (State.VERIFYING, State.LOADING, State.WARMING, State.PROVING)


class Loads:
    """Stands for the loader: what it may do is set by the test, and what it did can be read."""

    def __init__(self) -> None:
        self.failing: dict[tuple[str, int], Exception] = {}
        self.attempts: list[tuple[str, int]] = []
        self.released: list[LoadedVersion] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, folder: VersionFolder, settings: ModelSettings, enter: Enter) -> LoadedVersion:
        self.attempts.append((folder.model, folder.version))
        for stage in STAGES[:2]:
            enter(stage)
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if error := self.failing.get((folder.model, folder.version)):
            raise error
        for stage in STAGES[2:]:
            enter(stage)
        scheduler = Scheduler(
            folder.model, [lambda _inputs, _outputs, _termination=None: []], SIGNATURE, limits=Limits()
        )
        version = LoadedVersion(
            model=folder.model,
            number=folder.version,
            signature=SIGNATURE,
            scheduler=scheduler,
            settings=settings,
            provider="FakeExecutionProvider",
            proved=True,
            sha256="0" * 64,
            properties={"key": "value"},
            release_session=lambda: self.released.append(version),
        )
        return version


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def state_changed(self, model: str, version: int, state: State) -> None:
        self.told.append((model, version, state))

    def loaded(self, version: LoadedVersion, seconds: float) -> None:
        self.told.append((version.model, version.number, "loaded"))

    def load_failed(self, model: str, version: int) -> None:
        self.told.append((model, version, "failed"))

    def forgotten(self, model: str, version: int) -> None:
        self.told.append((model, version, "forgotten"))


class Managed:
    """A manager on a repository of its own."""

    def __init__(self, repo: Any, **watch: Any) -> None:
        self.repo = repo
        self.loads = Loads()
        self.recorder = Recorder()
        self.given_up = False
        """A stop was not waited for to its end: what a lease still held then, nobody frees any more."""
        self.strict = bool(watch.pop("strict", False))
        settings: dict[str, Any] = {"poll_s": 0.01} | watch
        self.manager = ModelManager(Watch(root=repo.root, **settings), self.loads, strict_readiness=self.strict)
        self.manager.observe(self.recorder)
        self._changed = threading.Condition()
        self.manager.subscribe(self._on_change)

    def _on_change(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def start(self) -> "Managed":
        self.manager.start()
        return self.until(lambda: self.manager.complete)

    def until(self, condition: Callable[[], bool]) -> "Managed":
        """Wait for a change of the table after which `condition` holds."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), self.manager.statuses()
        return self

    def state(self, model: str, number: int) -> State | None:
        found = [s.state for s in self.manager.statuses() if (s.model, s.version) == (model, number)]
        return found[0] if found else None

    def until_state(self, model: str, number: int, state: State | None) -> "Managed":
        return self.until(lambda: self.state(model, number) is state)

    def reason(self, model: str, number: int) -> str:
        return next(s.reason for s in self.manager.statuses() if (s.model, s.version) == (model, number))

    def leased(self, model: str, version: str = "") -> int:
        """The version that a request would get."""
        with self.manager.lease(model, version) as lease:
            return lease.version.number


@pytest.fixture
def managed(repo: Any) -> Iterator[Callable[..., Managed]]:
    made: list[Managed] = []

    def make(**watch: Any) -> Managed:
        made.append(Managed(repo, **watch))
        return made[-1]

    yield make
    for each in made:
        each.loads.gate.set()
        assert each.manager.stop(WAIT_S) or each.given_up


def test_a_version_goes_through_every_state_and_each_is_told(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed().start()
    told = [what for model, number, what in it.recorder.told]
    assert told == [State.FOUND, *STAGES, State.READY, "loaded"]
    assert it.leased("m") == it.leased("m", "1") == 1
    assert it.manager.describe("m", "").versions == ("1",)
    assert it.manager.describe("m", "1").properties == {"key": "value"}


def test_versions_are_asked_for_in_the_words_of_the_protocol(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed().start()
    for version in ("v1", "01", "0", "-1", "1.0", " 1", "１", "9" * 20, "1\n"):
        with pytest.raises(InvalidRequest, match="positive number"):
            it.manager.lease("m", version)
    with pytest.raises(NotFound, match="version 9 of model 'm' is not found; versions that serve: 1"):
        it.manager.lease("m", "9")
    with pytest.raises(NotFound, match="'nothing' is not found"):
        it.manager.lease("nothing", "")
    for ask in (it.manager.describe, it.manager.version, it.manager.ready):
        with pytest.raises(NotFound):
            ask("nothing", "")


def test_a_name_of_a_million_characters_comes_back_cut(managed: Any, repo: Any) -> None:
    it = managed().start()
    with pytest.raises(NotFound) as caught:
        it.manager.lease("x" * 1_000_000, "")
    assert len(str(caught.value)) < 300


def test_a_version_that_is_loading_is_known_and_not_ready(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed()
    it.loads.gate.clear()
    it.manager.start()
    assert it.loads.entered.wait(WAIT_S)
    assert not it.manager.complete
    assert not it.manager.ready("m", "")
    assert not it.manager.server_ready()
    with pytest.raises(NotReady, match="no ready version; version 1: loading"):
        it.manager.lease("m", "")
    with pytest.raises(NotReady, match="version 1 of model 'm' is not ready: loading"):
        it.manager.lease("m", "1")
    it.loads.gate.set()
    it.until(lambda: it.manager.complete)
    assert it.manager.server_ready()


def test_the_old_version_serves_until_the_new_one_is_ready_and_drains_by_its_leases(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed().start()
    held = it.manager.lease("m", "")
    it.loads.gate.clear()
    it.loads.entered.clear()
    repo.published()
    assert it.loads.entered.wait(WAIT_S)
    assert it.leased("m") == 1
    it.loads.gate.set()
    it.until_state("m", 1, State.DRAINING)
    assert it.leased("m") == 2
    assert it.loads.released == []
    held.release()
    it.until_state("m", 1, State.UNLOADED)
    assert it.loads.released == [held.version]
    with pytest.raises(NotFound, match=r"version 1 of model 'm' is not served \(not chosen by the version policy"):
        it.manager.lease("m", "1")


def test_a_failed_version_leaves_the_old_one_and_its_reason_is_read_everywhere(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed().start()
    it.loads.failing["m", 2] = LoadFailed("its answers are wrong")
    repo.published()
    it.until_state("m", 2, State.FAILED)
    assert it.leased("m") == 1
    assert (it.manager.ready("m", "1"), it.manager.ready("m", "2")) == (True, False)
    assert it.reason("m", 2) == "its answers are wrong"
    with pytest.raises(NotReady, match="version 2 of model 'm' is not ready: failed: its answers are wrong"):
        it.manager.lease("m", "2")
    assert ("m", 2, "failed") in it.recorder.told
    assert it.manager.server_ready()


def test_a_failed_version_is_left_alone_until_its_files_change(managed: Any, repo: Any) -> None:
    it = managed().start()
    it.loads.failing["m", 1] = LoadFailed("broken")
    folder = repo.published()
    it.until_state("m", 1, State.FAILED)
    for sign in ("a", "b", "c"):  # each is a sign of another look
        repo.published(sign)
        it.until_state(sign, 1, State.READY)
    assert it.loads.attempts.count(("m", 1)) == 1
    del it.loads.failing["m", 1]
    (folder.path / "model.onnx").touch()
    it.until_state("m", 1, State.READY)
    assert it.loads.attempts.count(("m", 1)) == 2


def test_an_exception_that_nobody_foresaw_fails_the_version_and_not_the_thread(
    managed: Any, repo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    it = managed().start()
    it.loads.failing["m", 1] = ZeroDivisionError("secret of the loader")
    repo.published()
    it.until_state("m", 1, State.FAILED)
    assert it.reason("m", 1) == "unexpected ZeroDivisionError; the server's log says more"
    assert "secret of the loader" in caplog.text
    repo.published("other")
    it.until_state("other", 1, State.READY)


def configure(folder: Path, text: str) -> None:
    """Put a config.pbtxt there, whole at once."""
    beside = folder / ".config.pbtxt"
    beside.write_text(text)
    beside.rename(folder / "config.pbtxt")


def test_a_bad_configuration_fails_every_version_by_its_reason_and_leaves_what_serves(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed().start()
    configure(repo.root / "m", "runtime: 'other.so'")
    it.until(lambda: "runtime" in it.reason("m", 1))
    assert it.leased("m") == 1
    repo.published()
    it.until_state("m", 2, State.FAILED)
    assert "runtime" in it.reason("m", 2)
    configure(repo.root / "m", "max_batch_size: 8")
    it.until_state("m", 2, State.READY)
    assert it.manager.version("m", "").settings.max_batch_size == 8


def test_files_changed_in_place_are_swapped_without_an_end_to_ready(managed: Any, repo: Any) -> None:
    folder = repo.published()
    it = managed().start()
    before = it.manager.version("m", "")
    held = it.manager.lease("m", "")
    (folder.path / "model.onnx").touch()
    it.until(lambda: it.manager.version("m", "") is not before)
    assert it.loads.released == []
    held.release()
    while it.loads.released != [before]:
        time.sleep(0)
    assert [what for _, _, what in it.recorder.told].count(State.READY) == 1
    assert State.DRAINING not in [what for _, _, what in it.recorder.told]


def test_a_number_that_comes_back_while_it_drains_waits_for_the_drain(managed: Any, repo: Any, tmp_path: Path) -> None:
    folder = repo.published()
    it = managed().start()
    held = it.manager.lease("m", "")
    folder.path.rename(tmp_path / "aside")
    it.until_state("m", 1, State.DRAINING)
    (tmp_path / "aside").rename(folder.path)
    repo.published("sign")
    it.until_state("sign", 1, State.READY)
    assert it.state("m", 1) is State.DRAINING
    held.release()
    it.until_state("m", 1, State.READY)
    assert it.leased("m") == 1


def test_a_removed_model_is_forgotten_and_its_series_end(managed: Any, repo: Any, tmp_path: Path) -> None:
    repo.published()
    it = managed().start()
    (repo.root / "m").rename(tmp_path / "away")
    it.until_state("m", 1, None)
    assert it.recorder.told[-3:] == [("m", 1, State.DRAINING), ("m", 1, State.UNLOADED), ("m", 1, "forgotten")]
    assert len(it.loads.released) == 1
    with pytest.raises(NotFound):
        it.manager.lease("m", "")


def test_a_repository_out_of_reach_changes_nothing(managed: Any, repo: Any, tmp_path: Path) -> None:
    repo.published()
    it = managed().start()
    repo.root.rename(tmp_path / "away")
    assert it.leased("m") == 1
    (tmp_path / "away").rename(repo.root)
    repo.published()
    it.until_state("m", 2, State.READY)
    assert State.DRAINING not in [what for _, number, what in it.recorder.told if number == 2]


def test_versions_that_nobody_asks_for_say_why(managed: Any, repo: Any) -> None:
    for _ in range(3):
        repo.published()
    it = managed().start()
    assert [(s.version, s.state) for s in it.manager.statuses()] == [
        (1, State.FOUND),
        (2, State.FOUND),
        (3, State.READY),
    ]
    it.until(lambda: it.reason("m", 1) == "not chosen by the version policy (latest 1)")
    assert it.loads.attempts == [("m", 3)]


def test_a_version_without_manifest_waits_until_it_is_left_alone(repo: Any) -> None:
    """Both clocks stand still, and are moved by hand."""
    now = 1000.0
    it = Managed(repo)
    it.manager = ModelManager(
        Watch(root=repo.root, poll_s=0.01), it.loads, clock=time.monotonic, wall_clock=lambda: now
    )
    repo.bare()
    assert (repo.root / "m/1/model.onnx").stat().st_mtime > now  # from the future, as far as this clock knows
    changed = threading.Event()
    it.manager.subscribe(changed.set)
    it.manager.start()
    while not it.manager.complete:
        assert changed.wait(WAIT_S)
        changed.clear()
    assert it.leased("m") == 1
    assert it.manager.stop(WAIT_S)


def test_once_means_that_nobody_looks_again(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(once=True).start()
    repo.published()
    repo.published("late")
    assert it.manager.stop(WAIT_S)
    assert it.loads.attempts == [("m", 1)]


def test_only_the_models_asked_for_are_loaded(managed: Any, repo: Any) -> None:
    repo.published("a")
    repo.published("b")
    it = managed(only=frozenset({"b"})).start()
    assert it.loads.attempts == [("b", 1)]
    with pytest.raises(NotFound):
        it.manager.lease("a", "")


def test_a_model_asked_for_that_is_not_there_is_named(repo: Any) -> None:
    it = Managed(repo, only=frozenset({"b", "c"}))
    with pytest.raises(StartFailed, match="no model 'b', 'c' in the repository"):
        it.manager.start()


def test_no_repository_is_no_start(repo: Any, tmp_path: Path) -> None:
    repo.root.rmdir()
    it = Managed(repo)
    with pytest.raises(StartFailed, match="--model-repository"):
        it.manager.start()
    assert it.manager.stop(WAIT_S)


def test_readiness_of_the_server(managed: Any, repo: Any) -> None:
    it = managed().start()
    assert it.manager.server_ready(), "an empty repository is served as it is"
    it.loads.failing["bad", 1] = LoadFailed("broken")
    repo.published("bad")
    it.until_state("bad", 1, State.FAILED)
    assert not it.manager.server_ready(), "no model at all is ready"
    repo.published("good")
    it.until_state("good", 1, State.READY)
    assert it.manager.server_ready(), "degraded, not down"


def test_strict_readiness_wants_every_model(managed: Any, repo: Any) -> None:
    it = managed(strict=True)
    it.loads.failing["bad", 1] = LoadFailed("broken")
    repo.published("bad")
    repo.published("good")
    it.start()
    assert not it.manager.server_ready()
    shutil.rmtree(repo.root / "bad")
    it.until_state("bad", 1, None)
    assert it.manager.server_ready()


def test_a_stop_gives_up_a_load_at_its_next_stage_and_frees_what_serves(managed: Any, repo: Any) -> None:
    repo.published("a")
    it = managed().start()
    it.loads.gate.clear()
    it.loads.entered.clear()
    repo.published("b")
    assert it.loads.entered.wait(WAIT_S)
    stopped: list[bool] = []
    stopper = threading.Thread(target=lambda: stopped.append(it.manager.stop(WAIT_S)))
    stopper.start()
    while not it.manager._stopping:
        time.sleep(0)
    it.loads.gate.set()
    stopper.join(WAIT_S)
    assert stopped == [True]
    assert it.state("b", 1) is State.LOADING
    assert [version.model for version in it.loads.released] == ["a"]


def test_a_stop_that_waits_for_a_lease_in_vain_says_so(repo: Any) -> None:
    repo.published()
    it = Managed(repo).start()
    lease = it.manager.lease("m", "")
    assert not it.manager.stop(0.05)
    assert it.loads.released == []
    lease.release()


def test_a_swap_never_leaves_a_moment_without_a_version(managed: Any, repo: Any) -> None:
    """Readers lease as fast as they can while thirty versions come: no error, and numbers only ever rise."""
    repo.published()
    it = managed().start()
    stop = threading.Event()
    seen: list[list[int]] = []
    errors: list[BaseException] = []

    def read() -> None:
        numbers: list[int] = []
        seen.append(numbers)
        try:
            while not stop.is_set():
                number = it.leased("m")
                if not numbers or numbers[-1] != number:
                    numbers.append(number)
        except BaseException as error:
            errors.append(error)
            raise

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(2, 12):
        repo.published()
        it.until_state("m", number, State.READY)
    stop.set()
    for reader in readers:
        reader.join(WAIT_S)
    assert errors == []
    assert all(numbers == sorted(set(numbers)) for numbers in seen)
    it.until(lambda: len(it.loads.released) == 10)


def test_many_publishes_deletes_and_touches_end_in_the_state_of_the_last(managed: Any, repo: Any) -> None:
    it = managed().start()
    for turn in range(20):
        folder = repo.published()
        if turn % 3 == 0:
            (folder.path / "model.onnx").touch()
        if turn % 4 == 1:
            shutil.rmtree(folder.path)
    folder = repo.published()
    it.until_state("m", folder.version, State.READY)
    assert it.leased("m") == folder.version


# ---- orders


class Outcome:
    """Takes the answer of one order."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.answers = 0
        self._given = threading.Event()

    def __call__(self, error: Exception | None) -> None:
        self.answers += 1
        self.error = error
        self._given.set()

    def wait(self) -> "Outcome":
        assert self._given.wait(WAIT_S)
        return self


def load(it: Managed, model: str, config: str | None = None) -> Outcome:
    outcome = Outcome()
    it.manager.order_load(model, config, outcome)
    return outcome


def unload(it: Managed, model: str, **options: bool) -> Outcome:
    outcome = Outcome()
    it.manager.order_unload(model, outcome, **options)
    return outcome


EXPLICIT: dict[str, Any] = {"once": True, "only": frozenset(), "by_order": True}


@pytest.mark.parametrize(
    "name", ["../etc", "a/../b", "/etc/passwd", "model/", ".. ", "", "\t\n", "..", ".", "m\0", "m\n", "é", "x" * 129]
)
def test_a_path_is_no_model_to_order(managed: Any, name: str) -> None:
    it = managed(**EXPLICIT).start()
    for order in (load, unload):
        with pytest.raises(InvalidRequest, match="is no model name"):
            order(it, name)


@pytest.mark.parametrize("name", ["...", "..m", "model..1", "-m", ".hidden"])
def test_dots_that_are_no_path_are_a_name_that_is_not_there(managed: Any, name: str) -> None:
    it = managed(**EXPLICIT).start()
    assert isinstance(load(it, name).wait().error, NotFound)
    assert isinstance(unload(it, name).wait().error, InvalidRequest)


@pytest.mark.parametrize(("once", "mode"), [(False, "poll"), (True, "none")])
def test_orders_are_refused_where_the_server_decides(managed: Any, once: bool, mode: str) -> None:
    it = managed(once=once).start()
    for order in (load, unload):
        with pytest.raises(NotReady, match=f"--model-control-mode={mode}"):
            order(it, "m")


def test_a_model_is_loaded_and_unloaded_by_order_and_by_nothing_else(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    assert it.manager.server_ready(), "nothing is asked for, and nothing is missing"
    assert it.loads.attempts == []
    assert it.reason("m", 1) == "not loaded; RepositoryModelLoad loads it"
    with pytest.raises(NotFound, match="RepositoryModelLoad loads it"):
        it.manager.lease("m", "")
    assert load(it, "m").wait().error is None
    assert it.leased("m") == 1
    repo.published()
    assert unload(it, "m").wait().error is None
    assert it.state("m", 1) is State.UNLOADED
    assert len(it.loads.released) == 1
    with pytest.raises(NotFound):
        it.manager.lease("m", "")
    assert load(it, "m").wait().error is None
    assert it.leased("m") == 2
    assert it.loads.attempts == [("m", 1), ("m", 2)]


def test_a_load_of_what_serves_and_has_not_changed_does_nothing(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    assert load(it, "m").wait().error is None
    assert load(it, "m").wait().error is None
    assert it.loads.attempts == [("m", 1)]


def test_files_that_were_just_written_are_taken_as_complete_when_ordered(managed: Any, repo: Any) -> None:
    it = managed(**(EXPLICIT | {"poll_s": 3600.0})).start()
    repo.bare()
    assert load(it, "m").wait().error is None
    assert it.leased("m") == 1


def test_a_broken_version_is_told_to_the_one_who_ordered_it_and_the_old_one_serves(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    assert load(it, "m").wait().error is None
    it.loads.failing["m", 2] = LoadFailed("model.onnx is cut short")
    repo.published()
    for _ in range(2):
        error = load(it, "m").wait().error
        assert isinstance(error, InvalidRequest)
        assert str(error) == "load failed for model 'm': version 2: model.onnx is cut short; version 1 serves"
    assert it.loads.attempts == [("m", 1), ("m", 2), ("m", 2)], "who orders again has it tried again"
    assert it.leased("m") == 1
    assert not it.manager.ready("m", "2")
    del it.loads.failing["m", 2]
    assert load(it, "m").wait().error is None
    assert it.leased("m") == 2


def test_files_changed_in_place_that_do_not_load_are_told_as_well(managed: Any, repo: Any) -> None:
    repo.bare()
    it = managed(**EXPLICIT).start()
    assert load(it, "m").wait().error is None
    repo.bare(content=None)
    (repo.root / "m/1/model.onnx").write_bytes(b"other")
    it.loads.failing["m", 1] = LoadFailed("no graph")
    assert "version 1: no graph; version 1 serves" in str(load(it, "m").wait().error)
    assert it.leased("m") == 1


def test_a_failed_model_can_be_unloaded_and_counts_no_more(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT, strict=True).start()
    it.loads.failing["m", 1] = LoadFailed("broken")
    assert load(it, "m").wait().error is not None
    assert not it.manager.server_ready()
    assert unload(it, "m").wait().error is None
    assert it.state("m", 1) is State.UNLOADED
    assert it.manager.server_ready()


def test_what_is_not_loaded_cannot_be_unloaded(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    assert "is not loaded" in str(unload(it, "m").wait().error)
    assert isinstance(unload(it, "nothing").wait().error, InvalidRequest)
    assert isinstance(load(it, "nothing").wait().error, NotFound)


def test_a_model_without_versions_says_so(managed: Any, repo: Any) -> None:
    (repo.root / "m").mkdir()
    it = managed(**EXPLICIT).start()
    assert "no version folder" in str(load(it, "m").wait().error)


def test_an_unload_waits_for_the_requests_that_it_drains(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    load(it, "m").wait()
    held = it.manager.lease("m", "")
    outcome = unload(it, "m")
    it.until_state("m", 1, State.DRAINING)
    again = load(it, "m")
    assert (outcome.answers, again.answers) == (0, 0)
    with pytest.raises(NotFound):
        it.manager.lease("m", "")
    held.release()
    assert outcome.wait().error is None
    assert again.wait().error is None
    assert it.leased("m") == 1
    assert it.loads.attempts == [("m", 1), ("m", 1)]


def test_a_drain_holds_up_no_other_model(managed: Any, repo: Any) -> None:
    repo.published("a")
    repo.published("b")
    it = managed(**EXPLICIT).start()
    load(it, "a").wait()
    with it.manager.lease("a", ""):
        waits = unload(it, "a")
        assert load(it, "b").wait().error is None
        assert waits.answers == 0
    assert waits.wait().error is None


def test_a_configuration_that_comes_with_the_order_holds_until_a_load_without_one(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    assert load(it, "m").wait().error is None
    plain = it.manager.version("m", "").settings
    assert load(it, "m", '{"max_batch_size": 4, "instance_group": [{"count": 3}]}').wait().error is None
    assert it.manager.version("m", "").settings.instances == 3
    assert len(it.loads.attempts) == 2, "another configuration is another load"
    assert load(it, "m").wait().error is None
    assert it.manager.version("m", "").settings == plain


def test_a_configuration_that_cannot_be_obeyed_is_no_order(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    load(it, "m").wait()
    with pytest.raises(InvalidRequest, match="parameter 'config': model_operations"):
        load(it, "m", '{"model_operations": {"op_library_filename": ["x"]}}')
    assert it.leased("m") == 1


@pytest.mark.parametrize("last", ["load", "unload"])
def test_two_hundred_orders_at_once_end_in_what_was_ordered_last(managed: Any, repo: Any, last: str) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    outcomes: list[Outcome] = []

    def caller(number: int) -> None:
        outcomes.extend((load if (number + turn) % 2 else unload)(it, "m") for turn in range(50))

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(WAIT_S)
    final = (load if last == "load" else unload)(it, "m").wait()
    for outcome in outcomes:
        outcome.wait()
    assert len(outcomes) == 200
    assert {outcome.answers for outcome in outcomes} == {1}
    assert {type(outcome.error) for outcome in outcomes} <= {type(None), InvalidRequest}, "unloaded twice"
    assert it.manager.ready("m", "") if last == "load" else it.state("m", 1) is State.UNLOADED or final.error
    assert len(it.loads.released) == len(it.loads.attempts) - (last == "load")


def test_orders_that_nobody_can_carry_out_in_time_are_refused(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    it.loads.gate.clear()
    it.loads.entered.clear()
    waiting = [load(it, "m") for _ in range(ORDERS_MAX)]
    with pytest.raises(Overloaded, match=f"{ORDERS_MAX} loads and unloads wait"):
        load(it, "m")
    it.loads.gate.set()
    for outcome in waiting:
        assert outcome.wait().error is None


def test_a_stop_answers_every_order_at_once_and_takes_no_more(managed: Any, repo: Any) -> None:
    repo.published("a")
    repo.published("b")
    it = managed(**EXPLICIT).start()
    it.loads.gate.clear()
    it.loads.entered.clear()
    loading, waiting = load(it, "a"), load(it, "b")
    assert it.loads.entered.wait(WAIT_S)
    it.manager.refuse_orders()
    assert isinstance(loading.wait().error, Stopping)
    assert isinstance(waiting.wait().error, Stopping)
    with pytest.raises(Stopping):
        load(it, "a")
    it.loads.gate.set()
    assert it.manager.stop(WAIT_S)
    assert (loading.answers, waiting.answers) == (1, 1)


def test_a_stop_does_not_wait_for_a_drain_that_was_ordered(managed: Any, repo: Any) -> None:
    repo.published()
    it = managed(**EXPLICIT).start()
    load(it, "m").wait()
    held = it.manager.lease("m", "")
    draining = unload(it, "m")
    it.until_state("m", 1, State.DRAINING)
    assert not it.manager.stop(0.05)
    it.given_up = True
    assert isinstance(draining.wait().error, Stopping)
    held.release()


ENSEMBLE = """
platform: "ensemble"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [1] }
output { name: "y" data_type: TYPE_FP32 dims: [1] }
ensemble_scheduling { step { model_name: "%s" model_version: -1 input_map { key: "x" value: "x" }
                             output_map { key: "y" value: "y" } } }
"""


def ensemble(repo: Any, name: str, step: str) -> None:
    (repo.root / name / "1").mkdir(parents=True)
    (repo.root / name / "config.pbtxt").write_text(ENSEMBLE % step)


def test_an_ensemble_is_loaded_with_its_steps_and_unloaded_with_those_that_nobody_else_needs(
    managed: Any, repo: Any
) -> None:
    for name in ("own", "shared"):
        repo.published(name)
    for name, step in (("first", "own"), ("second", "shared"), ("third", "shared"), ("outer", "first")):
        ensemble(repo, name, step)
    it = managed(**EXPLICIT).start()
    for name in ("outer", "second", "third"):
        assert load(it, name).wait().error is None
    assert {version.model for version in it.manager.serving()} == {
        "own",
        "shared",
        "first",
        "second",
        "third",
        "outer",
    }
    assert unload(it, "outer", with_steps=True).wait().error is None
    assert unload(it, "second", with_steps=True).wait().error is None
    assert {version.model for version in it.manager.serving()} == {"shared", "third"}
    assert unload(it, "third").wait().error is None
    assert {version.model for version in it.manager.serving()} == {"shared"}
