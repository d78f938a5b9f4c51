"""Conformance: a real server process, attacked through stock grpcio, and the table of case, expected, got.

A test carries its case: `@pytest.mark.case("2", "same input twice", "INVALID_ARGUMENT")`, numbered as in the project's
conformance list. Every outcome its `caller` sees goes into the table at the end of the run. Whoever uses
`server` or `caller` gets the universal post-conditions checked behind it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

# Modules below are imported as `conformance.…`: a namespace package, since folders of tests have no __init__.py.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance import models, report
from conformance.operators import OPERATORS
from conformance.process import MIB, START_TIMEOUT_S, ServerProcess, Start
from conformance.wire import DATATYPES, Caller, Outcome, ask, ok, zeros

TEST_TIMEOUT_S = START_TIMEOUT_S + 120


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "case(number, what, expected): a row of the conformance list")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tiny model; models of one operator; `broken`, known and never ready; and `copied`, without a manifest."""
    root = tmp_path_factory.mktemp("repository")
    for name, model in models.everything().items():
        models.publish(root, name, model)
    for name, operator in OPERATORS.items():
        models.publish(root, name, operator.model())
    models.publish(root, "counter", models.counter())
    (root / "counter" / "config.pbtxt").write_text(models.COUNTER_CONFIG)
    models.publish(root, "broken", b"\x08\x08this is no model")
    models.copy(root, "copied", models.mlp())
    return root


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, so that a server of one's own starts fast: `identity_fp32` and `slow`."""
    root = tmp_path_factory.mktemp("small")
    models.publish(root, "identity_fp32", models.identity(models.IDENTITIES["FP32"]))
    models.publish(root, "slow", models.slow())
    return root


@pytest.fixture(scope="session")
def shared_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server that most cases attack, one after the other. Stopped by SIGTERM: exit code 0, a clean log."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServerProcess(repository, log) as server:
        server.wait_until_ready()
        exercise(server)
        server.take_baseline()
        yield server
        server.stop()


def exercise(server: ServerProcess) -> None:
    """Let a server see every kind of request once, so that what it keeps on purpose (caches, buffers) is there."""
    with Caller(server.target) as caller:
        for datatype in DATATYPES:
            for rows in (1, 64):
                ok(caller.infer(ask(f"identity_{datatype.lower()}", zeros(datatype, (rows, 100)))))
        ok(caller.infer(ask("identity_uint8", zeros("UINT8", (1, 60 * MIB))), timeout_s=60.0))
        ok(caller.infer(ask("identity_bytes", zeros("BYTES", (1, MIB))), timeout_s=60.0))
        for _ in range(2):
            with Caller(server.target) as bomber:
                bomber.call("ModelInfer", bytes(65 * MIB), timeout_s=60.0, compression=grpc.Compression.Gzip)
        small = ask("mlp", zeros("FP32", (1, 10)))
        for pending in [caller.begin(small, timeout_s=60.0) for _ in range(3000)]:
            pending.outcome()
        # Heads of about 4 KB, all different: the most that is worth remembering to a server that remembers heads.
        for number in range(1100):
            caller.infer(ask("mlp", zeros("FP32", (1, 10)), outputs=[f"y{number}-{n}{'y' * 50}" for n in range(60)]))


@pytest.fixture
def server(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    """The shared server; unharmed after the test, or the test fails."""
    shared_server.begin_case()
    yield shared_server
    shared_server.assert_unharmed()


@pytest.fixture
def remember(request: pytest.FixtureRequest) -> Callable[[Outcome], None]:
    """Put an outcome into the table."""

    def put(outcome: Outcome) -> None:
        request.node.user_properties.append(("got", str(outcome)))

    return put


@pytest.fixture
def caller(server: ServerProcess, remember: Callable[[Outcome], None]) -> Iterator[Caller]:
    """A fresh channel to the shared server."""
    with Caller(server.target, remember) as fresh:
        yield fresh


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server of the test's own: `start(repository, "--flag", "value")`. Ready when it returns."""
    started: list[ServerProcess] = []

    def begin(root: Path, *flags: str) -> ServerProcess:
        server = ServerProcess(root, tmp_path / f"server-{len(started)}.log", *flags)
        started.append(server)
        server.wait_until_ready()
        return server

    yield begin
    for each in started:
        each.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write each test's case where its report carries it; and give each time for a start of the server."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
        for mark in item.iter_markers("case"):
            item.user_properties.append(("case", report.Case(*mark.args)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table: case, expected, got; and how much was fuzzed."""
    rows: dict[report.Case, report.Row] = {}
    fuzzing = report.Fuzzing()
    for result in ("passed", "failed", "error"):
        for each in terminalreporter.getreports(result):
            if not isinstance(each, pytest.TestReport):  # a file that could not be collected
                continue
            for case in (value for name, value in each.user_properties if name == "case"):
                assert isinstance(case, report.Case)
                row = rows.setdefault(case, report.Row(Counter(), Counter()))
                row.results[result] += 1
                row.got.update(str(value) for name, value in each.user_properties if name == "got")
                for name, value in each.user_properties:
                    if name == "fuzzed":
                        row.got.update(value)
                        fuzzing.add(value, each.duration, failed=result != "passed")
    if rows:
        terminalreporter.section("conformance")
        terminalreporter.write_line(report.table(rows))
    if fuzzing.cases:
        terminalreporter.write_line(str(fuzzing))
