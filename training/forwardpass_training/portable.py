"""Does an ONNX file run everywhere, or only in one runtime, or on one kind of processor?

Operators of ONNX's own sets run in every runtime and on every processor. ONNX Runtime adds its own (`com.microsoft`),
which run where it runs, and layouts for one processor's vector width (`com.microsoft.nchwc`), which must never leave
the machine that made them.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import onnx

STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
ONE_PROCESSOR = "com.microsoft.nchwc"


def foreign_operators(path: Path) -> tuple[str, ...]:
    """Operators beyond ONNX that a file uses, in its graph, subgraphs and functions: `com.microsoft.FusedConv`, sorted.

    A function of the file itself is not foreign: it brings its own definition.

    Args:
        path: of an ONNX file, or of the folder that holds it and its weights.
    """
    model = onnx.load(path / "model.onnx" if path.is_dir() else path, load_external_data=False)
    own = {(function.domain, function.name) for function in model.functions}
    nodes = [*_nodes(model.graph.node), *(node for function in model.functions for node in _nodes(function.node))]
    return tuple(
        sorted(
            {
                f"{node.domain}.{node.op_type}"
                for node in nodes
                if node.domain not in STANDARD and (node.domain, node.op_type) not in own
            }
        )
    )


def not_portable(path: Path, *, declared: Collection[str] = ()) -> str | None:
    """Why a file must not be published, in one line; None when it may.

    Args:
        path: as in `foreign_operators`.
        declared: foreign operators that whoever publishes the file says it has.
    """
    used = foreign_operators(path)
    bound = [operator for operator in used if operator.startswith(ONE_PROCESSOR)]
    if bound:
        return f"{', '.join(bound)} are laid out for the processor of the machine that made the file; export it again"
    undeclared = [operator for operator in used if operator not in declared]
    if undeclared:
        return f"{', '.join(undeclared)} are no operators of ONNX, so the file runs in ONNX Runtime alone"
    return None


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
