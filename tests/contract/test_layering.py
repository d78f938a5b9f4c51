"""The house's arrows: who may import whom. Read from the source, so that an import inside a function counts too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "forwardpass": ROOT / "clients/python/forwardpass",
    "forwardpass_proto": ROOT / "proto/forwardpass_proto",
    "forwardpass_server": ROOT / "server/forwardpass_server",
    "forwardpass_training": ROOT / "training/forwardpass_training",
}
SERVER = PACKAGES["forwardpass_server"]

# Which of our packages each of them may import, besides itself.
ALLOWED = {
    "forwardpass": {"forwardpass_proto"},
    "forwardpass_proto": set(),
    "forwardpass_server": {"forwardpass_proto"},
    "forwardpass_training": {"forwardpass_server", "forwardpass"},  # one module of the server; the client in one; below
}

# Libraries that belong to certain rooms of the server and to no others.
ROOMS_OF = {
    "grpc": ["transport"],
    "onnxruntime": ["runtime"],
    "prometheus_client": ["observe"],
    "opentelemetry": ["observe"],
    "onnx": ["tensors", "runtime", "lifecycle"],
}

# Rooms of the server from the bottom up: a room may import those that stand before it, and itself.
FLOORS = [
    ["errors", "control"],
    ["logs"],
    ["transport", "tensors", "observe", "access"],
    ["scheduling"],
    ["runtime"],
    ["lifecycle"],
    ["rpc"],
]


def imports(file: Path) -> Iterator[str]:
    """Dotted names that a file imports; `from a.b import c` gives `a.b.c`."""
    for node in ast.walk(ast.parse(file.read_text(), file.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write it from the package's name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_those_below_them(package: str) -> None:
    files = python_files(PACKAGES[package])
    assert files
    for file in files:
        ours = {name.split(".")[0] for name in imports(file)} & PACKAGES.keys()
        assert ours <= ALLOWED[package] | {package}, file


def test_training_knows_of_the_server_only_the_layout_of_the_repository() -> None:
    for file in python_files(PACKAGES["forwardpass_training"]):
        of_server = {name for name in imports(file) if name.split(".")[0] == "forwardpass_server"}
        strangers = {n for n in of_server if not n.startswith("forwardpass_server.lifecycle.repository")}
        assert strangers <= {"forwardpass_server.lifecycle.repository"}, f"{file}: {strangers}"


def test_training_calls_a_server_in_one_place_and_through_the_client() -> None:
    package = PACKAGES["forwardpass_training"]
    calling = [f.name for f in python_files(package) if any(name.split(".")[0] == "forwardpass" for name in imports(f))]
    assert calling == ["victims.py"]


def test_the_repository_layout_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; import forwardpass_server.lifecycle.repository; "
        "heavy = {'grpc', 'numpy', 'onnx', 'onnxruntime', 'torch', 'google', 'prometheus_client'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_whole_server_is_wired_without_torch() -> None:
    code = "import sys; import forwardpass_server.app; assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_no_file_of_the_server_names_torch_or_unpickles() -> None:
    for file in python_files(SERVER):
        roots = {name.split(".")[0] for name in imports(file)}
        assert not roots & {"torch", "pickle", "cloudpickle", "joblib", "dill", "shelve"}, file


def test_only_one_file_names_the_private_module_of_grpcio() -> None:
    naming = [
        file
        for package in PACKAGES.values()
        for file in python_files(package)
        if any(name.startswith("grpc._cython") or name == "grpc._cython" for name in imports(file))
        or "cygrpc" in file.read_text()
    ]
    assert [file.relative_to(SERVER).as_posix() for file in naming] == ["transport/core.py"]


@pytest.mark.parametrize("library", ROOMS_OF)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    rooms = set()
    for file in python_files(SERVER):
        if any(name.split(".")[0] == library for name in imports(file)):
            rooms.add(file.relative_to(SERVER).parts[0])
    assert rooms <= set(ROOMS_OF[library])


def test_rooms_of_the_server_import_downwards() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upwards = []
    for file in python_files(SERVER):
        room = file.relative_to(SERVER).parts[0].removesuffix(".py")
        if room not in floor:
            continue
        for name in imports(file):
            parts = name.split(".")
            if parts[0] != "forwardpass_server" or len(parts) < 2 or parts[1] == room:
                continue
            if floor.get(parts[1], len(FLOORS)) >= floor[room]:
                upwards.append(f"{file.relative_to(SERVER)} imports {name}")
    assert not upwards, "\n".join(upwards)


def test_every_file_opens_by_saying_what_it_is_for() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for package in PACKAGES.values()
        for file in python_files(package)
        if not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not silent


def test_there_is_no_drawer() -> None:
    drawers = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert not [f for package in PACKAGES.values() for f in python_files(package) if f.name in drawers]
