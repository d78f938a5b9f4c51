"""One message of a stream of replies: an answer, or an error in its place. Pure."""

from forwardpass import messages
from forwardpass.errors import ServerFault
from forwardpass.results import InferResult
from forwardpass_proto import grpc_service_pb2 as pb

ERRORS_END_STREAMS = ("triton_grpc_error", "true")
"""Metadata that asks a server to end the stream with the error's status, which says whose fault it is. A server that
does not know it puts the error's words into the stream alone."""


def result(reply: pb.ModelStreamInferResponse) -> InferResult:
    """What a reply answers.

    Raises:
        ServerFault: it is an error; words are all that such a message has.
        MalformedReply: it contradicts itself.
    """
    if reply.error_message:
        raise ServerFault(reply.error_message)
    return messages.infer_result(reply.infer_response, ())
