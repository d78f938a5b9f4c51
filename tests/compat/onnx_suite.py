"""ONNX's backend test suite as data: models, inputs, the answers expected, and the tolerance they are held to.

The suite lies in the wheel `onnx==1.16.2` (`onnx/backend/test/data`); later wheels left most of it out. The rules are
those of its own runner: `input_<n>.pb` belongs to the n-th input of the graph, numbers agree within rtol 1e-3 and
atol 1e-7 unless the case says otherwise, and whatever is no number must be equal.

BF16 is widened to float32 here, as tritonclient does; BYTES are objects of type `str`.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from forwardpass_server.tensors import dtypes

RTOL, ATOL = 1e-3, 1e-7


class NotCarried(Exception):
    """A case that gives or takes something that the protocol has no message for; says what."""


@dataclass(frozen=True)
class Example:
    """One request, and its answer: arrays in the case's order."""

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Case:
    """One model of the suite."""

    name: str
    """Unique, and fit for a model's folder: `node_test_abs`."""
    model: Path
    inputs: tuple[tuple[str, str], ...]
    """Name and datatype ("FP32") of the inputs that a request brings."""
    outputs: tuple[tuple[str, str], ...]
    examples: tuple[Example, ...]
    data_sets: tuple[Path, ...] = ()
    """The folders that the examples come from; none for the light models."""
    rtol: float = RTOL
    atol: float = ATOL

    def difference(self, example: Example, answers: Sequence[np.ndarray]) -> str | None:
        """What is wrong with `answers`, in one line; None when the suite would accept them."""
        for (name, _), want, got in zip(self.outputs, example.outputs, answers, strict=True):
            if (got.dtype, got.shape) != (want.dtype, want.shape):
                return f"output '{name}' is {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}"
            if want.dtype.kind in "iuf":
                same = np.allclose(got, want, rtol=self.rtol, atol=self.atol, equal_nan=True)
            else:
                same = bool((got == want).all())
            if not same:
                return f"output '{name}' is {_start_of(got)}, expected {_start_of(want)}"
        return None


def read(data: Path) -> tuple[list[Case], Counter[str]]:
    """Every case that the protocol can carry; and how many others there are, by the reason.

    Args:
        data: the folder `onnx/backend/test/data` of the unpacked wheel.
    """
    cases, not_carried = [], Counter[str]()
    for folder in sorted(path for path in data.glob("*/test_*") if path.is_dir()):
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{folder.parent.name}_{folder.name}")
        light = folder / "data.json"
        try:
            cases.append(_light_case(name, data / "light", light) if light.exists() else _case(name, folder))
        except NotCarried as reason:
            not_carried[str(reason)] += 1
    return cases, not_carried


def _case(name: str, folder: Path) -> Case:
    model = folder / "model.onnx"
    graph = onnx.load(model, load_external_data=False).graph
    data_sets = tuple(sorted(folder.glob("test_data_set_*")))
    # Old exporters list weights as inputs, behind the real ones: a request brings those that there are data for.
    given = max(len(list(each.glob("input_*.pb"))) for each in data_sets)
    inputs, outputs = _described(graph.input[:given]), _described(graph.output)
    examples = tuple(Example(_read(each, "input", inputs), _read(each, "output", outputs)) for each in data_sets)
    return Case(name, model, inputs, outputs, examples, data_sets)


def _light_case(name: str, light: Path, description: Path) -> Case:
    """A well-known network without its weights; its one input is a ramp from 0 to 1, as the suite's runner makes it."""
    about = json.loads(description.read_text())
    model = light / Path(about["url"]).name
    graph = onnx.load(model).graph
    weights = {weight.name for weight in graph.initializer}
    (image,) = (value for value in graph.input if value.name not in weights)
    shape = [dim.dim_value or 1 for dim in image.type.tensor_type.shape.dim]
    size = int(np.prod(shape))
    ramp = (np.arange(size).reshape(shape) / size).astype(np.float32)
    answer = _tensor(light / f"{model.stem}_output_0.pb")
    tolerance = {key: float(about[key]) for key in ("rtol", "atol") if key in about}
    example = Example((ramp,), (answer,))
    return Case(name, model, _described([image]), _described(graph.output), (example,), **tolerance)


def _described(values: Sequence[onnx.ValueInfoProto]) -> tuple[tuple[str, str], ...]:
    """Names and datatypes. Raises NotCarried."""
    described = []
    for value in values:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise NotCarried(f"{kind.removesuffix('_type')}, not a tensor")
        dtype = dtypes.by_onnx(value.type.tensor_type.elem_type)
        if dtype is None:
            family = re.sub(r"(FLOAT8).*", r"\1", TensorProto.DataType.Name(value.type.tensor_type.elem_type))
            raise NotCarried(f"{family} elements, which the protocol has no name for")
        described.append((value.name, dtype.wire))
    return tuple(described)


def _read(folder: Path, role: str, described: Sequence[tuple[str, str]]) -> tuple[np.ndarray, ...]:
    return tuple(_tensor(folder / f"{role}_{index}.pb", dtype) for index, (_, dtype) in enumerate(described))


def _tensor(path: Path, datatype: str = "FP32") -> np.ndarray:
    array = numpy_helper.to_array(TensorProto.FromString(path.read_bytes()))
    if datatype == "BF16":
        return widened(array) if array.dtype == np.uint16 else array.astype(np.float32)
    return as_text(array) if datatype == "BYTES" else array


def widened(bits: np.ndarray) -> np.ndarray:
    """BF16 bit patterns in uint16 → float32."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


def as_text(array: np.ndarray) -> np.ndarray:
    """The same strings as objects of type `str`."""
    texts = [text.decode() if isinstance(text, bytes) else text for text in array.ravel().tolist()]
    return np.array(texts, object).reshape(array.shape)


def _start_of(array: np.ndarray) -> str:
    return np.array2string(array.ravel()[:6], separator=", ")
