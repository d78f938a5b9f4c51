"""Load a model in a child process first: some files crash the loader, and then only the child is gone.

`try_load` is for the server; `python -m forwardpass_server.runtime.child FILE` is the child.
"""

import resource
import signal
import subprocess
import sys
from pathlib import Path

from forwardpass_server.errors import LoadFailed

_REFUSED = 3
"""Exit status of a child that was told by ONNX Runtime why the file does not load; the reason is on its stdout."""


def try_load(path: Path | str, timeout_s: float = 60.0) -> None:
    """Load a file in a child process, on the CPU, with the optimisations that the server uses. Blocks.

    Args:
        path: the .onnx file.
        timeout_s: how long the child may take, its start included (about 0.3 s).

    Raises:
        LoadFailed: it does not load, crashes the loader (with the signal's name), or takes too long.
    """
    path = Path(path)
    # -P: whatever lies in the current folder is not to be imported in place of the real thing.
    command = [sys.executable, "-P", "-m", __name__, str(path), str(timeout_s)]
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{path.name} did not load within {timeout_s:g} s in a trial process") from error
    if child.returncode == _REFUSED:
        raise LoadFailed(child.stdout.strip())
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise LoadFailed(f"{path.name} crashes the loader ({name} in a trial process); it was not loaded here")
    if child.returncode != 0:
        raise LoadFailed(
            f"{path.name}: the trial process ended with status {child.returncode}: {child.stderr.strip()[-500:]}"
        )


def main(path: str, timeout_s: float) -> int:
    """The child: load the file, say why not, leave."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Should the parent die without a word, do not outlive it for long.
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    from forwardpass_server.runtime.providers import resolve
    from forwardpass_server.runtime.session import Session
    from forwardpass_server.tensors.signature import Signature

    try:
        Session(path, Signature.from_onnx(path), resolve("cpu"))
    except LoadFailed as error:
        sys.stdout.write(str(error))
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
