"""Log lines: readable by people and machines, and not to be forged by callers."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from forwardpass_server import logs
from forwardpass_server.logs import FIELD_CHARACTERS_MAX, configure, escaped, event

log = logging.getLogger("forwardpass_server.test")

FORGED = 'mnist\n12:00:00.000 ERROR   forged\r\x1b[31m red \u2028 "end'


@pytest.fixture
def lines() -> Iterator[Callable[..., Callable[[], list[str]]]]:
    handlers = []

    def start(form: str, level: str = "info") -> Callable[[], list[str]]:
        stream = io.StringIO()
        handlers.append(configure(form, level, stream))
        return lambda: stream.getvalue().splitlines()

    yield start
    for handler in handlers:
        logs.remove(handler)


def test_json_has_a_line_a_record_with_message_and_fields(lines: Any) -> None:
    written = lines("json")
    event(log, logging.INFO, "version ready", model="mnist", version=2, seconds=0.5, proved=True, reason=None)
    (line,) = written()
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "info",
        "logger": "forwardpass_server.test",
        "message": "version ready",
        "model": "mnist",
        "version": 2,
        "seconds": 0.5,
        "proved": True,
        "reason": None,
    }


def test_text_has_a_line_a_record_with_quoted_values(lines: Any) -> None:
    written = lines("text")
    event(log, logging.WARNING, "version failed", model="mnist", reason="too large", empty="", seconds=0.123456789)
    (line,) = written()
    assert line.endswith('WARNING version failed  model=mnist reason="too large" empty="" seconds=0.123457')


@pytest.mark.parametrize("form", ["json", "text"])
def test_nothing_from_outside_starts_a_line_or_drives_a_terminal(lines: Any, form: str) -> None:
    written = lines(form)
    event(log, logging.INFO, "refused", model=FORGED)
    log.info("a plain record about %s", FORGED)
    log.error("an error", exc_info=ValueError(FORGED))
    output = written()
    assert all(line.isprintable() for line in output)
    if form == "json":
        assert [json.loads(line)["message"][:5] for line in output] == ["refus", "a pla", "an er"]
    else:
        forged = [line for line in output if line.startswith("12:00:00.000")]
        assert forged == []
        assert sum(not line.startswith("  | ") for line in output) == 3


def test_a_long_value_is_cut_and_says_how_long_it_was(lines: Any) -> None:
    written = lines("json")
    event(log, logging.INFO, "refused", id="x" * 1_000_000)
    (line,) = written()
    assert json.loads(line)["id"] == "x" * FIELD_CHARACTERS_MAX + "… (1000000 characters)"


def test_a_field_never_replaces_a_key_of_ours(lines: Any) -> None:
    written = lines("json")
    event(log, logging.INFO, "true message", level="forged", time="never", logger="them")
    record = json.loads(written()[0])
    assert (record["level"], record["message"], record["level_"]) == ("info", "true message", "forged")


def test_numbers_that_json_has_no_word_for_are_written_as_text(lines: Any) -> None:
    written = lines("json")
    event(log, logging.INFO, "measured", nan=float("nan"), inf=float("inf"))
    record = json.loads(written()[0], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (record["nan"], record["inf"]) == ("nan", "inf")


def test_lone_surrogates_do_not_stop_a_line(lines: Any) -> None:
    for form in ("json", "text"):
        written = lines(form)
        event(log, logging.INFO, "file", path="bad\udc80name")
        assert written()[-1].encode()


def test_the_level_holds(lines: Any) -> None:
    written = lines("text", "warning")
    event(log, logging.INFO, "not said")
    event(log, logging.WARNING, "said")
    assert len(written()) == 1


def test_a_braces_and_percent_signs_are_no_formats(lines: Any) -> None:
    written = lines("text")
    event(log, logging.INFO, "100 % of {it}", model="%s {0}")
    assert written()[0].endswith('100 % of {it}  model="%s {0}"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain", "plain"), ("a\tb", "a\\tb"), ("\x00", "\\x00"), ("é ✓", "é ✓"), ("\u202eevil", "\\u202eevil")],
)
def test_only_what_cannot_be_printed_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_removing_a_handler_leaves_logging_as_it_was() -> None:
    package = logging.getLogger(logs.ROOT)
    before = (list(package.handlers), package.propagate, package.level)
    logs.remove(configure("json", "debug", io.StringIO()))
    assert (list(package.handlers), package.propagate, package.level) == before
