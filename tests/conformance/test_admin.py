"""Loads and unloads by request, and who may order them: cases 35 to 37.

A server of its own in mode explicit, with a token for admins and one for everybody else.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from conformance import models
from conformance.process import Page, ServerProcess, Start, wait_until
from conformance.wire import Caller, Metadata, Outcome, ask, ok, refused, tensor, zeros

from forwardpass_proto import grpc_service_pb2 as pb

ADMIN, USER = "admin-token-0123456789", "user-token-0123456789"
OK, INVALID_ARGUMENT, NOT_FOUND = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
)
X = np.zeros((1, 64), np.float32)


def bearer(token: str | None) -> Metadata:
    return () if token is None else (("authorization", f"Bearer {token}"),)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("admin")
    models.publish(folder / "models", "identity_fp32", models.identity(models.IDENTITIES["FP32"]))
    models.publish(folder / "models", "stamp", models.stamp(1))
    (folder / "admins").write_text(ADMIN)
    flags = (
        *("--model-control-mode=explicit", "--load-model=identity_fp32"),
        *("--enable-admin", f"--admin-token-file={folder / 'admins'}"),
    )
    with ServerProcess(folder / "models", folder / "log", *flags) as server:
        server.wait_until_ready()
        with Caller(server.target) as caller:
            for _ in range(20):  # what a load and an unload keep on purpose is part of the ordinary
                assert order(caller, "Load", "stamp").ok
                assert order(caller, "Unload", "stamp").ok
        server.take_baseline()
        yield server
        server.stop()


def order(
    caller: Caller, what: str, model: str, token: str | None = ADMIN, **parameters: pb.ModelRepositoryParameter
) -> Outcome:
    """RepositoryModelLoad or …Unload."""
    kind = {"Load": pb.RepositoryModelLoadRequest, "Unload": pb.RepositoryModelUnloadRequest}[what]
    body = kind(model_name=model, parameters=parameters).SerializeToString()
    return caller.call(f"RepositoryModel{what}", body, metadata=bearer(token), timeout_s=60.0)


def state(caller: Caller, model: str) -> str:
    answer = caller.call("RepositoryIndex", metadata=bearer(ADMIN))
    assert answer.ok, answer
    (row,) = [row for row in pb.RepositoryIndexResponse.FromString(answer.body or b"").models if row.name == model]
    return str(row.state)


both = pytest.mark.parametrize("what", ["Load", "Unload"])

case_35 = pytest.mark.case("35", "200 loads and unloads of one model at once", "no deadlock; the last order counts")


@case_35
@pytest.mark.parametrize("last", ["Load", "Unload"])
def test_two_hundred_orders_at_once_end_in_the_last(server: ServerProcess, caller: Caller, last: str) -> None:
    def give_25_orders(first: int) -> None:
        with Caller(server.target) as own:
            outcomes.extend(order(own, "Load" if (first + n) % 3 else "Unload", "stamp") for n in range(25))

    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=give_25_orders, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 200
    # An unload of what is not loaded is the caller's mistake; nothing else may go wrong.
    wrong = {str(each) for each in outcomes if each.code not in {OK, INVALID_ARGUMENT}}
    assert not wrong
    order(caller, "Load" if last == "Unload" else "Unload", "stamp")
    assert order(caller, last, "stamp").ok
    assert state(caller, "stamp") == ("READY" if last == "Load" else "UNAVAILABLE")
    asked = caller.infer(ask("stamp", tensor("x", X)))
    assert asked.code is (OK if last == "Load" else NOT_FOUND), asked
    if last == "Load":
        assert order(caller, "Unload", "stamp").ok


@case_35
def test_requests_in_the_middle_of_loads_and_unloads_are_answered_whole_or_not_found(
    server: ServerProcess, caller: Caller
) -> None:
    stop = threading.Event()
    outcomes: list[Outcome] = []

    def ask_all_the_time() -> None:
        with Caller(server.target) as own:
            while not stop.is_set():
                outcomes.append(own.infer(ask("stamp", tensor("x", X))))

    threads = [threading.Thread(target=ask_all_the_time) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            assert order(caller, "Load", "stamp").ok
            wait_until(lambda: outcomes[-1:] != [] and outcomes[-1].ok, "somebody is answered")
            assert order(caller, "Unload", "stamp").ok
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    codes = {each.code for each in outcomes}
    assert codes <= {OK, NOT_FOUND, grpc.StatusCode.UNAVAILABLE}, codes
    assert all(set(ok(each)["y"].array.ravel()) == {1.0} for each in outcomes if each.ok)


case_36 = pytest.mark.case("36", "names that lead out of the repository", "INVALID_ARGUMENT, nothing touched")

PATHS = {
    "up": "../etc",
    "through": "a/../b",
    "absolute": "/etc/passwd",
    "slash at the end": "model/",
    "dots and a space": ".. ",
    "dots": "..",
    "dot": ".",
    "empty": "",
    "white": "\t\n",
    "encoded": "%2e%2e%2fetc",
    "zero": "stamp\0",
    "unicode dots": "\uff0e\uff0e\uff0fetc",
    "longer than any file name": "m" * 256,
    "backslash": "..\\etc",
    "url": "https://example.com/model",
    "space at the end": "stamp ",
}


@case_36
@both
@pytest.mark.parametrize("name", PATHS.values(), ids=PATHS)
def test_a_path_is_no_name(caller: Caller, what: str, name: str) -> None:
    outcome = order(caller, what, name)
    refused(outcome, INVALID_ARGUMENT)
    assert len(outcome.details) < 2000


@pytest.mark.case("36", "odd names that are no paths", "not refused as a traversal")
@both
@pytest.mark.parametrize("name", ["...", "..m", "model..1", "m...", "-", "_"])
def test_a_name_with_dots_is_merely_not_there(caller: Caller, what: str, name: str) -> None:
    outcome = order(caller, what, name)
    assert outcome.code is (NOT_FOUND if what == "Load" else INVALID_ARGUMENT), outcome
    assert ("not in the repository" if what == "Load" else "is not loaded") in outcome.details


@pytest.mark.case("36", "files sent with a load", "INVALID_ARGUMENT, nothing written")
@pytest.mark.parametrize("key", ["file:1/model.onnx", "file:../../etc/x", "file:", "config\n", "other"])
def test_a_load_takes_no_files(server: ServerProcess, caller: Caller, key: str) -> None:
    value = pb.ModelRepositoryParameter(bytes_param=models.stamp(666).SerializeToString())
    refused(order(caller, "Load", "stamp", **{key: value}), INVALID_ARGUMENT)
    assert state(caller, "stamp") == "UNAVAILABLE"


@pytest.mark.case("36", "a configuration sent with a load that is none", "INVALID_ARGUMENT; what served serves")
@pytest.mark.parametrize(
    "text",
    ["{", "[]", "\0", '{"max_batch_size": 1e99}', '{"nothing": 1}', json.dumps({"name": "../x"}), "[" * 250_000],
    ids=["cut", "a list", "zero", "too large", "unknown field", "another name", "250 000 brackets"],
)
def test_a_configuration_that_is_none_is_refused(caller: Caller, text: str) -> None:
    config = pb.ModelRepositoryParameter(string_param=text)
    refused(order(caller, "Load", "identity_fp32", config=config), INVALID_ARGUMENT)


case_37 = pytest.mark.case("37", "admin rpcs, by credentials", "PERMISSION_DENIED off; on: token or subject")
UNAUTHENTICATED, PERMISSION_DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@case_37
@both
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        ADMIN,
        f"Basic {ADMIN}",
        "Bearer",
        "Bearer ",
        f"Bearer {ADMIN[:-1]}",
        f"Bearer {ADMIN}x",
        f"Bearer {ADMIN.upper()}",
        f"Bearer {USER}",
        "Bearer " + "x" * 8000,
    ],
    ids=["none", "empty", "bare", "basic", "word", "no token", "cut", "longer", "upper case", "unknown", "8 KB"],
)
def test_an_order_without_the_token_is_refused_and_not_carried_out(
    caller: Caller, what: str, authorization: str | None
) -> None:
    metadata = () if authorization is None else (("authorization", authorization),)
    outcome = caller.call(
        f"RepositoryModel{what}",
        pb.RepositoryModelLoadRequest(model_name="identity_fp32").SerializeToString(),
        metadata=metadata,
    )
    refused(outcome, UNAUTHENTICATED)
    assert ADMIN not in outcome.details
    assert state(caller, "identity_fp32") == "READY"


@case_37
def test_the_token_opens_it_and_data_need_none(caller: Caller) -> None:
    assert order(caller, "Load", "identity_fp32").ok
    assert caller.infer(ask("identity_fp32", zeros("FP32", (1, 1)))).ok


@pytest.mark.case("37", "admin rpcs, off", "PERMISSION_DENIED on the same port, whatever is shown")
@both
@pytest.mark.parametrize("token", [None, ADMIN])
def test_orders_are_forbidden_where_there_are_no_admins(
    small_repository: Path, start: Start, remember: Callable[[Outcome], None], what: str, token: str | None
) -> None:
    server = start(small_repository, "--model-control-mode=explicit", "--load-model=*")
    with Caller(server.target, remember) as caller:
        refused(order(caller, what, "identity_fp32", token), PERMISSION_DENIED)
        assert caller.infer(ask("identity_fp32", zeros("FP32", (1, 1)))).ok
    server.stop()


@pytest.mark.case("37", "data rpcs with tokens on", "UNAUTHENTICATED without; the probes stay open")
def test_with_tokens_for_data_only_probes_are_open(
    small_repository: Path, start: Start, tmp_path: Path, remember: Callable[[Outcome], None]
) -> None:
    (tmp_path / "users").write_text(USER)
    server = start(small_repository, f"--data-token-file={tmp_path / 'users'}")
    request = ask("identity_fp32", zeros("FP32", (1, 1)))
    with Caller(server.target, remember) as caller:
        for rpc in ("ServerLive", "ServerReady"):
            assert caller.call(rpc).ok
        closed: Sequence[str] = ["ServerMetadata", "RepositoryIndex", "ModelStatistics", "TraceSetting", "LogSettings"]
        for rpc in closed:
            refused(caller.call(rpc), UNAUTHENTICATED)
        refused(caller.infer(request), UNAUTHENTICATED)
        refused(caller.infer(request, metadata=bearer(ADMIN)), UNAUTHENTICATED)
        assert caller.infer(request, metadata=bearer(USER)).ok
        refused(order(caller, "Load", "identity_fp32", USER), PERMISSION_DENIED)
        # Who is refused adds no series and leaves nothing in flight.
        assert not server.page().busy()
        assert isinstance(server.page(), Page)
    server.stop()
