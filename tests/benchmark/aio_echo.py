"""The bare grpc.aio echo: what a server pays that is built the usual way in Python and runs no model at all."""

import asyncio
import sys

import grpc.aio

from forwardpass_proto import grpc_service_pb2 as pb


async def infer(body: bytes, context: object) -> bytes:
    request = pb.ModelInferRequest.FromString(body)
    answer = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    answer.outputs.add(name="y", datatype="FP32", shape=[request.inputs[0].shape[0], 1])
    answer.raw_output_contents.append(request.raw_input_contents[0][:4])
    return answer.SerializeToString()


async def main() -> None:
    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"port {port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
