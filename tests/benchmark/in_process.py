"""ONNX Runtime alone: `in_process.py MODEL`, then lines `ROWS SECONDS` on stdin, each answered by rows a second.

One thread, as the servers have it; the same array again and again, so that nothing but the model is paid for.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import sys
import time

import numpy as np
import onnxruntime


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    for line in sys.stdin:
        rows, seconds = int(line.split()[0]), float(line.split()[1])
        x = np.random.default_rng(1).standard_normal((rows, *shape), dtype=np.float32)
        session.run(None, {"x": x})
        runs, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            session.run(None, {"x": x})
            runs += 1
        sys.stdout.write(f"{runs * rows / passed}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
