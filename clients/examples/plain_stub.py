"""The same call without our client: grpcio and the message classes alone, as in any language with generated stubs.

    python clients/examples/plain_stub.py --model linear_regression --input x --values 3

In another language, generate the stub from proto/grpc_service.proto; the method is
/inference.GRPCInferenceService/ModelInfer, and tensors are raw little-endian bytes, row by row.
"""

import argparse
import struct

import grpc

from forwardpass_proto import grpc_service_pb2 as pb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="linear_regression")
    parser.add_argument("--input", default="x")
    parser.add_argument("--values", type=float, nargs="+", default=[3.0], help="one row of FP32")
    arguments = parser.parse_args()

    request = pb.ModelInferRequest(model_name=arguments.model)
    request.inputs.add(name=arguments.input, datatype="FP32", shape=[1, len(arguments.values)])
    request.raw_input_contents.append(struct.pack(f"<{len(arguments.values)}f", *arguments.values))

    with grpc.insecure_channel(arguments.url) as channel:
        model_infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        reply = model_infer(request, timeout=10)

    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        print(output.name, output.datatype, list(output.shape), struct.unpack(f"<{len(raw) // 4}f", raw))


if __name__ == "__main__":
    main()
