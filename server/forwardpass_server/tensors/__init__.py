"""Protobuf to numpy and back: the dtypes, the wire, and what a model's graph says it takes and gives."""
