"""What is attacked, as functions of arrays: an ONNX file in ONNX Runtime, or a model that a server serves.

The one file of training that calls a server, and it does so as anybody would: through the client.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forwardpass_training.data.download import sha256_of
from forwardpass_training.errors import AttackFailed

Array = NDArray[Any]

ROWS_AT_ONCE = 250
SERVED_ROWS_AT_ONCE = 64
DEADLINE_S = 60.0


class OnnxFile:
    """A file in ONNX Runtime, on one thread of the CPU.

    Raises:
        AttackFailed: ONNX Runtime refuses it.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            raise AttackFailed(f"ONNX Runtime refuses {path}: {exc}") from exc
        self.path = path
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, output: str, *inputs: Array) -> Array:
        """One output for any number of rows.

        Raises:
            AttackFailed: ONNX Runtime refuses the inputs.
        """
        answers = []
        for begin in range(0, len(inputs[0]), ROWS_AT_ONCE):
            rows = [array[begin : begin + ROWS_AT_ONCE] for array in inputs]
            try:
                (answer,) = self._session.run([output], dict(zip(self.inputs, rows, strict=True)))
            except Exception as exc:
                raise AttackFailed(f"{self.path} does not take {[array.shape for array in rows]}: {exc}") from exc
            answers.append(answer)
        return np.concatenate(answers)

    def describe(self) -> dict[str, str]:
        """Which file it is."""
        return {"file": self.path.name, "sha256": sha256_of(self.path)}


@dataclass
class ServedModel:
    """A model on a running server, asked through the protocol. One is made by `served_model`.

    Args:
        client: of `forwardpass`.
        address: of the server.
        model: its name.
        input: name of its input.
        versions: that have answered.
    """

    client: Any
    address: str
    model: str
    input: str
    versions: set[str] = field(default_factory=set)

    def run(self, output: str, given: Array) -> Array:
        """One output for any number of rows.

        Raises:
            AttackFailed: the server refuses, or cannot be reached.
        """
        from forwardpass import errors

        answers = []
        for begin in range(0, len(given), SERVED_ROWS_AT_ONCE):
            rows = given[begin : begin + SERVED_ROWS_AT_ONCE]
            try:
                result = self.client.infer(self.model, {self.input: rows}, output, deadline_s=DEADLINE_S)
            except errors.ForwardpassError as exc:
                raise AttackFailed(f"{self.model} at {self.address}: {exc}") from exc
            self.versions.add(result.model_version)
            answers.append(result[output])
        return np.concatenate(answers)

    def describe(self) -> dict[str, str]:
        """Which model it is, and which of its versions answered."""
        return {"server": self.address, "model": self.model, "versions": ", ".join(sorted(self.versions))}


@contextmanager
def served_model(address: str, model: str, output: str) -> Iterator[ServedModel]:
    """A model on a running server.

    Raises:
        AttackFailed: no server there, no such model, or one without that output.
    """
    from forwardpass import Client, errors

    try:
        with Client(address) as client:
            metadata = client.metadata(model)
            if len(metadata.inputs) != 1 or output not in [tensor.name for tensor in metadata.outputs]:
                raise AttackFailed(f"{model} at {address} must take one input and answer {output!r}")
            yield ServedModel(client, address, model, metadata.inputs[0].name)
    except errors.ForwardpassError as exc:
        raise AttackFailed(f"{model} at {address}: {exc}") from exc
