"""Tells gRPC's core to write no lines of its own: they go to standard error as text, amid a log whose lines are ours.

What matters reaches us as events and errors, and is logged here. What the core would add is about connections that
failed, which callers can cause as often as they like, and about the port that a stop has closed.
"""

from collections.abc import MutableMapping

VARIABLE = "GRPC_VERBOSITY"
CHOICE = "NONE"


def choose(environment: MutableMapping[str, str]) -> None:
    """Make the choice, unless the environment has made its own (`GRPC_VERBOSITY=DEBUG`). Before gRPC is imported."""
    environment.setdefault(VARIABLE, CHOICE)
