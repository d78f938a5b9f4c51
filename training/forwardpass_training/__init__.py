"""Offline training: recipes train a network, export it to ONNX, prove the export and publish it for the server.

The walk: `recipes` (what to train) → `data` → `models` → `train` → `evaluate` → `run` (one run folder) →
`exportable` (what leaves training) → `export` → `verify` → `publish`. `__main__` is the command line over it.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # why: forwardpass_server/runtime/__init__.py
