"""ONNX Runtime in this process, by its public interface and none of our code: what a served answer is measured by."""

import ctypes
from pathlib import Path

import numpy as np
import onnxruntime as ort
from compat.onnx_suite import Case, Example, widened
from onnx import TensorProto

Refusal = str
"""Why ONNX Runtime does not run a case right, in one line."""


def refusal(case: Case, model: bytes | None = None) -> Refusal | None:
    """Why ONNX Runtime does not run a case right, or another model in its place; None when it does."""
    try:
        session = open_session(case.model if model is None else model)
        for example in case.examples:
            difference = case.difference(example, run(session, case, example))
            if difference:
                return f"another answer: {difference}"
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has no common base class for what it raises
        return " ".join(str(error).split())
    return None


def open_session(model: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def run(session: ort.InferenceSession, case: Case, example: Example) -> list[np.ndarray]:
    """The answers of the model, BF16 as float32."""
    names = [name for name, _ in case.outputs]
    fed = list(zip(case.inputs, example.inputs, strict=True))
    if "BF16" not in {datatype for _, datatype in (*case.inputs, *case.outputs)}:
        return session.run(names, {name: array for (name, _), array in fed})
    # numpy has no BF16, so session.run takes none; and an OrtValue takes no strings.
    values = session.run_with_ort_values(names, {name: _value(array, datatype) for (name, datatype), array in fed})
    return [_array(value) for value in values]


def _value(array: np.ndarray, datatype: str) -> ort.OrtValue:
    if datatype != "BF16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.right_shift(array.view(np.uint32), 16).astype(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)


def _array(value: ort.OrtValue) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = value.shape()
    bits = np.frombuffer(ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape))), np.uint16)
    return widened(bits).reshape(shape)
