"""Tiny models and repositories, built here."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.repository import GoldenSet, VersionFolder

OPSET = [helper.make_opsetid("", 17)]


def scaled(factor: float = 2.0) -> onnx.ModelProto:
    """x FP32 [batch, 3] → y = factor · x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    weights = numpy_helper.from_array(np.array([factor], np.float32), "factor")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "scaled", [x], [y], [weights])
    return helper.make_model(graph, opset_imports=OPSET, ir_version=8)


def external(location: str) -> onnx.ModelProto:
    """x FP32 [batch, 3] → y = x + w, with w (3 floats) in a file at `location`."""
    model = scaled()
    model.graph.node[0].op_type = "Add"
    weights = model.graph.initializer[0]
    weights.CopyFrom(TensorProto(name="factor", data_type=TensorProto.FLOAT, dims=[3]))
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    return model


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_example(folder: Path, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """A golden example in the ONNX test-data layout, its tensors named x and y."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name, arrays in (("input", "x", inputs), ("output", "y", outputs)):
        for index, array in enumerate(arrays):
            tensor = numpy_helper.from_array(array, name)
            (folder / f"{kind}_{index}.pb").write_bytes(tensor.SerializeToString())


class Repository:
    """A repository under test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def bare(self, model: str = "m", number: int = 1, content: onnx.ModelProto | None = None) -> VersionFolder:
        """A version without manifest, as any Triton repository has."""
        folder = self.root / model / str(number)
        write(folder / "model.onnx", (content or scaled()).SerializeToString())
        return self.read(model, number)

    def published(
        self, model: str = "m", factor: float = 2.0, recorded: float | None = None, atol: float = 1e-5
    ) -> VersionFolder:
        """The next version, with manifest and one golden example that was recorded with factor `recorded`."""
        x = np.arange(6, dtype=np.float32).reshape(2, 3) + 1

        def build(folder: Path) -> repository.Contents:
            write(folder / "model.onnx", scaled(factor).SerializeToString())
            write_example(folder / "test_data_set_0", [x], [x * np.float32(factor if recorded is None else recorded)])
            return {"golden": [GoldenSet(folder="test_data_set_0", atol=atol, rtol=0.0)]}

        return repository.publish(self.root, model, build)

    def read(self, model: str, number: int) -> VersionFolder:
        return repository.read_version(model, number, self.root / model / str(number))


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def external_model() -> Callable[[str], onnx.ModelProto]:
    return external


@pytest.fixture
def scaled_model() -> Callable[[float], onnx.ModelProto]:
    return scaled
