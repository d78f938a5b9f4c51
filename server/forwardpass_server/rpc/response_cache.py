"""Answers that were given before, for models whose config.pbtxt says `response_cache { enable: true }`.

An answer is kept under a digest (SHA-256) of everything that it follows from: the loaded version, every input's shape
and bytes, which outputs were asked for and in which form. What is kept is the encoded response without the caller's id,
which is written behind it. The oldest unused answers go when the bytes pass their bound.

Digesting reads every input once on the loop thread; that is the price of a miss, and why models must ask for it.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.scheduling.request import Inputs
from forwardpass_server.tensors import strings

ENTRY_BYTES = 512
"""What an entry takes beside its response: its digest, its place in the order, Python's objects (about 350, measured by
`sys.getsizeof` of each)."""

Key = bytes


def key(version: LoadedVersion, inputs: Inputs, outputs: Sequence[int], classes: Mapping[str, int]) -> Key:
    """The digest of a request that fits its model.

    Args:
        version: that would answer.
        inputs: in the order of its signature.
        outputs: indices of the outputs asked for, in their order.
        classes: of the outputs that are wanted as their largest values, how many.
    """
    shapes = [None if array is None else array.shape for array in inputs]
    digest = hashlib.sha256(repr((version.serial, shapes, tuple(outputs), sorted(classes.items()))).encode())
    for array in inputs:
        if array is not None:
            digest.update(strings.encode(array) if array.dtype.kind == "O" else np.ascontiguousarray(array))  # type: ignore[arg-type]
    return digest.digest()


class ResponseCache:
    """Responses by key, bounded by bytes. Any thread.

    Args:
        bytes_max: of all responses together, `ENTRY_BYTES` for each included.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._responses: OrderedDict[Key, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._responses)

    def get(self, key: Key) -> bytes | None:
        """The response, if there is one; it is then the last to go."""
        with self._lock:
            response = self._responses.get(key)
            if response is not None:
                self._responses.move_to_end(key)
            return response

    def put(self, key: Key, response: bytes) -> None:
        """Keep a response, unless it alone passes the bound."""
        size = len(response) + ENTRY_BYTES
        if size > self._bytes_max:
            return
        with self._lock:
            replaced = self._responses.pop(key, None)
            if replaced is not None:
                self._bytes -= len(replaced) + ENTRY_BYTES
            while self._bytes + size > self._bytes_max:
                _, oldest = self._responses.popitem(last=False)
                self._bytes -= len(oldest) + ENTRY_BYTES
            self._responses[key] = response
            self._bytes += size
