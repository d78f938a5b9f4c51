"""ONNX Runtime, fenced in: no other room imports it."""
