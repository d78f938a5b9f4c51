"""For every test.

A property is about values, so a busy machine does not fail it (Hypothesis' 200 ms would). And ONNX Runtime sends nobody
word of what is tested.
"""

import os

from hypothesis import settings

settings.register_profile("forwardpass", deadline=None)
settings.load_profile("forwardpass")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
