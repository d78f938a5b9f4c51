"""A stream that ends where it begins."""

from forwardpass_server.rpc import status
from forwardpass_server.transport.call import StreamCall


class RefusedStream:
    """Ends a stream at once. A `transport.call.StreamHandler`."""

    def __init__(self, call: StreamCall, error: Exception) -> None:
        call.fail(*status.of(error))

    def on_message(self, body: bytes) -> None:
        """Sent before the caller saw the end."""

    def on_half_close(self) -> None:
        """The end was already sent."""

    def on_cancel(self) -> None:
        """Nothing is held."""
