"""A version that can serve: everything a request needs of it, and how to take it apart again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.scheduling.ensemble import EnsembleScheduler
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.scheduling.scheduler import Scheduler
from forwardpass_server.scheduling.sequence_scheduler import SequenceScheduler
from forwardpass_server.tensors.signature import Signature
from forwardpass_server.tensors.wire import Replies

PLATFORM = "onnxruntime_onnx"
"""What Triton's clients expect of an ONNX model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedVersion:
    """One version in memory, warmed and proved.

    Args:
        model: its name.
        number: its version.
        signature: as served.
        scheduler: takes its requests.
        settings: what its config.pbtxt says, or the defaults.
        provider: the execution provider that runs it, as ONNX Runtime names it.
        proved: golden examples were replayed on this device.
        sha256: of the ONNX file.
        properties: the file's metadata, and what the server found out about it.
        labels: the names of the classes of each output that has some.
        cached: answers may come from the response cache.
        serial: different for whatever was ever loaded, the same files loaded again included.
        release_session: frees the session; no run may be in progress.
    """

    model: str
    number: int
    signature: Signature
    scheduler: Scheduler | EnsembleScheduler | GenerationScheduler | SequenceScheduler
    settings: ModelSettings
    provider: str
    proved: bool
    sha256: str
    properties: Mapping[str, str]
    release_session: Callable[[], None] = field(repr=False)
    platform: str = PLATFORM
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    cached: bool = False
    serial: int = field(default_factory=itertools.count().__next__)
    replies: Replies = field(init=False, repr=False)
    """Encodes its answers."""

    def __post_init__(self) -> None:
        outputs = [(spec.name, spec.dtype) for spec in self.signature.outputs]
        object.__setattr__(self, "replies", Replies(self.model, str(self.number), outputs))

    def __str__(self) -> str:
        return f"version {self.number} of {self.model!r}"

    @property
    def sequences(self) -> SequenceScheduler | None:
        """Its scheduler, if it keeps sequences."""
        return self.scheduler if isinstance(self.scheduler, SequenceScheduler) else None

    def keeps(self, sequence_id: object) -> bool:
        """Whether a sequence of that id goes on here. Any thread."""
        return self.sequences is not None and isinstance(sequence_id, int | str) and self.sequences.keeps(sequence_id)

    def restarted_elsewhere(self, sequence_id: object) -> None:
        """A sequence of that id was started in another version. Loop thread."""
        if self.sequences is not None and isinstance(sequence_id, int | str):
            self.sequences.restarted_elsewhere(sequence_id)

    def close(self, timeout_s: float) -> bool:
        """End its threads and free its session. Its leases must be drained; not on the loop thread.

        Returns:
            False when a run did not end within `timeout_s` seconds: then the session is left as it is.
        """
        if not self.scheduler.close(timeout_s):
            return False
        self.release_session()
        return True
