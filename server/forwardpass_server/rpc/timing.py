"""Where the time of one request went, for the caller who asks for it by metadata `forwardpass-timing: 1`.

The answer is JSON under the same name: in the trailers of a unary call, and in the parameters of each response of a
stream. It costs nothing when nobody asks.
"""

import json

from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.transport.call import Metadata

NAME = "forwardpass-timing"
ASKED = (NAME, "1")
"""The pair of metadata that asks."""


def trailer(timeline: Timeline, version: LoadedVersion) -> Metadata:
    """Microseconds of each stage, their sum, the rows of the batch it rode in, and what ran it.

    The stages, in order, are those of `Timeline.stages_ns`; one that was not reached is left out.
    """
    report: dict[str, float | str] = {f"{stage}_us": round(ns * 1e-3, 1) for stage, ns in timeline.stages_ns().items()}
    report["total_us"] = round((timeline.encoded_ns - timeline.received_ns) * 1e-3, 1)
    report["batch_rows"] = timeline.batch_rows
    report["model_version"] = str(version.number)
    report["provider"] = version.provider
    return ((NAME, json.dumps(report, separators=(",", ":"))),)
