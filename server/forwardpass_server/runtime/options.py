"""How a session uses the machine. Imports no ONNX Runtime, so that configurations can be read without it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a session uses the machine. None leaves it to the server's own choice."""

    intra_op_threads: int | None = None
    """Threads inside one node; 1 when nobody says otherwise."""
    inter_op_threads: int = 1
    """Nodes that may run side by side, where `parallel`."""
    parallel: bool = False
    """Run branches of the graph side by side."""
    graph_level: int = 0
    """How the graph is optimised, in Triton's numbers: 0 all, 1 extended, -1 basic, 2 not at all."""
    memory_arena: bool = False
    """Keep the memory of past runs for the next ones."""
    memory_pattern: bool = True
    """Allocate the memory of a run in one piece, where its shapes were seen before."""

    def __post_init__(self) -> None:
        for name, threads in (("intra_op_threads", self.intra_op_threads), ("inter_op_threads", self.inter_op_threads)):
            if threads is not None and threads < 1:
                raise ValueError(f"{name} is {threads}; it must be at least 1")
        if self.graph_level not in (-1, 0, 1, 2):
            raise ValueError(f"graph_level is {self.graph_level}; it must be -1, 0, 1 or 2")
