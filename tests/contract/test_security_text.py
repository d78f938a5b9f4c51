"""SECURITY.md says nothing that no test shows: every test it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "server/SECURITY.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED) > 40
    missing = []
    for file, name in NAMED:
        path = ROOT / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module(body=[], type_ignores=[])
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert not missing


def test_every_claim_about_callers_names_its_tests() -> None:
    section = TEXT.partition("## What callers cannot do")[2].partition("\n## ")[0]
    claims = [part for part in section.split("\n\n") if part.startswith("**")]
    assert len(claims) >= 10
    assert [claim for claim in claims if "`tests/" not in claim] == []
