"""The life of one model version: its states, and which may follow which.

FOUND → VERIFYING → LOADING → WARMING → PROVING → READY → DRAINING → UNLOADED, with FAILED reachable from any of them
that still does something.
"""

from enum import Enum

from forwardpass_server.errors import IllegalTransition


class State(Enum):
    """Where a version stands; the value is the label of the metric `model_state`."""

    FOUND = "found"
    """Its folder was seen and is complete, or is waited for until nobody writes to it any more."""
    VERIFYING = "verifying"
    """Paths, hashes and the graph are checked, before ONNX Runtime sees a byte of it."""
    LOADING = "loading"
    """ONNX Runtime builds the session on the device that will serve."""
    WARMING = "warming"
    """Every batch size that will be served runs, and is timed."""
    PROVING = "proving"
    """The golden examples are replayed on the serving session, alone and inside batches."""
    READY = "ready"
    """It serves."""
    DRAINING = "draining"
    """No new lease; requests that hold one are finished."""
    UNLOADED = "unloaded"
    """Nothing of it is left but this record."""
    FAILED = "failed"
    """It could not get further; the reason stands beside it."""


NEXT: dict[State, frozenset[State]] = {
    State.FOUND: frozenset({State.VERIFYING, State.UNLOADED, State.FAILED}),
    State.VERIFYING: frozenset({State.LOADING, State.FAILED}),
    State.LOADING: frozenset({State.WARMING, State.FAILED}),
    State.WARMING: frozenset({State.PROVING, State.FAILED}),
    State.PROVING: frozenset({State.READY, State.FAILED}),
    State.READY: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.UNLOADED, State.FAILED}),
    State.UNLOADED: frozenset({State.FOUND}),
    State.FAILED: frozenset({State.FOUND, State.UNLOADED}),
}
"""The legal steps. An unloaded or failed version that is wanted (again) begins anew at FOUND."""


def step(current: State, to: State) -> State:
    """The state after a legal step.

    Raises:
        IllegalTransition: `to` does not follow `current`.
    """
    if to not in NEXT[current]:
        legal = ", ".join(sorted(state.name for state in NEXT[current]))
        raise IllegalTransition(f"a version cannot go from {current.name} to {to.name}; it can go to {legal}")
    return to
