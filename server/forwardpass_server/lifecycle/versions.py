"""Which versions to load and which to let go: a pure function of what was found, what is, and what is wanted.

Three rules beyond the policy itself:

- a version whose folder may still be written to is left alone for now;
- a version that failed is not tried again until one of its files changes, and meanwhile the policy chooses among the
  others, so a server that restarts beside a broken version serves what a server that never stopped would serve;
- nothing is let go while its successor is not ready: a version stays until the wanted ones serve.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Latest:
    """The `count` highest versions."""

    count: int = 1

    def __str__(self) -> str:
        return f"latest {self.count}"


@dataclass(frozen=True)
class Every:
    """All versions."""

    def __str__(self) -> str:
        return "all"


@dataclass(frozen=True)
class Specific:
    """These versions, where they exist."""

    versions: frozenset[int]

    def __str__(self) -> str:
        return f"specific {', '.join(map(str, sorted(self.versions)))}"


Policy = Latest | Every | Specific


@dataclass(frozen=True, kw_only=True)
class Found:
    """A version folder as the last look at the repository saw it.

    Args:
        stamp: equal stamps mean equal files.
        settled: nobody is writing to it any more.
    """

    stamp: object
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Current:
    """A version as the server has it.

    Args:
        serving: stamp of the files that it serves from; None while it does not serve.
        failed: stamp of the files that it last failed with; None when it never failed.
    """

    serving: object = None
    failed: object = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do next.

    Args:
        load: versions to load, the one most wanted first.
        unload: versions to drain and let go.
        waiting: versions that would be loaded, were they not still being written.
    """

    load: tuple[int, ...] = ()
    unload: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()


def wanted(numbers: Collection[int], policy: Policy) -> frozenset[int]:
    """The versions that the policy chooses among `numbers`."""
    match policy:
        case Latest(count):
            return frozenset(sorted(numbers)[-count:])
        case Every():
            return frozenset(numbers)
        case Specific(versions):
            return frozenset(numbers) & versions


def decide(found: Mapping[int, Found], current: Mapping[int, Current], policy: Policy) -> Decision:
    """What to load and let go of one model.

    Args:
        found: by version; a version that is not in it has no folder any more.
        current: by version; a version that is not in it was never touched.
        policy: which versions to serve.
    """
    untouched = Current()
    have = {n: current.get(n, untouched) for n in {*found, *current}}
    serving = {n for n in have if have[n].serving is not None}
    fresh = {n for n in found if found[n].stamp not in (have[n].serving, have[n].failed)}
    loadable = {n for n in fresh if found[n].settled}
    # A version that serves remains a candidate whatever happens to its files: it goes on with what it has.
    chosen = wanted(loadable | (serving & found.keys()), policy)
    load = sorted(chosen & loadable, reverse=True)
    return Decision(
        load=tuple(load),
        # A successor that is on its way keeps its predecessor, even one whose folder is gone.
        unload=() if load else tuple(sorted(serving - chosen)),
        waiting=tuple(sorted(wanted(fresh | (serving & found.keys()), policy) & (fresh - loadable))),
    )
