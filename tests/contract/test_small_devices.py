"""What reaches a small device holds nothing of the machine it was made on: the wheel, and what the client needs."""

import ast
import re
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients/python/forwardpass"
DATA = {".bin", ".typed", ".pyi", ".html", ".css"}
BASE = {"grpcio", "protobuf", "numpy"}
MODULES_OF_BASE = {"grpc", "google", "numpy", "forwardpass_proto", "forwardpass"}
COMPILED = {b"\x7fELF", b"MZ\x90\0", b"\xcf\xfa\xed\xfe"}  # first bytes on Linux, Windows, macOS
LAZY = {"PIL"}  # extra `images`


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return Path(built)


def test_the_wheel_is_for_every_machine(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (tags,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
    assert "Root-Is-Purelib: true" in tags


def test_the_wheel_holds_python_and_data_and_nothing_compiled(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = [Path(name) for name in archive.namelist() if ".dist-info/" not in name]
        compiled = [file for file in files if archive.read(file.as_posix())[:4] in COMPILED]
    assert not compiled
    assert {file.suffix for file in files} <= DATA | {".py"}
    assert Path("forwardpass/client.py") in files


def test_the_base_is_the_client_and_three_libraries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (text,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    needed = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==).*$", text, re.MULTILINE)
    assert set(needed) == BASE


def test_the_client_imports_those_and_the_standard_library_alone() -> None:
    strangers: dict[str, set[str]] = {}
    for file in sorted(CLIENT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names} - sys.stdlib_module_names - MODULES_OF_BASE
            strangers.setdefault(file.name, set()).update(roots)
    assert {name: roots - LAZY for name, roots in strangers.items() if roots - LAZY} == {}
    assert {name for name, roots in strangers.items() if roots} == {"images.py", "explain_picture.py"}
