"""What a request's bytes cost: our decode, check and encode beside protobuf and numpy used plainly.

    python tests/benchmark/wire.py

Prints the CPU time of one thread, the best of five rounds. A 10-float MLP request, the same with an id, a request of
600 KB, and a BYTES tensor of ten million elements.
"""

import sys
import time
import timeit
from collections.abc import Callable

import numpy as np

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.tensors import dtypes, strings
from forwardpass_server.tensors.signature import Signature, TensorSpec
from forwardpass_server.tensors.wire import Decoder, Encoder

ELEMENTS = 10_485_760


def signature(columns: int) -> Signature:
    return Signature(
        (TensorSpec("x", dtypes.FP32, ("batch", columns)),), (TensorSpec("y", dtypes.FP32, ("batch", 1)),), 64
    )


def request(columns: int, request_id: str = "") -> bytes:
    message = pb.ModelInferRequest(model_name="mlp_classifier", id=request_id)
    message.inputs.add(name="x", datatype="FP32", shape=[1, columns])
    message.raw_input_contents.append(np.zeros((1, columns), "<f4").tobytes())
    return message.SerializeToString()


def plainly_decoded(body: bytes) -> tuple[object, ...]:
    """What a server does that reads the message with protobuf."""
    message = pb.ModelInferRequest.FromString(body)
    inputs = [
        (tensor.name, tensor.datatype, np.frombuffer(raw, "<f4").reshape(tuple(tensor.shape)))
        for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    ]
    wanted = [output.name for output in message.outputs]
    return message.model_name, message.model_version, message.id, dict(message.parameters), inputs, wanted


def plainly_encoded(array: np.ndarray) -> bytes:
    message = pb.ModelInferResponse(model_name="mlp_classifier", model_version="1")
    message.outputs.add(name="y", datatype="FP32", shape=array.shape)
    message.raw_output_contents.append(array.tobytes())
    return message.SerializeToString()


def microseconds(work: Callable[[], object], rounds: int = 20_000) -> float:
    return min(timeit.repeat(work, number=rounds, repeat=5, timer=time.thread_time)) / rounds * 1e6


def main() -> None:
    decoder, encoder = Decoder(), Encoder()
    answer = np.zeros((1, 1), "<f4")
    mlp, image = signature(10), signature(150_528)
    small, with_id, large = request(10), request(10, "00000042"), request(150_528)
    decoded = decoder.decode(small)

    def encoded() -> bytes:
        return encoder.encode(
            model_name="mlp_classifier", model_version="1", request_id="", outputs=[("y", dtypes.FP32, answer)]
        )

    table: list[tuple[str, Callable[[], object], int]] = [
        ("decode, 10 floats", lambda: decoder.decode(small), 20_000),
        ("decode, 10 floats and an id", lambda: decoder.decode(with_id), 20_000),
        ("decode by scan (a layout not seen before)", lambda: decoder._by_scan(small), 20_000),
        ("decode plainly, to arrays", lambda: plainly_decoded(small), 20_000),
        ("check, 10 floats", lambda: mlp.check(decoded), 20_000),
        ("encode", encoded, 20_000),
        ("encode plainly", lambda: plainly_encoded(answer), 20_000),
        ("decode, check, encode", lambda: (mlp.check(decoder.decode(small)), encoded()), 20_000),
        ("all three plainly", lambda: (plainly_decoded(small), plainly_encoded(answer)), 20_000),
        ("decode and check, 600 KB", lambda: image.check(decoder.decode(large)), 5_000),
        ("decode plainly, 600 KB", lambda: plainly_decoded(large), 1_000),
    ]
    for name, work, rounds in table:
        sys.stdout.write(f"{microseconds(work, rounds):10.2f} µs  {name}\n")

    alike = memoryview(b"\1\0\0\0x" * ELEMENTS)
    array = np.full(ELEMENTS, "x", np.object_)
    for name, once in [
        ("BYTES decode, elements alike", lambda: strings.decode(alike, ELEMENTS, "x")),
        ("BYTES decode, one by one", lambda: strings._one_by_one(bytes(alike), ELEMENTS, "x")),
        ("BYTES encode", lambda: strings.encode(array)),
    ]:
        seconds = min(timeit.repeat(once, number=1, repeat=2, timer=time.thread_time))
        sys.stdout.write(f"{seconds:10.2f} s   {name}, {ELEMENTS} elements\n")


if __name__ == "__main__":
    main()
