"""The trial of an ONNX file, in a process that holds nothing else: does it load, what does it answer, at what cost?

Imports numpy and ONNX Runtime alone, so that the memory is the model's. One thread, as the server runs it.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass_training.child import stage
from forwardpass_training.cost import Arithmetic, arithmetic

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

ROWS_AT_ONCE = 250
CHARACTERS_AT_ONCE = 1_000
ROUNDS = 7
ROUND_S = 0.05
MEBIBYTE = 1 << 20


def trial(job: dict[str, Any]) -> dict[str, Any]:
    """Load a file, run it on held-out inputs and time it. Called in a child.

    Args:
        job: `file`; `inputs`, an .npz with `held_out/<input>`, `timed/<input>` and `mates<number>/<input>`; `batches`,
            sizes to time; `carry`, outputs that are fed back from piece to piece, by input (a text is read so, along
            axis 1), empty where rows are independent; `answers`, an .npz to write: `held_out/<output>`, and
            `mates<number>/together/<output>` and `…/alone/<output>`, the same rows in one batch and one by one.

    Returns:
        `load_s`; `latency_s` and `cpu_s` by batch size, of a run; `memory_bytes` by batch size, peak above the empty
        process; `multiply_adds` and `int8` of one prediction.
    """
    import onnxruntime

    with np.load(job["inputs"]) as file:
        inputs = {name: file[name] for name in file.files}
    options = _options(onnxruntime)
    _reset_peak()
    empty_bytes = _status_bytes("VmRSS")
    stage("loading it")
    began = time.perf_counter()
    session = onnxruntime.InferenceSession(job["file"], options, providers=["CPUExecutionProvider"])
    load_s = time.perf_counter() - began
    outputs = [output.name for output in session.get_outputs()]

    def run(feed: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(outputs, feed), strict=True))

    timed = _part(inputs, "timed")
    latency_s, cpu_s, memory_bytes = {}, {}, {}
    for batch in job["batches"]:
        stage(f"running it at batch {batch}")
        feed = {name: array[:batch] for name, array in timed.items()}
        latency_s[str(batch)], cpu_s[str(batch)] = _time(partial(run, feed))
        memory_bytes[str(batch)] = _status_bytes("VmHWM") - empty_bytes
    stage("answering held-out inputs")
    held_out = _answer(run, _part(inputs, "held_out"), job["carry"])
    answers = {f"held_out/{name}": array for name, array in held_out.items()}
    stage("answering rows alone and together")
    for group in sorted({name.split("/")[0] for name in inputs if name.startswith("mates")}):
        feed = _part(inputs, group)
        rows = len(next(iter(feed.values())))
        alone = [run({name: array[row : row + 1] for name, array in feed.items()}) for row in range(rows)]
        answers |= {f"{group}/together/{name}": array for name, array in run(feed).items()}
        answers |= {f"{group}/alone/{name}": np.concatenate([each[name] for each in alone]) for name in outputs}
    np.savez(job["answers"], **answers)  # type: ignore[arg-type]
    stage("profiling it")
    work = _count(onnxruntime, job["file"], {name: array[:1] for name, array in timed.items()})
    return {
        "load_s": load_s,
        "latency_s": latency_s,
        "cpu_s": cpu_s,
        "memory_bytes": memory_bytes,
        **asdict(work),
    }


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _answer(run: Callable[[Arrays], Arrays], inputs: Arrays, carry: Mapping[str, str]) -> Arrays:
    """Every held-out row, or a text from beginning to end with its state carried along."""
    pieces: list[Arrays] = []
    state: Arrays = {name: inputs[name] for name in carry}
    for piece in _pieces({name: array for name, array in inputs.items() if name not in carry}, axis=1 if carry else 0):
        answer = run({**piece, **state})
        state = {name: answer.pop(output) for name, output in carry.items()}
        pieces.append(answer)
    return {name: np.concatenate([piece[name] for piece in pieces], axis=1 if carry else 0) for name in pieces[0]}


def _pieces(inputs: Arrays, axis: int) -> Iterator[Arrays]:
    step = CHARACTERS_AT_ONCE if axis else ROWS_AT_ONCE
    for begin in range(0, next(iter(inputs.values())).shape[axis], step):
        cut = (slice(None),) * axis + (slice(begin, begin + step),)
        yield {name: np.ascontiguousarray(array[cut]) for name, array in inputs.items()}


def _time(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a run: medians, of the best of several rounds, since other work only ever adds."""
    run()
    walls, cpus = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        of_round: list[tuple[float, float]] = []
        while not of_round or time.perf_counter() - began < ROUND_S:
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            of_round.append((time.perf_counter() - wall, time.process_time() - cpu))
        wall, cpu = np.median(of_round, axis=0)
        walls.append(float(wall))
        cpus.append(float(cpu))
    return min(walls), min(cpus)


def _count(onnxruntime: Any, file: str, feed: Arrays) -> Arithmetic:
    """Arithmetic of one run, from a profile of it; fused as far as is independent of the processor."""
    with tempfile.TemporaryDirectory(prefix="forwardpass-") as folder:
        options = _options(onnxruntime)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        session.run(None, feed)
        return arithmetic(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(f"{prefix}/"): a for name, a in arrays.items() if name.startswith(f"{prefix}/")}


def _reset_peak() -> None:
    """Start VmHWM anew. (`ru_maxrss` would not do: a child inherits its parent's.)"""
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
