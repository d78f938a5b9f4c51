"""Token files: what they may hold, when they are read again, and what happens when they cannot be."""

import logging
import os
from pathlib import Path

import pytest

from forwardpass_server.access.tokens import CHECK_INTERVAL_S, FILE_BYTES_MAX, TOKENS_MAX, TokenFile
from forwardpass_server.errors import StartFailed

FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, text: str) -> Path:
    """As deployments do it: a new file in the place of the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no token"),
        (b"\n# only a comment\n\n", "holds no token"),
        (b"short\n", "line 1 has 5 characters; a token has at least 16"),
        (b"\n\nfifteen-letters\n", "line 3 has 15 characters"),
        ("tökenwithumlaut0123".encode(), "not ASCII"),
        (b"\xff" * 20, "not ASCII"),
        (b"x" * (FILE_BYTES_MAX + 1), "larger than"),
        (b"0123456789abcdef\n" * (TOKENS_MAX + 1), f"at most {TOKENS_MAX}"),
    ],
)
def test_a_file_without_good_tokens_is_no_start(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(StartFailed, match=r"token file .*tokens") as caught:
        TokenFile(tmp_path / "tokens")
    assert reason in str(caught.value)


def test_a_file_that_is_not_there_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="cannot be read: No such file"):
        TokenFile(tmp_path / "tokens")
    with pytest.raises(StartFailed, match="cannot be read"):
        TokenFile(tmp_path)


def test_whole_tokens_are_known_and_nothing_else(tmp_path: Path) -> None:
    tokens = TokenFile(write(tmp_path / "tokens", f"# ours\n\n  {FIRST}  \n{SECOND}\n"))
    assert tokens.holds(FIRST)
    assert tokens.holds(SECOND)
    for other in (
        "",
        FIRST[:-1],
        FIRST + "x",
        FIRST.upper(),
        f"{FIRST}\n{SECOND}",
        "# ours",
        "ü" * 30,
        "x" * 1_000_000,
    ):
        assert not tokens.holds(other)


def test_a_changed_file_is_read_again_and_not_at_every_call(tmp_path: Path) -> None:
    clock = Clock()
    tokens = TokenFile(write(tmp_path / "tokens", FIRST), clock)
    write(tmp_path / "tokens", SECOND)
    assert tokens.holds(FIRST), "looked at a moment ago"
    clock.now += CHECK_INTERVAL_S
    assert not tokens.holds(FIRST)
    assert tokens.holds(SECOND)


@pytest.mark.parametrize("content", [None, "short", "ü" * 20])
def test_a_file_that_went_bad_leaves_the_tokens_of_before_and_is_logged(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    tokens = TokenFile(write(tmp_path / "tokens", FIRST), clock)
    if content is None:
        (tmp_path / "tokens").unlink()
    else:
        write(tmp_path / "tokens", content)
    clock.now += CHECK_INTERVAL_S
    with caplog.at_level(logging.INFO, "forwardpass_server"):
        assert tokens.holds(FIRST)
        clock.now += CHECK_INTERVAL_S
        assert tokens.holds(FIRST)
    assert [record.levelname for record in caplog.records] == ["ERROR"], "said once"
    write(tmp_path / "tokens", SECOND)
    clock.now += CHECK_INTERVAL_S
    assert tokens.holds(SECOND)


def test_an_emptied_file_revokes_every_token(tmp_path: Path) -> None:
    clock = Clock()
    tokens = TokenFile(write(tmp_path / "tokens", FIRST), clock)
    write(tmp_path / "tokens", "")
    clock.now += CHECK_INTERVAL_S
    assert not tokens.holds(FIRST)


def test_tokens_are_not_in_memory_as_they_are(tmp_path: Path) -> None:
    tokens = TokenFile(write(tmp_path / "tokens", FIRST))
    assert FIRST not in repr(vars(tokens))
