"""Calls and bytes: knows gRPC, knows no model.

Read in this order: `call` (what the rest of the server sees), `completion_queue` (the loop), `unary` and `stream` (one
call of each kind), `stop` (the sequence that loses nothing). `core` is the fence round grpcio's private module.
"""
