"""`model_warmup`: the requests that a configuration wants to have been run before a version serves.

Every batch size is warmed in any case, with made-up values. A model that needs real ones, or whose dynamic dimensions
have sizes that matter, says so here; data files lie in `<model>/warmup/`, raw as they travel on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import InvalidRequest
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.verify import UnsafeFile, open_inside
from forwardpass_server.runtime.samples import make_array
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.arrays import elements_of, to_array
from forwardpass_server.tensors.dtypes import BYTES, Dtype
from forwardpass_server.tensors.infer_request import InputTensor
from forwardpass_server.tensors.signature import Signature, TensorSpec

FOLDER = "warmup"
FILE_BYTES_MAX = 1 << 30
REPEATS_MAX = 1000

Inputs = list[np.ndarray | None]


def requests(settings: ModelSettings, signature: Signature, model: Path, root: Path) -> Iterator[tuple[str, Inputs]]:
    """The name and inputs of each run that is wanted, one after the other.

    Args:
        settings: of the model.
        signature: as served.
        model: its folder.
        root: of the repository; a file outside is not read.

    Raises:
        UnsupportedConfig: a request that the model does not take, or a file that cannot be read.
    """
    rng = np.random.default_rng(0)
    for index, warmup in enumerate(settings.message.model_warmup if settings.message else ()):
        path = f"{settings.source}: model_warmup[{index}]"
        if warmup.count > REPEATS_MAX:
            raise UnsupportedConfig(f"{path}.count is {warmup.count}; at most {REPEATS_MAX}")
        if signature.max_batch_size and not 1 <= warmup.batch_size <= signature.max_batch_size:
            raise UnsupportedConfig(
                f"{path}.batch_size is {warmup.batch_size}; the model takes 1 to {signature.max_batch_size}"
            )
        rows = (warmup.batch_size,) if signature.max_batch_size else ()
        inputs = _inputs(warmup, signature, rows, path, model, root, rng)
        for _ in range(warmup.count or 1):
            yield warmup.name or f"model_warmup[{index}]", inputs


def _inputs(
    warmup: pb.ModelWarmup,
    signature: Signature,
    rows: tuple[int, ...],
    path: str,
    model: Path,
    root: Path,
    rng: np.random.Generator,
) -> Inputs:
    specs = {spec.name: spec for spec in signature.inputs}
    for name in warmup.inputs:
        if name not in specs:
            raise UnsupportedConfig(f"{path}.inputs[{name}]: the model has {', '.join(map(repr, specs))}")
    missing = [repr(name) for name, spec in specs.items() if name not in warmup.inputs and not spec.optional]
    if missing:
        raise UnsupportedConfig(f"{path}.inputs: missing {', '.join(missing)}")
    return [
        _array(warmup.inputs[name], spec, rows, f"{path}.inputs[{name}]", model, root, rng)
        if name in warmup.inputs
        else None
        for name, spec in specs.items()
    ]


def _array(
    wanted: pb.ModelWarmup.Input,
    spec: TensorSpec,
    rows: tuple[int, ...],
    path: str,
    model: Path,
    root: Path,
    rng: np.random.Generator,
) -> np.ndarray:
    if wanted.data_type and dtypes.by_config(wanted.data_type) is not spec.dtype:
        name = pb.DataType.Name(wanted.data_type)
        raise UnsupportedConfig(f"{path}.data_type is {name}; the model has {spec.dtype.wire}")
    shape = (*rows, *wanted.dims)
    if spec.ranked and (
        len(shape) != len(spec.shape)
        or any(isinstance(has, int) and has != size for has, size in zip(spec.shape, shape, strict=True))
    ):
        raise UnsupportedConfig(f"{path}.dims is {[*wanted.dims]}; the model has {spec.shape_text()}")
    try:
        nbytes = elements_of(shape, spec.name) * max(spec.dtype.itemsize, 1)
        if nbytes > FILE_BYTES_MAX:
            raise UnsupportedConfig(f"{path}.dims is {[*wanted.dims]}: {nbytes} bytes are too many for a warm-up")
        match wanted.WhichOneof("input_data_type"):
            case "zero_data":
                return _zeros(spec.dtype, shape)
            case "random_data":
                return make_array(spec.dtype, shape, rng)
            case "input_data_file":
                return _in_file(model, wanted.input_data_file, root, spec, shape, path)
            case _:
                raise UnsupportedConfig(f"{path} needs one of zero_data, random_data, input_data_file")
    except InvalidRequest as exc:
        raise UnsupportedConfig(f"{path}: {exc}") from exc


def _zeros(dtype: Dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, "", np.object_) if dtype is BYTES else np.zeros(shape, dtype.numpy)


def _in_file(model: Path, filename: str, root: Path, spec: TensorSpec, shape: tuple[int, ...], path: str) -> np.ndarray:
    try:
        with open_inside(root, model / FOLDER / filename) as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError, UnsafeFile) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise UnsupportedConfig(f"{path}.input_data_file: {filename!r} cannot be read: {reason}") from exc
    if len(content) > FILE_BYTES_MAX:
        raise UnsupportedConfig(f"{path}.input_data_file: {filename!r} is larger than {FILE_BYTES_MAX} bytes")
    tensor = InputTensor(spec.name, spec.dtype.wire, shape, {}, memoryview(content), None)
    return to_array(tensor, spec.dtype)
