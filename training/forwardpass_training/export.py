"""From a trained network to an ONNX file that says all about itself, and nothing about the machine it was made on.

The one thing to know: the exporter is not trusted. torch.export may fix a dimension that was asked to be dynamic, and
says so only in the declared shapes; the declared shapes are therefore read back and compared with what was asked.
"""

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
import torch
from onnx import GraphProto, ModelProto, ValueInfoProto
from torch import Tensor

from forwardpass_training.errors import ExportFailed
from forwardpass_training.exportable import Exportable

OPSET = 20
BATCH = "batch"

# A protobuf message ends at 2 GiB; 64 MiB are left for everything that is not weights.
EMBED_BYTES_MAX = (2 << 30) - (64 << 20)

# Two rows: one would do for the batch axis, but is the size that tracers specialise on most readily.
_TRACED_ROWS = 2


def export(exportable: Exportable, path: Path, *, opset: int = OPSET, embed_bytes_max: int = EMBED_BYTES_MAX) -> Path:
    """Write the network as ONNX; equal networks and metadata give equal bytes.

    Weights are embedded. Where they are larger than `embed_bytes_max`, `path` becomes a folder that holds `model.onnx`
    and its weights beside it, which is how a model repository keeps such models.

    Args:
        exportable: what to write.
        path: of the file; what was there before is replaced once the new file has passed its checks.
        opset: version of ONNX's default operator set.
        embed_bytes_max: size of weights in bytes up to which they are embedded.

    Returns:
        The path of the ONNX file itself.

    Raises:
        ExportFailed: the network cannot be exported, or a name or shape is not what was asked; `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as staging:
        file = Path(staging) / "made" / "model.onnx"
        file.parent.mkdir()
        external = _weight_bytes(exportable.module) > embed_bytes_max
        _trace(exportable, file, opset, external)
        model = onnx.load(file, load_external_data=False)
        _scrub(model)
        _finish(model, file, exportable)
        return _put(file.parent if external else file, path)


def write(model: ModelProto, exportable: Exportable, path: Path) -> Path:
    """Write a graph that was built by hand, with the same description and under the same checks as `export`.

    Args:
        model: the graph, its weights within.
        exportable: what it computes; the `module` is not looked at.
        path: of the file.

    Returns:
        The path.

    Raises:
        ExportFailed: ONNX refuses it, or a name or shape is not what was asked; `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as staging:
        file = Path(staging) / "model.onnx"
        _finish(model, file, exportable)
        return _put(file, path)


def _finish(model: ModelProto, file: Path, exportable: Exportable) -> None:
    _describe(model, exportable.metadata)
    onnx.save(model, file)
    _check(model, file, exportable)


def _trace(exportable: Exportable, file: Path, opset: int, external: bool) -> None:
    if exportable.module.training:
        raise ExportFailed("the network is in training mode, in which it answers differently; call eval() on all of it")
    examples = exportable.examples(_TRACED_ROWS, torch.Generator().manual_seed(0))
    for name, example in zip(exportable.input_names, examples, strict=True):
        axes = exportable.dynamic.get(name, {})
        if axes.get(0) != BATCH:
            raise ExportFailed(f"axis 0 of input {name!r} must be dynamic and named {BATCH!r}, got {axes.get(0)!r}")
        for axis, dim in axes.items():
            if axis and example.shape[axis] < 2:
                raise ExportFailed(
                    f"the example of input {name!r} has size {example.shape[axis]} along {dim!r} (axis {axis}); "
                    "the exporter fixes sizes 0 and 1: give at least 2"
                )
    try:
        with torch.no_grad(), _known_noise_muted():
            program = torch.onnx.export(
                exportable.module,
                examples,
                dynamo=True,
                input_names=exportable.input_names,
                output_names=exportable.output_names,
                dynamic_shapes=tuple(dict(exportable.dynamic[name]) for name in exportable.input_names),
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as exc:
        raise ExportFailed(f"torch cannot export this network: {_root_cause(exc)}") from exc
    assert program is not None
    program.save(file, external_data=external)


@contextlib.contextmanager
def _known_noise_muted() -> Iterator[None]:
    """Silence what every export says and nobody can act on: that torchvision is absent, and a slip of torch's own."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            # NOTE torch 2.13 calls its own deprecated `isinstance(treespec, LeafSpec)` while copying
            warnings.filterwarnings("ignore", r".*treespec, LeafSpec", FutureWarning)
            # it names an axis of two inputs once, by the one name that both were given
            once = r"# The axis name: (\w+) will not be used,.* another axis: \1\."
            warnings.filterwarnings("ignore", once, UserWarning)
            yield
    finally:
        logger.removeFilter(keep)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:600]}"


def _weight_bytes(module: torch.nn.Module) -> int:
    tensors: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    return sum(tensor.nbytes for tensor in tensors)


def _scrub(model: ModelProto) -> None:
    """Remove the stack traces, source lines and paths that the exporter attaches, and its intermediate shapes.

    The shapes (`value_info`) go because runtimes infer them anyway, and quantizers stumble over them once an operator
    is replaced.
    """
    model.doc_string = ""
    del model.metadata_props[:]
    _scrub_graph(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        del function.value_info[:]
        _scrub_nodes(function.node)


def _scrub_graph(graph: GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for weights in graph.initializer:
        weights.doc_string = ""
        del weights.metadata_props[:]
    _scrub_nodes(graph.node)


def _scrub_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.type == onnx.AttributeProto.GRAPH:
                _scrub_graph(attribute.g)
            for graph in attribute.graphs:
                _scrub_graph(graph)


def _describe(model: ModelProto, metadata: Mapping[str, str]) -> None:
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


def _check(model: ModelProto, file: Path, exportable: Exportable) -> None:
    try:
        onnx.checker.check_model(file, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportFailed(f"the exporter wrote a file that ONNX refuses: {exc}") from exc
    _check_names("input", model.graph.input, exportable.input_names)
    _check_names("output", model.graph.output, exportable.output_names)
    for value in model.graph.input:
        shape = declared_shape(value)
        for axis, dim in exportable.dynamic[value.name].items():
            if shape[axis] != dim:
                raise ExportFailed(
                    f"axis {axis} of input {value.name!r} was asked to be dynamic ({dim!r}), "
                    f"and the exporter made it {shape[axis]!r}: the network depends on the size of its example there"
                )
    for value in model.graph.output:
        shape = declared_shape(value)
        if not shape or shape[0] != BATCH:
            raise ExportFailed(
                f"output {value.name!r} has shape {list(shape)}; its first axis must be {BATCH!r}, "
                "one row for each row that came in, or requests cannot share a run"
            )


def _check_names(kind: str, values: Iterable[ValueInfoProto], asked: tuple[str, ...]) -> None:
    names = tuple(value.name for value in values)
    if names != asked:
        raise ExportFailed(f"the {kind}s were asked to be {list(asked)}, and the exporter made them {list(names)}")


def declared_shape(value: ValueInfoProto) -> tuple[int | str | None, ...]:
    """The shape that the graph declares: sizes, names of dynamic dimensions, None for dynamic ones without a name."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)


def _put(made: Path, path: Path) -> Path:
    """Move a file or folder to `path` in the place of whatever is there, and say where the ONNX file is now."""
    if path.is_dir():
        shutil.rmtree(path)
    elif made.is_dir():
        path.unlink(missing_ok=True)
    made.replace(path)
    return path / "model.onnx" if path.is_dir() else path
