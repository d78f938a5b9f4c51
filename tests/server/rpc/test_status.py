"""Errors to status: every error of the tree has a place, and nothing of ours leaks."""

import logging

import pytest

from forwardpass_server import errors
from forwardpass_server.rpc import status
from forwardpass_server.rpc.status import Code


def every(kind: type[errors.ForwardpassError]) -> list[type[errors.ForwardpassError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in every(child))]


def test_every_error_that_callers_may_see_has_a_code_of_its_own_line() -> None:
    shown = {*every(errors.CallerError), *every(errors.Busy)} - {errors.CallerError, errors.Busy}
    assert shown | {errors.OutOfMemory} == status.CODES.keys()


def test_a_run_without_memory_is_told_in_words_and_is_no_internal_error() -> None:
    code, message, trailers = status.of(errors.OutOfMemory("no memory for this run"))
    assert (code, message, trailers) == (Code.RESOURCE_EXHAUSTED, "no memory for this run", ())


@pytest.mark.parametrize("kind", [errors.RunFailed, errors.LoadFailed, ValueError, KeyError, MemoryError, RuntimeError])
def test_what_is_ours_becomes_internal_with_an_id(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        code, message, trailers = status.of(kind("/models/secret"))
    assert (code, trailers) == (Code.INTERNAL, ())
    assert "secret" not in message
    number = message.removeprefix("internal error, id=").split(";")[0]
    (record,) = [record for record in caplog.records if number in record.getMessage()]
    assert "secret" in record.getMessage()
    assert record.exc_info is not None


def test_a_subclass_has_its_parents_code() -> None:
    class Stranger(errors.NotFound):
        pass

    assert status.of(Stranger("x")).code == Code.NOT_FOUND


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.0, "1"), (0.0401, "41"), (2.0, "2000")])
def test_overload_says_when_to_retry(seconds: float, milliseconds: str) -> None:
    assert status.of(errors.Overloaded("full", retry_after_s=seconds)) == (
        Code.RESOURCE_EXHAUSTED,
        "full",
        (("grpc-retry-pushback-ms", milliseconds),),
    )


def test_what_is_too_large_is_never_to_be_retried() -> None:
    assert status.of(errors.TooLarge("65 MiB")).trailers == (("grpc-retry-pushback-ms", "-1"),)


def test_text_keeps_its_lines_and_letters_and_loses_what_drives_a_terminal() -> None:
    assert status.wire_text("tab\there\r\nand 🂡") == "tab\there\r\nand 🂡"
    assert status.wire_text("\x1b[31mred\x00\x7f\x9b\ud800") == r"\x1b[31mred\x00\x7f\x9b\ud800"


def test_codes_are_grpcs_own() -> None:
    grpc = pytest.importorskip("grpc")
    assert {code.name: code.value for code in Code} == {code.name: grpc.StatusCode[code.name].value[0] for code in Code}
