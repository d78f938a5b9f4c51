"""Whose fault is a run that failed? The one rule, and what is said of it.

A version ran before it served, on its golden examples or on made-up ones: the model, its file and its device work. What
differs from one request to the next is its data. So, when ONNX Runtime ends a run with an error:

1. There was no memory for it: `OutOfMemory`. The machine's, though fewer rows may help.
2. It says INVALID_ARGUMENT: the caller's. An index out of range, shapes that do not go together.
3. It says that a node failed (FAIL, RUNTIME_EXCEPTION): the caller's as well, since kernels use all three for the same
   thing. An impossible Reshape, more values asked of a TopK than there are, text that is no number, a division by zero.
4. numpy cannot hold the answer (more than 64 dimensions, sizes beyond 64 bits beside a 0): the caller's too.
5. But a node that failed by its device or its provider, and anything that is not about a node (a run that was ended, a
   provider that broke, an operator that is not implemented): ours, `RunFailed`.

Surveyed by wrong values to 60 operators of ONNX Runtime 1.31 on the CPU; the words for devices are those of its CUDA
and TensorRT providers. What it does not survive at all is in `runtime.fatal`.
"""

import re

from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from forwardpass_server.errors import ForwardpassError, InvalidRequest, OutOfMemory, RunFailed

_OF_DATA = (ort_errors.InvalidArgument, ort_errors.Fail, ort_errors.RuntimeException)
_NODE = re.compile(r"Non-zero status code returned while running (?P<operator>\w+) node\.")
_MEMORY = re.compile(
    r"bad_alloc|bad allocation|out of memory|allocate memory|ALLOC_FAILED|Available memory of|memory allocation",
    re.IGNORECASE,
)
_NOT_OF_DATA = re.compile(
    r"CUDA|CUDNN|CUBLAS|CUFFT|CURAND|NCCL|TensorRT|\bGPU\b|device-side|terminate flag", re.IGNORECASE
)

_REASON = "Status Message:"
_CONDITION = " was false. "
_FILE = r"\w+\.(?:cc|h|cuh?|hpp|cpp):\d+ "
_PLACE = re.compile(rf"^{_FILE}\w+ ")
_LONG_PLACE = re.compile(rf"^\S*/{_FILE}.*?\)(?: const)?(?: \[with [^\]]*\])? (?=[A-Z])")
_INTERNAL = re.compile(r"::|(?:^|\s)/\w|^\w*$")
"""C++, a path, or a word alone: `stod` is what the kernel called, not why it failed."""


def blame(error: Exception) -> ForwardpassError:
    """What a run that ended with `error` is to its caller. Any thread."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return OutOfMemory("no memory for this run; send fewer rows, or smaller tensors")
    if isinstance(error, ort_errors.InvalidArgument):
        return InvalidRequest(_refusal(text))
    if isinstance(error, _OF_DATA) and _NODE.search(text) and not _NOT_OF_DATA.search(text):
        return InvalidRequest(_refusal(text))
    if isinstance(error, ValueError):
        return InvalidRequest(f"no array can hold the model's answer to these values: {text}")
    return RunFailed(text)


def _refusal(text: str) -> str:
    """The operator and its reason: what helps a caller, without nodes, source files and signatures of C++."""
    node = _NODE.search(text)
    place = f" (operator {node['operator']})" if node else ""
    reason = _reason(text)
    return f"the model cannot compute with these values{place}" + f": {reason}" * bool(reason)


def _reason(text: str) -> str:
    reason = text.rpartition(_REASON)[2].strip() if _REASON in text else text.rpartition(" : ")[2]
    reason = reason.rpartition(_CONDITION)[2] if _CONDITION in reason else _LONG_PLACE.sub("", _PLACE.sub("", reason))
    return "" if _INTERNAL.search(reason) else reason
