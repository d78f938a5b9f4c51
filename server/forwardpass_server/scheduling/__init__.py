"""From a checked request to its answer: wait, merge, run, split. Knows no gRPC, no ONNX Runtime, no Prometheus."""
