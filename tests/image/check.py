"""`make image-check`: build two of the images for real, run them as a cluster would, and show what came of it.

No registry and no daemon is needed: podman builds on a stand-in base, Debian's own Python 3.11 put together by
mmdebstrap under the name of the real base. So this proves the recipe, not the base.

The training image trains and publishes a model; the server's image serves it; our client asks it; SIGTERM stops it.
Both run as the image's own user, with a read-only root, no capability, no new privileges and podman's seccomp profile,
which is what Pod Security `restricted` asks for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from forwardpass import Client

SOURCE = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
PACKAGES = ("podman", "runc", "mmdebstrap")
USER = "10001:10001"
START_S, STOP_S = 120, 30
CONFINED = (
    *("--network=host", "--no-healthcheck", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:rw,size=512m"),
    *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"),
)
POSTURE = """
import json, os, pathlib, shutil
status = dict(line.split(":\\t", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
def writes(folder):
    try:
        (pathlib.Path(folder) / "written").write_text("")
    except OSError as error:
        return type(error).__name__ + " " + str(error.errno)
    return "yes"
def has(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True
print(json.dumps({
    "uid": os.getuid(), "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
    "write": {folder: writes(folder) for folder in ("/", "/opt/forwardpass", "/models", "/tmp")},
    "compiler": shutil.which("cc") or shutil.which("gcc"), "torch": has("torch"), "training": has("onnxscript"),
}))
"""


class Failed(Exception):
    """The check found something wrong; says what."""


class Podman:
    """podman with storage of its own, below the folder of this check."""

    def __init__(self, work: Path) -> None:
        self._environment = {**os.environ, "TMPDIR": str(work / "tmp")}
        (work / "tmp").mkdir(parents=True, exist_ok=True)
        self._command = [
            "podman",
            f"--root={work / 'storage'}",
            f"--runroot={work / 'run'}",
            "--storage-driver=overlay",
            "--cgroup-manager=cgroupfs",
            "--runtime=runc",
        ]

    def __call__(self, *arguments: str) -> str:
        """What it prints. Its complaints go into the error."""
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, env=self._environment)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
            raise Failed(f"podman {' '.join(arguments)[:160]} ended with {done.returncode}:\n{tail}")
        return done.stdout.strip()

    def log(self, container: str) -> list[str]:
        """The lines of a container, whichever stream they went to."""
        command = [*self._command, "logs", container]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.splitlines()

    def quietly(self, *arguments: str) -> None:
        """For cleaning up: what is not there need not go."""
        subprocess.run([*self._command, *arguments], capture_output=True, env=self._environment)


def main() -> int:
    """Run the check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=SOURCE / "build" / "image-check", help="folder for all of it")
    parser.add_argument("--keep", action="store_true", help="keep layers, so that the next run builds what changed")
    parser.add_argument("--gpu", action="store_true", help="build the GPU server too (2 GB of CUDA wheels), not run it")
    options = parser.parse_args()
    missing = [package for package in PACKAGES if shutil.which(package) is None]
    if missing or os.getuid():
        needs = "apt-get install --no-install-recommends " + " ".join(PACKAGES)
        print(f"image-check needs root and Debian's {', '.join(PACKAGES)}: {needs}", file=sys.stderr)
        return 2
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    podman = Podman(work)
    try:
        _check(podman, work, ["training", "server-cpu", *(["server"] if options.gpu else [])])
    except Failed as failed:
        print(f"image-check FAILED: {failed}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            podman.quietly("system", "reset", "--force")
            for folder in ("storage", "run", "tmp", "volume"):
                shutil.rmtree(work / folder, ignore_errors=True)
    print("image-check passed")
    return 0


def _check(podman: Podman, work: Path, stages: Sequence[str]) -> None:
    _base(podman, work)
    rows = [("base (stand-in)", "-", _size(podman, BASE), _size(podman, BASE))]
    for stage in stages:
        took = _build(podman, work, stage)
        size = _size(podman, _tag(stage))
        rows.append((stage, f"{took:.0f} s", size, size - rows[0][2]))
    models = work / "volume" / "models"
    runs = work / "volume" / "runs"
    for folder in (models, runs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.chown(folder, *(int(part) for part in USER.split(":")))
    said = _train(podman, models, runs)
    print(f"training: {said}")
    for line in _serve(podman, models):
        print(f"server-cpu: {line}")
    print(f"\n{'stage':<18}{'built in':>10}{'image':>10}{'above base':>12}")
    for stage, time_text, size, above in rows:
        print(f"{stage:<18}{time_text:>10}{size / 1e6:>7.0f} MB{above / 1e6:>9.0f} MB")
    print("(MB = 10^6 bytes unpacked; the base is Debian's Python, not the one that the Dockerfile names)")


def _base(podman: Podman, work: Path) -> None:
    """The stand-in under the real base's name. It holds what the real one holds: Python with venv and pip, no more."""
    archive = work / "base.tar"
    if not archive.exists():
        partial = work / "base.partial.tar"
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io"),
                *("--include=python3,python3-venv,python3-pip,ca-certificates", "bookworm", str(partial)),
            ],
            check=True,
        )
        partial.rename(archive)
    podman("import", str(archive), BASE)


def _build(podman: Podman, work: Path, stage: str) -> float:
    began = time.monotonic()
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=SOURCE, capture_output=True, text=True).stdout.strip()
    podman(
        *("build", "--isolation=chroot", "--network=host", "--pull=never", "--format=docker"),
        *_pip_as_here(work),
        *(f"--build-arg=REVISION={revision}", f"--target={stage}", f"--tag={_tag(stage)}", str(SOURCE)),
    )
    return time.monotonic() - began


def _tag(stage: str) -> str:
    return f"localhost/forwardpass:{stage}"


def _pip_as_here(work: Path) -> Iterator[str]:
    """Mounts that let pip inside the build find what pip finds on this machine: its settings, indexes and roots."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    folders = {Path("/etc/ssl/certs")}
    for value in settings.values():
        for part in value.split():
            path = Path(urlsplit(part).path)
            if part.startswith(("/", "file:")) and path.exists():
                folders.add(path if path.is_dir() and not part.startswith("file:") else path.parent)
    conf = work / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    yield f"--volume={conf}:/etc/pip.conf:ro"
    yield from (f"--volume={folder}:{folder}:ro" for folder in sorted(folders) if folder.exists())


def _size(podman: Podman, image: str) -> int:
    return int(podman("image", "inspect", "--format", "{{.Size}}", image))


def _train(podman: Podman, models: Path, runs: Path) -> str:
    """Train a line and publish it, in the training image; what it said last."""
    mounts = (f"--volume={models}:/models", f"--volume={runs}:/workspace")
    podman("run", "--rm", *CONFINED, *mounts, _tag("training"), "run", "linear_regression", "--quiet")
    publish = ("publish", "linear_regression", "--repository", "/models")
    said = podman("run", "--rm", *CONFINED, *mounts, _tag("training"), *publish)
    return said.splitlines()[-1]


def _serve(podman: Podman, models: Path) -> Iterator[str]:
    """Run the server, ask it, look at how it is confined, stop it; one line for each."""
    port = _free_port()
    flags = (f"--grpc-port={port}", "--metrics-port=none", "--require-manifest", "--host=127.0.0.1")
    url = f"127.0.0.1:{port}"
    podman(
        *("run", "--detach", "--name=server", "--memory=512m", *CONFINED, f"--env=FORWARDPASS_URL={url}"),
        *(f"--volume={models}:/models:ro", _tag("server-cpu"), *flags),
    )
    with _removed(podman, "server"):
        with Client(url) as client:
            client.wait_until_ready("linear_regression", deadline_s=START_S)
            answer = client.infer("linear_regression", {"x": [[3.0]]})
            yield f"predicts: linear_regression(3.0) = {answer['y'].item():.3f}, version {answer.model_version}"
        posture = json.loads(podman("exec", "server", "python3", "-c", POSTURE))
        _expect(posture)
        if podman("exec", "--user=0", "server", "find", "/root", "-name", "*pip*"):
            raise Failed("pip left its cache in the image")
        yield f"confined: {json.dumps(posture)}"
        health = json.loads(podman("image", "inspect", "--format", "{{json .HealthCheck}}", _tag("server-cpu")))
        podman("exec", "server", *health["Test"][1:])
        yield f"healthy: {' '.join(health['Test'][1:])}"
        podman("stop", f"--time={STOP_S}", "server")
        status = int(podman("inspect", "--format", "{{.State.ExitCode}}", "server"))
        if status:
            raise Failed(f"the server ended with {status}, not 0, after SIGTERM")
        said = [json.loads(line) for line in podman.log("server") if line.startswith("{")]
        stopped = next(line for line in said if line["message"] == "stopped")
        yield f"stopped: exit status 0, {stopped['calls_lost']} calls lost, {stopped['seconds']} s"


def _expect(posture: dict[str, object]) -> None:
    """What must hold inside the server's container."""
    read_only = "OSError 30"
    wanted = {
        "uid": 10001,
        "capabilities": 0,
        "no_new_privileges": "1",
        "seccomp": "2",
        "write": {"/": read_only, "/opt/forwardpass": read_only, "/models": read_only, "/tmp": "yes"},
        "compiler": None,
        "torch": False,
        "training": False,
    }
    if posture != wanted:
        raise Failed(f"inside the server's container: {posture}, expected {wanted}")


@contextlib.contextmanager
def _removed(podman: Podman, container: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = "\n".join(podman.log(container)[-20:])
        raise Failed(f"{type(error).__name__}: {error}\nthe container said:\n{said}") from error
    finally:
        podman.quietly("rm", "--force", container)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
