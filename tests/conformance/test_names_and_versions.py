"""Models and versions that are not there, or not ready: cases 17 and 18, and names as weapons."""

import re

import grpc
import pytest
from conformance.process import ServerProcess
from conformance.wire import Caller, Outcome, ask, ok, refused, zeros

from forwardpass_proto import grpc_service_pb2 as pb

RPCS = ["ModelInfer", "ModelMetadata", "ModelReady"]
NOT_FOUND, INVALID_ARGUMENT = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT


def about(caller: Caller, rpc: str, name: str, version: str = "") -> Outcome:
    """Ask for a model by any of the rpcs that name one."""
    if rpc == "ModelInfer":
        return caller.infer(ask(name, zeros("FP32", (1, 10)), version=version))
    request = {"ModelMetadata": pb.ModelMetadataRequest, "ModelReady": pb.ModelReadyRequest}[rpc]
    return caller.call(rpc, request(name=name, version=version).SerializeToString())


case_17 = pytest.mark.case("17", "unknown model; unknown version; no version", "NOT_FOUND; NOT_FOUND; INVALID_ARGUMENT")
every_rpc = pytest.mark.parametrize("rpc", RPCS)


@case_17
@every_rpc
def test_an_unknown_model_is_not_found_by_name(caller: Caller, rpc: str) -> None:
    refused(about(caller, rpc, "ghost"), NOT_FOUND, "ghost")


@case_17
@every_rpc
@pytest.mark.parametrize("version", ["2", "10", "9223372036854775807"])
def test_an_unknown_version_is_not_found_by_number(caller: Caller, rpc: str, version: str) -> None:
    refused(about(caller, rpc, "mlp", version), NOT_FOUND, "mlp", version)


@case_17
@every_rpc
@pytest.mark.parametrize(
    "version",
    ["v1", "01", "0", "-1", "+1", "1.0", " 1", "1 ", "1\n", "1e0", "0x1", "１", "²", "1_0", "latest", "\0", "1\0"],
)
def test_a_version_that_is_no_number_is_invalid(caller: Caller, rpc: str, version: str) -> None:
    refused(about(caller, rpc, "mlp", version), INVALID_ARGUMENT)


@case_17
@every_rpc
@pytest.mark.parametrize("version", ["9223372036854775808", "9" * 20, "9" * 10_000, "1" * 1_000_000], ids=len)
def test_a_version_beyond_every_number_is_the_callers_fault(caller: Caller, rpc: str, version: str) -> None:
    outcome = about(caller, rpc, "mlp", version)
    assert outcome.code in {INVALID_ARGUMENT, NOT_FOUND}, outcome
    assert len(outcome.details) < 2000, "a caller's version is quoted without end"


@case_17
@every_rpc
@pytest.mark.parametrize("version", ["", "1"], ids=["any", "1"])
def test_the_version_there_is_is_served(caller: Caller, rpc: str, version: str) -> None:
    assert about(caller, rpc, "mlp", version).ok


case_names = pytest.mark.case(
    "names", "names as weapons: paths, control characters, length", "NOT_FOUND or INVALID_ARGUMENT"
)

WEAPONS = {
    "empty": "",
    "dot": ".",
    "dots": "..",
    "traversal": "../mlp",
    "traversal inside": "mlp/../mlp",
    "absolute": "/etc/passwd",
    "version inside": "mlp/1",
    "slash at the end": "mlp/",
    "space at the end": "mlp ",
    "encoded": "%2e%2e/mlp",
    "zero": "mlp\0",
    "white": "\t\n",
    "case": "MLP",
    "wide": "ｍｌｐ",
    "dotless": "．．／mlp",
    "combining": "mlp\u0301",
    "hidden": "\u200bmlp",
    "backwards": "\u202emlp",
    "non-BMP": "😀",
    "braces": "{0.__class__}%s%n",
    "name of 128": "m" * 128,
    "name of 129": "m" * 129,
    "name of 256": "m" * 256,
    "megabyte": "m" * 1_000_000,
    "log line": "mlp\n2026-01-01 ERROR forged",
    "terminal": "\x1b[2J\x1b[1;31mmlp",
    "url": "http://127.0.0.1/mlp",
    "staging": ".staging-1",
    "lock": ".publish.lock",
}


@case_names
@pytest.mark.parametrize("name", WEAPONS.values(), ids=WEAPONS)
def test_no_name_opens_anything_but_its_own_model(caller: Caller, name: str) -> None:
    for rpc in RPCS:
        outcome = about(caller, rpc, name)
        assert outcome.code in {NOT_FOUND, INVALID_ARGUMENT}, outcome
        assert len(outcome.details) < 2000, "a caller's name is quoted without end"


@case_names
def test_a_name_cannot_forge_a_line_of_the_log(server: ServerProcess, caller: Caller) -> None:
    mark = "forged-b0a7"
    for rpc in RPCS:
        about(caller, rpc, f"mlp\n{mark}\r\n{mark}\x1b[31m{mark}")
        caller.infer(ask("mlp", request_id=f"\n{mark}"))
    server.assert_answering()
    lines = [line for line in server.log_text().splitlines() if re.match(rf"\W*{mark}", line)]
    assert not lines, lines
    assert f"\x1b[31m{mark}" not in server.log_text()


@case_names
def test_unknown_names_add_no_series_to_the_metrics_page(server: ServerProcess, caller: Caller) -> None:
    def series() -> set[str]:
        return {line.rpartition(" ")[0] for line in server.page().lines}

    # Codes that were not answered before are new samples, and rightly so; these come first.
    about(caller, "ModelInfer", "series0")
    caller.call("/made.up.Service/Series0")
    before = series()
    for number in range(200):
        about(caller, "ModelInfer", f"series{number}", version=str(number + 1))
        about(caller, "ModelInfer", "mlp", version=str(number + 2))
        caller.call(f"/made.up.Service/Series{number}")
        caller.call(f"Series{number}")
    assert series() == before, "callers can grow the metrics page"


case_18 = pytest.mark.case("18", "known model, not READY", "UNAVAILABLE, not NOT_FOUND")


@case_18
@pytest.mark.parametrize("rpc", ["ModelInfer", "ModelMetadata"])
@pytest.mark.parametrize("version", ["", "1"], ids=["any", "1"])
def test_a_model_that_failed_to_load_is_unavailable(caller: Caller, rpc: str, version: str) -> None:
    refused(about(caller, rpc, "broken", version), grpc.StatusCode.UNAVAILABLE, "broken")


@case_18
@pytest.mark.parametrize("version", ["", "1"], ids=["any", "1"])
def test_a_model_that_failed_to_load_is_known_and_not_ready(caller: Caller, version: str) -> None:
    outcome = about(caller, "ModelReady", "broken", version)
    assert outcome.ok, outcome
    assert not pb.ModelReadyResponse.FromString(outcome.body or b"").ready


@case_18
def test_an_unknown_version_of_a_model_that_is_not_ready_is_not_found(caller: Caller) -> None:
    refused(about(caller, "ModelInfer", "broken", "7"), NOT_FOUND)


@case_18
def test_why_a_model_is_not_ready_tells_no_path(server: ServerProcess, caller: Caller, repository: object) -> None:
    assert str(repository) not in about(caller, "ModelInfer", "broken").details


def test_a_copied_model_without_a_manifest_is_served_like_any_other(caller: Caller) -> None:
    request = [zeros("FP32", (2, 10))]
    assert ok(caller.infer(ask("copied", *request)))["y"].raw == ok(caller.infer(ask("mlp", *request)))["y"].raw
