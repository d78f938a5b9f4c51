"""One process, two clients of the protocol, in both orders of import; each in a process of its own."""

import subprocess
import sys
from typing import Any

import pytest

SCRIPT = """
import sys
if sys.argv[2] == "forwardpass first":
    import forwardpass
    import tritonclient.grpc as triton
else:
    import tritonclient.grpc as triton
    import forwardpass
import numpy as np

x = np.arange(6, dtype=np.float32).reshape(2, 3)
with forwardpass.Client(sys.argv[1]) as ours:
    mine = ours.infer("echo", {"x": x})["x"]
theirs = triton.InferenceServerClient(sys.argv[1])
tensor = triton.InferInput("x", x.shape, "FP32")
tensor.set_data_from_numpy(x)
its = theirs.infer("echo", [tensor]).as_numpy("x")
assert theirs.get_model_metadata("echo").inputs[0].datatype == "FP32"
theirs.close()
np.testing.assert_array_equal(mine, x)
np.testing.assert_array_equal(its, x)
print("both answered")
"""


@pytest.mark.parametrize("order", ["forwardpass first", "tritonclient first"])
def test_forwardpass_and_tritonclient_share_a_process(server: Any, order: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, server.address, order], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both answered\n"
