"""What sequences hang on while their requests come by one stream: when it breaks, their client is lost."""

from collections.abc import Callable, Hashable


class Lifeline:
    """One stream's. `cut` is called on the loop thread, as is `bind`; `unbind` on any."""

    __slots__ = ("_bound",)

    def __init__(self) -> None:
        self._bound: dict[Hashable, Callable[[], None]] = {}

    def bind(self, key: Hashable, on_cut: Callable[[], None]) -> None:
        """Call `on_cut` when the stream breaks, unless `unbind` comes first. Again with a key replaces what was."""
        self._bound[key] = on_cut

    def unbind(self, key: Hashable) -> None:
        """Nothing hangs on it under this key any more."""
        self._bound.pop(key, None)

    def cut(self) -> None:
        """The stream broke."""
        while self._bound:
            _, on_cut = self._bound.popitem()
            on_cut()
