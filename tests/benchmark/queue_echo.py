"""The floor of a server in Python on grpcio's own core: it gives every call the same bytes, and nothing else.

No request is parsed, none is counted, no deadline is read, nobody's leaving is noticed. What our server takes beyond
this is ours to lower; this itself is not, short of another core.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from forwardpass_server.transport import single_thread

os.environ.setdefault(single_thread.VARIABLE, single_thread.CHOICE)  # before gRPC is imported

from grpc._cython import cygrpc as core

from forwardpass_proto import grpc_service_pb2 as pb

POSTED_CALLS = 1000
EMPTY_POLLS = 2
"""As in the server's own loop."""


def answer() -> bytes:
    message = pb.ModelInferResponse(model_name="mlp", model_version="1")
    message.outputs.add(name="y", datatype="FP32", shape=[1, 1])
    message.raw_output_contents.append(bytes(4))
    return message.SerializeToString()


def serve(server: Any, queue: Any, body: bytes) -> None:
    """Take what is ready, then answer it all, for ever."""
    arrived: list[Any] = []

    def on_call(event: Any) -> None:
        server.request_call(queue, queue, on_call)
        event.call.start_server_batch((core.ReceiveMessageOperation(0),), taker(event.call))

    def taker(call: Any) -> Callable[[Any], None]:
        return lambda event: arrived.append(call)

    def on_answered(event: Any) -> None: ...

    for _ in range(POSTED_CALLS):
        server.request_call(queue, queue, on_call)
    until: float | None = None
    while True:
        event, empty = queue.poll(until), 0
        while empty < EMPTY_POLLS:
            if event.tag is None:
                empty += 1
            else:
                event.tag(event)
                empty = 0
            event = queue.poll(0.0) if empty < EMPTY_POLLS else None
        for call in arrived:
            operations = (
                core.SendInitialMetadataOperation((), 0),
                core.SendMessageOperation(body, 0),
                core.SendStatusFromServerOperation((), 0, b"", 0),
                core.ReceiveCloseOnServerOperation(0),
            )
            call.start_server_batch(operations, on_answered)
        until = 0.0 if arrived else None
        arrived.clear()


def main() -> None:
    queue = core.CompletionQueue()
    limits = (("grpc.server.max_pending_requests", 1 << 20), ("grpc.server.max_pending_requests_hard_limit", 1 << 20))
    server = core.Server((("grpc.so_reuseport", 0), *limits), False)
    server.register_completion_queue(queue)
    port = server.add_http2_port(b"127.0.0.1:0")
    server.start()
    sys.stdout.write(f"port {port}\n")
    sys.stdout.flush()
    serve(server, queue, answer())


if __name__ == "__main__":
    main()
