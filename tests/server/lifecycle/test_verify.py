"""The private copy: what must never be read is not, and what is read is what was checked."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.repository import ManifestMismatch, VersionFolder
from forwardpass_server.lifecycle.verify import PrivateCopy, UnsafeFile, external_locations, open_inside, private_copy

WEIGHTS = np.array([1, 2, 3], np.float32).tobytes()

External = Callable[[str], onnx.ModelProto]


@contextmanager
def copied(repo: Any, version: VersionFolder, **options: Any) -> Iterator[PrivateCopy]:
    settings: dict[str, Any] = {"filename": "model.onnx", "bytes_max": 1 << 20} | options
    with private_copy(version, root=repo.root, **settings) as copy:
        yield copy


def refused(repo: Any, version: VersionFolder, **options: Any) -> str:
    """Why the version was refused."""
    with pytest.raises(LoadFailed) as caught, copied(repo, version, **options):
        pytest.fail("it was copied")
    return str(caught.value)


def test_a_version_without_manifest_is_copied_with_its_weights_and_nothing_else(
    repo: Any, external_model: External
) -> None:
    version = repo.bare(content=external_model("weights/w.bin"))
    (version.path / "weights").mkdir()
    (version.path / "weights/w.bin").write_bytes(WEIGHTS)
    (version.path / "notes.txt").write_text("not the model's")
    with copied(repo, version) as copy:
        files = {path.relative_to(copy.folder).as_posix() for path in copy.folder.rglob("*") if path.is_file()}
        assert files == {"model.onnx", "weights/w.bin"}
        assert copy.model.read_bytes() == (version.path / "model.onnx").read_bytes()
        assert (copy.folder / "weights/w.bin").read_bytes() == WEIGHTS
        assert copy.folder.stat().st_mode & 0o777 == 0o700
    assert not copy.folder.exists()


def test_a_published_version_is_copied_with_all_that_its_manifest_lists(repo: Any) -> None:
    version = repo.published()
    with copied(repo, version) as copy:
        assert (copy.folder / "test_data_set_0/input_0.pb").exists()
        assert copy.sha256 == version.manifest.files["model.onnx"].sha256


def test_a_change_after_the_copy_changes_nothing(repo: Any) -> None:
    version = repo.bare()
    before = (version.path / "model.onnx").read_bytes()
    with copied(repo, version) as copy:
        (version.path / "model.onnx").write_bytes(b"swapped in later")
        assert copy.model.read_bytes() == before


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_the_model_is_refused_without_waiting(repo: Any) -> None:
    version = repo.bare()
    (version.path / "model.onnx").unlink()
    os.mkfifo(version.path / "model.onnx")
    assert "is a pipe, not a regular file" in refused(repo, version)


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_the_weights_is_refused_without_waiting(repo: Any, external_model: External) -> None:
    version = repo.bare(content=external_model("w.bin"))
    os.mkfifo(version.path / "w.bin")
    assert "'m/1/w.bin' is a pipe" in refused(repo, version)


def test_a_hard_link_is_refused(repo: Any, tmp_path: Path, external_model: External) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(WEIGHTS)
    version = repo.bare(content=external_model("w.bin"))
    os.link(secret, version.path / "w.bin")
    assert "hard link, one of 2 names" in refused(repo, version)


def test_a_link_out_of_the_repository_is_refused_and_its_target_not_named(repo: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    version = repo.bare()
    (version.path / "model.onnx").unlink()
    (version.path / "model.onnx").symlink_to(secret)
    reason = refused(repo, version)
    assert "'m/1/model.onnx' leads out of the repository" in reason
    assert str(tmp_path) not in reason


def test_a_linked_folder_out_of_the_repository_is_refused(repo: Any, tmp_path: Path, external_model: External) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/w.bin").write_bytes(WEIGHTS)
    version = repo.bare(content=external_model("weights/w.bin"))
    (version.path / "weights").symlink_to(tmp_path / "outside")
    assert "leads out of the repository" in refused(repo, version)


def test_links_inside_the_repository_are_followed(repo: Any) -> None:
    """As git-sync, ConfigMaps and the caches of hubs lay their files."""
    real = repo.bare("store", 7).path / "model.onnx"
    folder = repo.root / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "..data").symlink_to(real.parent)
    (folder / "model.onnx").symlink_to("..data/model.onnx")
    with copied(repo, repo.read("m", 1)) as copy:
        assert copy.model.read_bytes() == real.read_bytes()


def test_a_repository_that_is_a_link_itself_is_followed(repo: Any, tmp_path: Path) -> None:
    repo.bare()
    current = tmp_path / "current"
    current.symlink_to(repo.root)
    version = VersionFolder(model="m", version=1, path=current / "m" / "1")
    with private_copy(version, root=current, filename="model.onnx", bytes_max=1 << 20) as copy:
        assert copy.model.exists()


def test_a_loop_of_links_is_refused(repo: Any) -> None:
    version = repo.bare()
    (version.path / "model.onnx").unlink()
    (version.path / "model.onnx").symlink_to("model.onnx")
    assert "cannot be copied" in refused(repo, version)


@pytest.mark.parametrize(
    "location",
    ["/etc/hostname", "../../../secret", "a/../../secret", "..", "", ".", "*/_ORT_MEM_ADDR_/*", "w\0.bin"],
)
def test_external_data_that_escapes_is_refused_by_its_name(repo: Any, external_model: External, location: str) -> None:
    assert "external data at" in refused(repo, repo.bare(content=external_model(location)))


def test_external_data_that_is_missing_is_named(repo: Any, external_model: External) -> None:
    assert refused(repo, repo.bare(content=external_model("w.bin"))) == "the version has no file 'w.bin'"


def test_external_data_is_found_wherever_a_tensor_can_stand() -> None:
    def tensor(location: str) -> TensorProto:
        made = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=location)
        return made

    sparse = onnx.SparseTensorProto(values=tensor("sparse_values"), indices=tensor("sparse_indices"), dims=[1])
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor("subgraph"))], "inner", [], [])
    inner.initializer.append(tensor("subgraph_initializer"))
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["k"], value=tensor("attribute"))
    sparse_constant = helper.make_node("Constant", [], ["s"], sparse_value=sparse)
    graph = helper.make_graph([branch, constant, sparse_constant], "g", [], [], [tensor("initializer")])
    graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=tensor("init_values"), indices=tensor("init_indices"), dims=[1])
    )
    model = helper.make_model(graph)
    function = helper.make_function(
        "custom", "f", [], ["o"], [helper.make_node("Constant", [], ["o"], value=tensor("function"))], []
    )
    model.functions.append(function)
    model.training_info.add().initialization.initializer.append(tensor("training"))
    assert external_locations(model) == {
        "initializer",
        "init_values",
        "init_indices",
        "attribute",
        "sparse_values",
        "sparse_indices",
        "subgraph",
        "subgraph_initializer",
        "function",
        "training",
    }


def test_a_changed_byte_is_found_and_the_file_named(repo: Any) -> None:
    version = repo.published()
    path = version.path / "test_data_set_0" / "output_0.pb"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestMismatch, match=r"output_0\.pb.*expected sha256"), copied(repo, version):
        pass


@pytest.mark.parametrize("file", ["model.onnx", "test_data_set_0/input_0.pb"])
def test_a_missing_file_of_the_manifest_is_named(repo: Any, file: str) -> None:
    version = repo.published()
    (version.path / file).unlink()
    with pytest.raises(ManifestMismatch, match=f"'{file}'.*no such file"), copied(repo, version):
        pass


def test_weights_that_the_manifest_does_not_list_are_refused(repo: Any, external_model: External) -> None:
    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(external_model("w.bin").SerializeToString())
        return {}

    version = repository.publish(repo.root, "m", build)
    (version.path / "w.bin").write_bytes(WEIGHTS)
    assert "'w.bin' differs from manifest.json: expected a record of it, got none" in refused(repo, version)


@pytest.mark.parametrize("kept", [0, 1, 10, 50, 100])
def test_a_truncated_model_is_refused(repo: Any, kept: int) -> None:
    version = repo.bare()
    path = version.path / "model.onnx"
    path.write_bytes(path.read_bytes()[:kept])
    reason = refused(repo, version)
    assert "not an ONNX file" in reason


def test_the_sum_of_the_files_is_limited(repo: Any, external_model: External) -> None:
    version = repo.bare(content=external_model("w.bin"))
    (version.path / "w.bin").write_bytes(WEIGHTS)
    size_bytes = (version.path / "model.onnx").stat().st_size + len(WEIGHTS)
    with copied(repo, version, bytes_max=size_bytes):
        pass
    assert f"exceed {size_bytes - 1} bytes" in refused(repo, version, bytes_max=size_bytes - 1)


def test_a_full_disk_is_a_reason_and_leaves_nothing(repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, path: Path) -> None:
            path.touch()

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    (tmp_path / "scratch").mkdir()
    real_open = Path.open

    def full_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return Full(path) if mode == "xb" else real_open(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full_open)
    assert (
        refused(repo, repo.bare(), scratch=tmp_path / "scratch")
        == "'model.onnx' cannot be copied: No space left on device"
    )
    assert list((tmp_path / "scratch").iterdir()) == []


def test_no_place_for_the_copy_is_a_reason(repo: Any, tmp_path: Path) -> None:
    assert "--scratch-dir" in refused(repo, repo.bare(), scratch=tmp_path / "missing")


def test_a_model_in_a_folder_of_its_own_name_is_copied_with_the_weights_beside_it(
    repo: Any, external_model: External
) -> None:
    folder = repo.root / "m" / "1" / "model.onnx"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(external_model("w.bin").SerializeToString())
    (folder / "w.bin").write_bytes(WEIGHTS)
    with copied(repo, repo.read("m", 1)) as copy:
        assert copy.model == copy.folder / "model.onnx" / "model.onnx"
        assert (copy.model.parent / "w.bin").read_bytes() == WEIGHTS


def test_an_empty_version_folder_is_told_what_it_lacks(repo: Any) -> None:
    (repo.root / "m" / "1").mkdir(parents=True)
    assert refused(repo, repo.read("m", 1)) == "the version has no file 'model.onnx'"


def test_a_link_put_in_after_the_check_is_not_followed(
    repo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race itself: the path is resolved, and then its folder becomes a link to somewhere else."""
    path = repo.bare().path / "model.onnx"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/model.onnx").write_bytes(b"secret")
    resolve = os.path.realpath

    def swap_after_resolving(name: Any, **options: Any) -> str:
        real: str = resolve(name, **options)
        if Path(name) == path:
            path.parent.rename(tmp_path / "moved")
            path.parent.symlink_to(tmp_path / "outside")
        return real

    monkeypatch.setattr(os.path, "realpath", swap_after_resolving)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        open_inside(repo.root, path)


def test_a_file_above_the_root_is_not_opened(repo: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    with pytest.raises(UnsafeFile):
        open_inside(repo.root, repo.root / ".." / "secret")
    with pytest.raises(UnsafeFile, match="a folder"):
        open_inside(repo.root, repo.root)
