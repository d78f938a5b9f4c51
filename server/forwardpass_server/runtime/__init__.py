"""ONNX Runtime, fenced in: no other room imports it, and it calls nobody.

NOTE: since 1.29 the published builds for Linux send events about models and machines to Microsoft, and keep a database
and an identifier in the home folder, unless this variable is set before the library is loaded (`Privacy.md` in the
package; microsoft/onnxruntime#27379). Whoever wants that sets it to 0.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
