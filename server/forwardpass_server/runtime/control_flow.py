"""Whether a graph can take longer for some values than for others: Loop, Scan or If, anywhere inside it."""

from collections.abc import Iterable
from pathlib import Path

import onnx

CONTROL_FLOW = frozenset({"Loop", "Scan", "If"})


def has_control_flow(path: Path | str) -> bool:
    """Whether the model in a file holds a Loop, Scan or If, in its graph, a subgraph or a function of it.

    Reads no weights that lie outside the file.
    """
    model = onnx.load(path, load_external_data=False)
    return _in(model.graph.node) or any(_in(function.node) for function in model.functions)


def _in(nodes: Iterable[onnx.NodeProto]) -> bool:
    for node in nodes:
        if node.op_type in CONTROL_FLOW and node.domain in ("", "ai.onnx"):
            return True
        for attribute in node.attribute:
            # Other operators with subgraphs exist (SequenceMap, those of custom domains).
            if any(_in(graph.node) for graph in (attribute.g, *attribute.graphs)):
                return True
    return False
