"""Log lines that a person can read, a machine can parse, and a caller cannot forge.

One line a record: JSON objects, or text. Names and values often come from outside (model names, request ids, file
names), so whatever could end a line or drive a terminal is escaped, and each value is cut to 256 characters.

Events carry their values as fields, beside a fixed message: `event(log, INFO, "version ready", model=name)`. At level
info there is a line for each step of a life, and none for a request.
"""

import json
import logging
import math
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

from forwardpass_server.errors import NotImplementedHere

FIELD_CHARACTERS_MAX = 256
MESSAGE_CHARACTERS_MAX = 1024
TRACEBACK_CHARACTERS_MAX = 16384

ROOT = "forwardpass_server"
"""The logger above every logger of this package; `configure` touches this one and no other."""

_FIELDS = "forwardpass_fields"


def event(log: logging.Logger, level: int, message: str, /, **fields: object) -> None:
    """Log `message`, a constant of ours, with values beside it.

    Args:
        fields: strings, numbers, booleans and None are kept; anything else is written as `str`.
    """
    if log.isEnabledFor(level):
        log.log(level, "%s", message, extra={_FIELDS: fields}, stacklevel=2)


def configure(form: str, level: str, stream: IO[str] | None = None, *, process: int | None = None) -> logging.Handler:
    """Send this package's records to a stream. The process's entry point calls it; nothing else does.

    Args:
        form: "json" or "text".
        level: "debug", "info", "warning" or "error".
        stream: standard error when None.
        process: a field of every line: which of the processes of one server writes it.

    Returns:
        The handler, for `remove`.
    """
    handler: logging.Handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    if process is not None:
        handler.addFilter(partial(_with_process, process))
    log = logging.getLogger(ROOT)
    log.setLevel(level.upper())
    log.addHandler(handler)
    log.propagate = False
    return handler


def remove(handler: logging.Handler) -> None:
    """Undo `configure`."""
    log = logging.getLogger(ROOT)
    log.removeHandler(handler)
    log.propagate = True
    log.setLevel(logging.NOTSET)


@dataclass(frozen=True, kw_only=True)
class LogState:
    """What is logged, and how its lines begin."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: bool = False
    """Debug records too."""
    iso_time: bool = False
    """Times in UTC by ISO 8601; JSON lines always have them so."""

    def but(self, **changes: bool) -> "LogState":
        """The same with some changes."""
        return replace(self, **changes)


class LogControl:
    """Changes the log of the process while it runs. Any thread.

    The log belongs to the process, so servers that live in one share it.
    """

    def get(self) -> LogState:
        """What is in force."""
        log = logging.getLogger(ROOT)
        switches = _switches(log)
        level = log.getEffectiveLevel()
        return LogState(
            info=level <= logging.INFO and logging.INFO not in switches.off,
            warning=level <= logging.WARNING and logging.WARNING not in switches.off,
            error=logging.ERROR not in switches.off,
            verbose=level <= logging.DEBUG,
            iso_time=all(_has_iso_time(handler) for handler in log.handlers),
        )

    def set(self, state: LogState) -> None:
        """Log so from now on.

        Raises:
            NotImplementedHere: JSON lines with another time.
        """
        log = logging.getLogger(ROOT)
        for handler in log.handlers:
            if isinstance(handler.formatter, JsonFormatter) and not state.iso_time:
                raise NotImplementedHere("the log is in JSON (--log-format=json), whose times are ISO 8601")
        for handler in log.handlers:
            if isinstance(handler.formatter, TextFormatter):
                handler.formatter.iso_time = state.iso_time
        kept = {logging.INFO: state.info, logging.WARNING: state.warning, logging.ERROR: state.error}
        _switches(log).off = frozenset(level for level, on in kept.items() if not on)
        log.setLevel(
            logging.DEBUG if state.verbose else min((n for n, on in kept.items() if on), default=logging.ERROR)
        )


class _Switches(logging.Filter):
    """Levels that are off; on the handlers, since a logger's own filters do not see its children's records."""

    off: frozenset[int] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        level = logging.ERROR if record.levelno > logging.ERROR else record.levelno
        return level not in self.off


def _switches(log: logging.Logger) -> _Switches:
    """The switches of the handlers; one object for all of them."""
    found = [each for handler in log.handlers for each in handler.filters if isinstance(each, _Switches)]
    switches = found[0] if found else _Switches()
    for handler in log.handlers:
        handler.addFilter(switches)
    return switches


def _has_iso_time(handler: logging.Handler) -> bool:
    formatter = handler.formatter
    return isinstance(formatter, JsonFormatter) or (isinstance(formatter, TextFormatter) and formatter.iso_time)


def escaped(text: str, characters_max: int = FIELD_CHARACTERS_MAX) -> str:
    """`text` on one line: no control characters, no lone surrogates, at most `characters_max` characters of it."""
    cut = text[:characters_max]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return cut if len(text) <= characters_max else f"{cut}… ({len(text)} characters)"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": escaped(record.getMessage(), MESSAGE_CHARACTERS_MAX),
        }
        for name, value in _fields(record).items():
            # A field never replaces one of ours.
            line[name if name not in line else f"{name}_"] = value
        trace = _traceback(self, record)
        if trace:
            line["traceback"] = trace
        return json.dumps(line, allow_nan=False)


class TextFormatter(logging.Formatter):
    """`12:34:56.789 INFO  message  name=value …`, tracebacks below with a bar before each line."""

    iso_time = False
    """`2026-01-31T12:34:56.789Z` instead."""

    def format(self, record: logging.LogRecord) -> str:
        clock = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d}"
        message = escaped(record.getMessage(), MESSAGE_CHARACTERS_MAX)
        line = f"{_utc(record) if self.iso_time else clock} {record.levelname:<7} {message}"
        pairs = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        trace = _traceback(self, record)
        # The bar keeps a line break inside an error's text from starting a line that looks like ours.
        bars = "".join(f"\n  | {escaped(part, MESSAGE_CHARACTERS_MAX)}" for part in trace.splitlines())
        return f"{line} {pairs}{bars}" if pairs else f"{line}{bars}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, object] = getattr(record, _FIELDS, {})
    return {name: value if _is_plain(value) else escaped(str(value)) for name, value in fields.items()}


def _with_process(process: int, record: logging.LogRecord) -> bool:
    setattr(record, _FIELDS, {"process": process} | getattr(record, _FIELDS, {}))
    return True


def _is_plain(value: object) -> bool:
    """Whether JSON has it as it stands; it has no NaN and no infinity."""
    return value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info:
        return ""
    return formatter.formatException(record.exc_info)[-TRACEBACK_CHARACTERS_MAX:]


def _quoted(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text and not any(c in ' ="' for c in text) else json.dumps(text, ensure_ascii=False)


def _utc(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
