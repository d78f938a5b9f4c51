"""The model repository: whole versions or none, whoever dies or writes beside; one bad folder hides no other."""

import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.repository import (
    GoldenSet,
    InvalidManifest,
    Manifest,
    PublishFailed,
    RepositoryUnreadable,
    Tolerance,
    publish,
    read_manifest,
    record_files,
    scan,
)

GOLDEN = GoldenSet(folder="test_data_set_0", atol=1e-6, rtol=1e-5, outputs={"y": Tolerance(atol=1e-3, rtol=0.0)})


def build(folder: Path) -> repository.Contents:
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "test_data_set_0").mkdir()
    (folder / "test_data_set_0" / "input_0.pb").write_bytes(b"x")
    (folder / "test_data_set_0" / "output_0.pb").write_bytes(b"y")
    return {"golden": [GOLDEN], "provenance": {"recipe": "linear"}, "metrics": {"mse": 0.25}}


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script that knows `publish`, `scan`, `record_files`, `build`, `root`."""
    prelude = """
        import os, shutil, signal, sys
        from pathlib import Path
        from forwardpass_server.lifecycle.repository import GoldenSet, publish, record_files, scan
        root = Path(sys.argv[1])
        def build(folder):
            (folder / "model.onnx").write_bytes(b"graph" * 1000)
            (folder / "test_data_set_0").mkdir()
            (folder / "test_data_set_0" / "input_0.pb").write_bytes(b"x")
            (folder / "test_data_set_0" / "output_0.pb").write_bytes(b"y")
            return {"golden": [GoldenSet(folder="test_data_set_0", atol=0.0, rtol=0.0)]}
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(script)
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


# ------------------------------------------------------------------------------------------ killed, raced, crowded


def test_killed_at_any_step_a_publisher_leaves_a_whole_version_or_none(tmp_path: Path) -> None:
    # A step is a line of our own code or a file operation that Python audits (open, mkdir, rename, remove, flock …).
    # The k-th child dies by SIGKILL just before its k-th step, until a child lives to the end.
    script = """
        def die_before(step):
            seen = 0
            def count():
                nonlocal seen
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            def trace(frame, event, arg):
                if frame.f_code.co_name not in ("publish", "_staging", "_clean", "_lock", "write", "write_manifest"):
                    return None
                if event == "line":
                    count()
                return trace
            sys.addaudithook(lambda event, args: count() if event.split(".")[0] in ("open", "os", "fcntl") else None)
            sys.settrace(trace)

        whole = 0
        for step in range(1, 2000):
            child = os.fork()
            if child == 0:
                die_before(step)
                publish(root, "m", build)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if root.exists():
                found = scan(root)
                assert not found.problems, (step, found.problems)
                for version in found.models["m"].versions.values() if "m" in found.models else ():
                    assert version.manifest is not None, (step, version)
                    assert record_files(version.path) == version.manifest.files
                    whole += 1
                    shutil.rmtree(version.path)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0, status
                break
        print(step, whole, sorted(os.listdir(root / "m")))
    """
    result = run_python(script, tmp_path / "models")
    assert result.returncode == 0, result.stderr
    steps, versions, entries = result.stdout.split(maxsplit=2)
    assert int(steps) > 100, "too few steps were seen to prove anything"
    assert int(versions) > 1, "some died after the rename"
    assert entries.strip() == "['.publish.lock']", "the last publisher removes what the dead ones left"


def test_publishers_at_once_never_clash(tmp_path: Path) -> None:
    script = """
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                for _ in range(5):
                    publish(root, "m", build)
                os._exit(0)
            children.append(child)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
        versions = scan(root).models["m"].versions
        assert list(versions) == list(range(1, 21)), list(versions)
        for version in versions.values():
            assert version.manifest.version == version.version
            assert record_files(version.path) == version.manifest.files
    """
    result = run_python(script, tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "m").iterdir() if p.name.startswith(".")) == [".publish.lock"]


def test_threads_of_one_process_get_their_own_numbers_too(tmp_path: Path) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(publish(tmp_path, "m", build).version)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def test_a_live_publishers_staging_folder_is_not_cleaned(tmp_path: Path) -> None:
    def build_while_another_publishes(folder: Path) -> repository.Contents:
        contents = build(folder)
        assert publish(tmp_path, "m", build).version == 1
        return contents

    slow = publish(tmp_path, "m", build_while_another_publishes)
    assert slow.version == 2
    assert slow.manifest is not None
    assert record_files(slow.path) == slow.manifest.files


def test_a_lock_that_is_never_released_gives_an_error_that_names_it(tmp_path: Path) -> None:
    def publish_inside(folder: Path) -> repository.Contents:
        with repository._lock(tmp_path / "m", 1.0), pytest.raises(PublishFailed, match=r"\.publish\.lock for 0\.05 s"):
            publish(tmp_path, "m", build, lock_timeout_s=0.05)
        return build(folder)

    assert publish(tmp_path, "m", publish_inside).version == 1


def test_a_folder_that_somebody_else_made_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not through `publish`, in the moment between our look and our rename.
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"theirs")
    monkeypatch.setattr(repository, "_numbers", lambda _home: [])
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path, "m", build)
    assert (tmp_path / "m" / "1" / "model.onnx").read_bytes() == b"theirs"


# ----------------------------------------------------------------------------------------------- refused publishing


def test_a_build_that_raises_publishes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> repository.Contents:
        build(folder)
        raise ZeroDivisionError("in the middle")

    with pytest.raises(ZeroDivisionError):
        publish(tmp_path, "m", broken)
    assert os.listdir(tmp_path / "m") == [".publish.lock"]
    assert not scan(tmp_path).models["m"].versions


@pytest.mark.parametrize("name", ["", ".", "..", "../m", "a/b", "/etc", "m\n", "m\0", ".hidden", "-x", "ü", "m" * 129])
def test_a_bad_model_name_is_refused_before_the_disk_is_touched(tmp_path: Path, name: str) -> None:
    with pytest.raises(PublishFailed, match="is no model name"):
        publish(tmp_path / "models", name, build)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["m", "_", "0", "m..1", "a-b.c_d", "m" * 128])
def test_a_good_model_name_is_taken(tmp_path: Path, name: str) -> None:
    assert publish(tmp_path, name, build).model == name


def test_a_build_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishFailed, match=r"wrote no model\.onnx"):
        publish(tmp_path, "m", lambda _folder: {})


def test_metrics_without_json_form_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), object()):
        with pytest.raises(PublishFailed, match="of no use"):
            publish(tmp_path, "m", lambda folder, value=value: build(folder) | {"metrics": {"mse": value}})  # type: ignore[misc]
    assert os.listdir(tmp_path / "m") == [".publish.lock"]


def test_a_golden_set_without_files_is_refused(tmp_path: Path) -> None:
    missing = GoldenSet(folder="test_data_set_7", atol=0.0, rtol=0.0)
    with pytest.raises(PublishFailed, match=r"no test_data_set_7/output_0\.pb"):
        publish(tmp_path, "m", lambda folder: build(folder) | {"golden": [missing]})


def test_a_link_in_a_build_is_refused(tmp_path: Path) -> None:
    def linked(folder: Path) -> repository.Contents:
        (folder / "model.onnx").symlink_to("/etc/passwd")
        return {}

    with pytest.raises(OSError, match="symbolic link"):
        publish(tmp_path, "m", linked)


# ---------------------------------------------------------------------------------------------------------- numbers


def test_the_next_number_is_above_every_number_there_is_or_was(tmp_path: Path) -> None:
    (tmp_path / "m" / "007").mkdir(parents=True)
    (tmp_path / "m" / "v9").mkdir()
    (tmp_path / "m" / "8").write_text("a file, and still in the way")
    assert publish(tmp_path, "m", build).version == 9
    shutil.rmtree(tmp_path / "m" / "9")
    assert publish(tmp_path, "m", build).version == 10
    (tmp_path / "m" / ".publish.lock").write_bytes(b"\xff torn")
    assert publish(tmp_path, "m", build).version == 11


def test_there_is_an_end_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "m" / str(2**63 - 1)).mkdir(parents=True)
    with pytest.raises(PublishFailed, match="9223372036854775807"):
        publish(tmp_path, "m", build)


def test_the_published_version_is_what_was_built(tmp_path: Path) -> None:
    version = publish(tmp_path, "m", build)
    assert version.path == tmp_path / "m" / "1"
    assert version.model_file().read_bytes() == b"graph"
    manifest = version.manifest
    assert manifest is not None
    assert manifest == read_manifest(version.path)
    assert (manifest.model, manifest.version, manifest.golden) == ("m", 1, (GOLDEN,))
    assert manifest.golden[0].tolerance("y") == Tolerance(atol=1e-3, rtol=0.0)
    assert manifest.golden[0].tolerance("z") == Tolerance(atol=1e-6, rtol=1e-5)
    assert list(manifest.files) == ["model.onnx", "test_data_set_0/input_0.pb", "test_data_set_0/output_0.pb"]
    assert scan(tmp_path).models["m"].versions == {1: version}


def test_another_user_may_read_what_was_published(tmp_path: Path) -> None:
    # The server seldom runs as the user who trains: no 0700 of a temporary folder may survive.
    umask = os.umask(0o022)
    try:
        version = publish(tmp_path, "m", build)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(version.path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(p.stat().st_mode) for p in version.path.rglob("*") if p.is_file()} == {0o644}


# ---------------------------------------------------------------------------------------------------------- manifest


def corrupted(manifest: Manifest, **changes: object) -> str:
    return json.dumps(json.loads(manifest.to_json()) | changes)


RECORD = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "has format 2, and this program reads format 1"),
        ({"format": "1"}, "'format' of the manifest must be int, got '1'"),
        ({"format": True}, "must be int"),
        ({"files": {}}, "lists no files"),
        ({"files": []}, "must be dict"),
        ({"files": {"/etc/passwd": RECORD}}, "names '/etc/passwd'"),
        ({"files": {"../2/model.onnx": RECORD}}, "no plain path"),
        ({"files": {"a/./b": RECORD}}, "no plain path"),
        ({"files": {"": RECORD}}, "no plain path"),
        ({"files": {"a\0b": RECORD}}, "no plain path"),
        ({"files": {"model.onnx": {"sha256": "x", "bytes": 1}}}, "64 hexadecimal digits, got 'x'"),
        ({"files": {"model.onnx": {"sha256": "0" * 64, "bytes": -1}}}, "must not be negative"),
        ({"files": {"model.onnx": {"sha256": "0" * 64}}}, r"files\['model.onnx'\] lacks 'bytes'"),
        ({"golden": [{"folder": "..", "atol": 0, "rtol": 0}]}, "no plain path"),
        ({"golden": [{"folder": "nowhere", "atol": 0, "rtol": 0}]}, r"no nowhere/output_0\.pb"),
        ({"golden": [{"folder": "test_data_set_0", "rtol": 0}]}, r"golden\[0\] lacks 'atol'"),
        ({"golden": [{"folder": "test_data_set_0", "atol": -1, "rtol": 0}]}, "not negative"),
        ({"golden": [{"folder": "test_data_set_0", "atol": float("inf"), "rtol": 0}]}, "finite"),
        ({"golden": ["test_data_set_0"]}, "must be an object, got str"),
        ({"model": None}, "lacks 'model'"),
    ],
)
def test_a_manifest_that_says_impossible_things_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    version = publish(tmp_path, "m", build)
    assert version.manifest is not None
    with pytest.raises(InvalidManifest, match=reason):
        Manifest.from_json(corrupted(version.manifest, **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (16 << 20) + b"{}"])
def test_a_file_that_is_no_manifest_is_a_problem_and_never_an_unproved_version(tmp_path: Path, content: bytes) -> None:
    version = publish(tmp_path, "m", build)
    (version.path / "manifest.json").write_bytes(content)
    found = scan(tmp_path)
    damaged = found.models["m"].versions[1]
    assert damaged.manifest is None
    assert damaged.problem is not None
    assert [(p.model, p.version, p.reason) for p in found.problems] == [("m", 1, damaged.problem)]


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    version = publish(tmp_path, "m", build)
    assert version.manifest is not None
    for name in ("manifest.json", "model.onnx"):
        (version.path / name).unlink()
        os.mkfifo(version.path / name)
    assert "not a regular file" in str(scan(tmp_path).models["m"].versions[1].problem)
    with pytest.raises(OSError, match=r"model\.onnx is not a regular file"):
        record_files(version.path)
    with pytest.raises(LoadFailed):
        version.model_file()


@pytest.mark.parametrize("content", [b"graph!", b"grapH", None])
def test_a_changed_file_is_seen(tmp_path: Path, content: bytes | None) -> None:
    version = publish(tmp_path, "m", build)
    assert version.manifest is not None
    assert record_files(version.path) == version.manifest.files
    (version.path / "model.onnx").unlink()
    if content is not None:
        (version.path / "model.onnx").write_bytes(content)
    assert record_files(version.path) != version.manifest.files


def test_a_copied_version_folder_remains_valid(tmp_path: Path) -> None:
    version = publish(tmp_path, "m", build)
    shutil.copytree(version.path, tmp_path / "production" / "12")
    copy = scan(tmp_path).models["production"].versions[12]
    assert copy.manifest == version.manifest
    assert copy.manifest is not None
    assert record_files(copy.path) == copy.manifest.files


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(metrics=st.dictionaries(st.text(), json_values, max_size=4), atol=st.floats(0, 1e300))
def test_a_manifest_comes_back_as_it_went(metrics: dict[str, object], atol: float) -> None:
    record = repository.FileRecord(sha256="0" * 64, bytes=0)
    manifest = Manifest(
        model="m",
        version=1,
        created="2026-01-01T00:00:00+00:00",
        files={f"test_data_set_0/{name}": record for name in ("input_0.pb", "output_0.pb")},
        golden=(
            GoldenSet(folder="test_data_set_0", atol=atol, rtol=0.0, outputs={"y": Tolerance(atol=1.0, rtol=atol)}),
        ),
        metrics=metrics,
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


@given(content=json_values)
def test_any_json_is_a_manifest_or_refused_as_one(content: object) -> None:
    with pytest.raises(InvalidManifest):
        Manifest.from_json(json.dumps(content))


# -------------------------------------------------------------------------------------------------------------- scan


def test_no_root_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RepositoryUnreadable, match="nowhere cannot be listed: No such file"):
        scan(tmp_path / "nowhere")


def test_bad_folders_hide_no_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, "good", build)
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("")
    (tmp_path / "empty").mkdir()
    for folder in ("0", "01", "v1", "configs", "-1", "1.0", "99999999999999999999", "²", ".staging-dead"):
        (tmp_path / "good" / folder).mkdir()
    (tmp_path / "good" / "2").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "closed").mkdir()
    listdir = os.listdir

    def deny(path: Path) -> list[str]:  # chmod 0 does not stop root, who runs the tests in a container
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", deny)
    found = scan(tmp_path)
    assert list(found.models) == ["empty", "good"]
    assert list(found.models["good"].versions) == [1]
    assert {(p.path.name, p.model, p.version) for p in found.problems} == {
        ("closed", "closed", None),
        ("lost+found", None, None),
        ("0", "good", None),
        ("01", "good", None),
        ("99999999999999999999", "good", None),
        ("2", "good", 2),
    }


def test_a_plain_triton_repository_is_read(tmp_path: Path) -> None:
    (tmp_path / "resnet" / "3").mkdir(parents=True)
    (tmp_path / "resnet" / "3" / "model.onnx").write_bytes(b"graph")
    (tmp_path / "resnet" / "10" / "model.onnx").mkdir(parents=True)
    (tmp_path / "resnet" / "10" / "model.onnx" / "model.onnx").write_bytes(b"graph")
    (tmp_path / "resnet" / "10" / "model.onnx" / "weights.bin").write_bytes(b"weights")
    (tmp_path / "resnet" / "config.pbtxt").write_text("max_batch_size: 8")
    (tmp_path / "resnet" / "labels.txt").write_text("cat\ndog\n")
    found = scan(tmp_path)
    model = found.models["resnet"]
    assert not found.problems
    assert (model.config, model.labels) == (tmp_path / "resnet" / "config.pbtxt", tmp_path / "resnet" / "labels.txt")
    assert list(model.versions) == [3, 10], "in order of number, not of name"
    assert all(version.manifest is None and version.problem is None for version in model.versions.values())
    assert model.versions[3].model_file() == tmp_path / "resnet" / "3" / "model.onnx"
    assert model.versions[10].model_file() == tmp_path / "resnet" / "10" / "model.onnx" / "model.onnx"
    with pytest.raises(LoadFailed, match=r"has no net\.onnx"):
        model.versions[3].model_file("net.onnx")


def test_a_model_where_a_version_belongs_is_told_where_to_go(tmp_path: Path) -> None:
    # `--model-repository` was given a model, or a model was copied in without a version.
    version = publish(tmp_path, "m", build)
    (problem,) = scan(version.path.parent).problems
    assert (problem.model, problem.version) == ("1", None)
    assert "move it to 1/1/model.onnx" in problem.reason
    assert "the folder above it is the repository" in problem.reason


def test_a_kubernetes_volume_of_links_is_read(tmp_path: Path) -> None:
    # ConfigMap and git-sync mounts: every visible name is a link through a hidden folder.
    publish(tmp_path / "..2026_01_01", "m", build)
    (tmp_path / "..data").symlink_to("..2026_01_01")
    (tmp_path / "m").symlink_to("..data/m")
    version = scan(tmp_path).models["m"].versions[1]
    assert version.manifest is not None
    assert record_files(version.path) == version.manifest.files


def test_a_stamp_changes_when_a_file_does(tmp_path: Path) -> None:
    def stamps() -> tuple[object, object]:
        model = scan(tmp_path).models["m"]
        return model.stamp, model.versions[1].stamp

    publish(tmp_path, "m", build)
    before = stamps()
    assert stamps() == before
    golden = tmp_path / "m" / "1" / "test_data_set_0" / "input_0.pb"
    golden.with_suffix(".new").write_bytes(golden.read_bytes())
    golden.with_suffix(".new").rename(golden)
    changed = stamps()
    assert changed[0] == before[0]
    assert changed[1] != before[1], "same size and content, another file"
    (tmp_path / "m" / "config.pbtxt").write_text("")
    assert stamps()[0] != changed[0]


def test_a_stamp_changes_when_a_linked_folder_is_another(tmp_path: Path) -> None:
    for weights in ("old", "new"):
        (tmp_path / "weights" / weights).mkdir(parents=True)
        (tmp_path / "weights" / weights / "model.onnx").write_text(weights)
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    link = tmp_path / "models" / "m" / "1" / "model.onnx"
    stamps = []
    for weights in ("old", "new"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / "weights" / weights)
        stamps.append(scan(tmp_path / "models").models["m"].versions[1].stamp)
    assert stamps[0] != stamps[1]


def test_importing_the_repository_brings_nothing_but_the_standard_library() -> None:
    script = """
        import sys
        before = set(sys.modules)  # what site-packages' own start-up hooks bring is not ours
        import forwardpass_server.lifecycle.repository
        roots = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(roots - set(sys.stdlib_module_names)))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert result.stdout == "['forwardpass_server']\n", result.stdout + result.stderr
