"""A list of checks that goes on after one has failed.

Standard library only: callers run in other people's environments.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class Checks:
    """`with check("what"): ...` for each; `finish()` at the end."""

    def __init__(self) -> None:
        self._failed = 0

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a foreign client raises is a failed check
            self._failed += 1
            line = traceback.extract_tb(error.__traceback__)[-1]
            print(f"WRONG {what}: {type(error).__name__}: {error} (line {line.lineno}: {line.line})")
        else:
            print(f"ok    {what}")

    def finish(self) -> None:
        """End the process: 0 when every check passed."""
        print(f"{self._failed} wrong")
        sys.exit(self._failed > 0)


class Recorder:
    """A client that remembers which of its methods were called."""

    def __init__(self, client: object) -> None:
        self._client = client
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> object:
        self.called.add(name)
        return getattr(self._client, name)

    def never_called(self, but: Iterable[str] = ()) -> set[str]:
        """Public methods of the client that nobody called."""
        kind = type(self._client)
        methods = {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}
        return methods - self.called - set(but)


def refused(code: str, call: Callable[..., object], *arguments: object, **named: object) -> None:
    """Call what must end with that status ("NOT_FOUND"), or with any but OK if it is ""."""
    status = "OK"
    try:
        call(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - each client has an exception of its own
        of_client = getattr(error, "status", None) or getattr(error, "code", None)
        status = str(of_client()) if callable(of_client) else str(error)
    assert status != "OK", "not refused"
    assert code in status, status
