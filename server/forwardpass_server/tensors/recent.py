"""A bounded memory of what was asked for lately."""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A map that forgets what nobody asked for while `capacity` other things were added.

    Two generations: lookups go to the young one, then to the old one, whose hits move back; a full young generation
    becomes the old one. That is close to least-recently-used, and a hit costs one dictionary lookup and no reordering.

    Any thread: two that add at once may lose an entry, which costs its owner a second making and nothing else.

    Args:
        capacity: entries in each generation; at most twice as many are held.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        if len(self._young) >= self._capacity:
            self._old = self._young
            self._young = {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
