"""Regenerate what stands in `forwardpass_proto` from the .proto files beside this one: `make proto`.

    descriptors.bin   one FileDescriptorSet, read at import into a private pool
    *_pb2.pyi         type stubs

With `--check` nothing is written: the exit code is 1 and the differing files are named when the committed files are
not what the sources give. Needs grpcio-tools.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

SOURCES = Path(__file__).resolve().parent
PACKAGE = SOURCES / "forwardpass_proto"
FILES = ("model_config.proto", "grpc_service.proto", "health.proto", "reflection.proto")


def generate(into: Path) -> list[str]:
    """Write descriptors.bin and the stubs into a folder and return their names."""
    descriptors = into / "descriptors.bin"
    _protoc([f"-I{SOURCES}", f"--descriptor_set_out={descriptors}", "--include_imports", *FILES])

    # The stubs must import one another as modules of the package, so protoc sees the files under the package's name.
    packaged = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
    for file in packaged.file:
        file.name = f"{PACKAGE.name}/{file.name}"
        file.dependency[:] = [f"{PACKAGE.name}/{name}" for name in file.dependency]
    with tempfile.TemporaryDirectory() as scratch:
        renamed = Path(scratch) / "packaged.bin"
        renamed.write_bytes(packaged.SerializeToString())
        _protoc([f"--descriptor_set_in={renamed}", f"--pyi_out={scratch}", *(f"{PACKAGE.name}/{f}" for f in FILES)])
        for stub in (Path(scratch) / PACKAGE.name).iterdir():
            (into / stub.name).write_bytes(stub.read_bytes())
    return sorted(path.name for path in into.iterdir())


def _protoc(arguments: list[str]) -> None:
    if code := protoc.main(["protoc", *arguments]):
        raise SystemExit(f"protoc ended with {code}: {' '.join(arguments)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    check = parser.parse_args().check
    if not check:
        with tempfile.TemporaryDirectory() as scratch:
            for name in generate(Path(scratch)):
                (PACKAGE / name).write_bytes((Path(scratch) / name).read_bytes())
                sys.stdout.write(f"wrote {PACKAGE.name}/{name}\n")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        stale = [
            name
            for name in generate(Path(scratch))
            if not (PACKAGE / name).is_file() or (PACKAGE / name).read_bytes() != (Path(scratch) / name).read_bytes()
        ]
    if stale:
        sys.stderr.write(f"not what the .proto files give: {', '.join(stale)}; run `make proto` and commit\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
