"""Packages of others, as published: downloaded once into a folder that git ignores, each in an environment of its own.

An environment has what its requirements ask for and nothing of ours: their pins contradict each other and our own.
"""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
DONE = ".complete"


class Downloads:
    """Wheels, unpacked, and virtual environments below one folder.

    Args:
        folder: made when it is not there; delete it to begin anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def unpacked(self, requirement: str) -> Path:
        """The folder with the files of a wheel ("onnx==1.16.2"), not installed and without what it depends on."""
        folder = self._folder / "wheels" / requirement
        if not (folder / DONE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, *PIP, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
            run([*command, requirement])
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            wheel.unlink()
            (folder / DONE).touch()
        return folder

    def debian(self, package: str) -> Path:
        """The folder with the files of a package of Debian's, not installed."""
        folder = self._folder / "debian" / package
        if not (folder / DONE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            # apt-get puts it where it stands; its fetcher's own user need not have a way there.
            run(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], folder=folder)
            (archive,) = folder.glob("*.deb")
            run(["dpkg-deb", "-x", str(archive), str(folder)])
            (folder / DONE).touch()
        return folder

    def environment(self, name: str, *requirements: str) -> Path:
        """The Python of a virtual environment that has these requirements and nothing else."""
        folder = self._folder / "environments" / name
        python = folder / "bin" / "python"
        done = folder / DONE
        wanted = "\n".join(requirements)
        if not (done.exists() and done.read_text() == wanted):
            venv.create(folder, with_pip=True, clear=True)
            run([str(python), *PIP, "install", *requirements])
            done.write_text(wanted)
        return python


def run(
    command: list[str],
    *,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 600.0,
) -> str:
    """Run a command to its end, in a folder. Returns what it wrote, errors included.

    Raises:
        AssertionError: it failed; with what it wrote.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env=environment,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, f"{command[:3]} … ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout
