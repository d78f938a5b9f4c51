"""Texts a second: a generator streamed to readers, beside the same generator in a loop.

    python tests/benchmark/generation.py MODELS/shakespeare [--realtime]
    python tests/benchmark/generation.py MODELS/shakespeare --samples 400

The loop is the ceiling: ONNX Runtime alone, each run fed with what the last one gave. Server and loop have core 0 and
are asked in turn, several times over; readers have core 1. A reader is a stream that asks for a text, takes its pieces,
and asks for the next.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import grpc
import numpy as np

from forwardpass_proto import grpc_service_pb2 as pb

ROUNDS = 3
READERS = 64
PROMPT = "ROMEO:"
TEMPERATURES = (0.2, 0.5, 1.0, 1.2)


def loop(model: Path, seconds: float) -> float:
    """Tokens a second of 64 rows, in runs of as many steps as the model offers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    stated = json.loads(session.get_modelmeta().custom_metadata_map["forwardpass.generation"])
    steps, size = stated["steps_max"], len(stated["vocabulary"])
    shapes = {each.name: each.shape[1:] for each in session.get_inputs()}
    feed = {
        "token": np.random.default_rng(0).integers(0, size, (READERS, 1)),
        "forced": np.full((READERS, steps), -1, np.int64),
        "temperature": np.ones((READERS, 1), np.float32),
        "top_k": np.zeros((READERS, 1), np.int64),
        "top_p": np.ones((READERS, 1), np.float32),
    }
    feed = {name: array for name, array in feed.items() if name in shapes}
    for state in stated["states"]:
        feed[state["input"]] = np.zeros((READERS, *shapes[state["input"]]), np.float32)
    names = ["tokens", *(state["output"] for state in stated["states"])]
    rng = np.random.default_rng(1)
    runs = 0
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        feed["uniform"] = rng.random((READERS, steps), np.float32)
        tokens, *states = session.run(names, feed)
        feed["token"] = np.ascontiguousarray(tokens[:, -1:])
        feed |= {state["input"]: array for state, array in zip(stated["states"], states, strict=True)}
        runs += 1
    return runs * READERS * steps / passed


def request(model: str, tokens: int, seed: int, temperature: float = 1.0) -> bytes:
    """The bytes of one request for a text."""
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(len(PROMPT).to_bytes(4, "little") + PROMPT.encode())
    message.parameters["max_tokens"].int64_param = tokens
    message.parameters["seed"].int64_param = seed
    message.parameters["temperature"].double_param = temperature
    return message.SerializeToString()


class Readers:
    """Streams that read, each on a thread and on a connection that a few share."""

    def __init__(self, target: str, model: str, count: int, tokens: int) -> None:
        channels = [
            grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(min(count, 8))
        ]
        self._streams = [channels[number % len(channels)] for number in range(count)]
        self._model, self._tokens = model, tokens
        self.characters = [0] * count
        self.first_ms: list[float] = []
        self.stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _read(self, number: int) -> None:
        ask = self._streams[number].stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        seed = number
        while not self.stop.is_set():
            seed += READERS
            began, first = time.perf_counter(), True
            call = ask(iter([request(self._model, self._tokens, seed)]))
            for body in call:
                if first:
                    self.first_ms.append((time.perf_counter() - began) * 1e3)
                    first = False
                self.characters[number] += _characters(body)
                if self.stop.is_set():
                    call.cancel()
                    break


def _characters(body: bytes) -> int:
    """Of one piece; its message is not parsed, since 64 readers in Python would be what is measured."""
    at = body.index(b"text\x12\x05BYTES\x1a\x01\x01") + 14
    assert body[at] == 0x32, body  # raw_output_contents: tag, length, and in it length and text
    at += 2 if body[at + 1] < 0x80 else 3
    return int.from_bytes(body[at : at + 4], "little")


def read(target: str, model: str, count: int, tokens: int, seconds: float) -> dict[str, float]:
    """Characters a second that reach `count` readers, and how long they wait for their first."""
    with Readers(target, model, count, tokens) as readers:
        time.sleep(min(1.0, seconds / 2))
        began, before = time.perf_counter(), sum(readers.characters)
        time.sleep(seconds)
        rate = (sum(readers.characters) - before) / (time.perf_counter() - began)
    return {"characters_s": rate, "first_ms_p50": statistics.median(readers.first_ms)}


def whole(channel: grpc.Channel, message: bytes) -> str:
    """The text of one request, put together from its pieces."""
    answers = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )(iter([message]))
    return "".join(answer.infer_response.raw_output_contents[0][4:].decode() for answer in answers)


def samples(target: str, model: str, characters: int) -> dict[str, object]:
    """A text at each temperature; and whether it is the same again, alone and beside 63 others."""
    channel = grpc.insecure_channel(target)
    shown: dict[str, object] = {}
    for temperature in TEMPERATURES:
        asked = request(model, characters, 7, temperature)
        alone = whole(channel, asked)
        with Readers(target, model, READERS - 1, characters) as others:
            while min(others.characters) == 0:
                time.sleep(0.01)
            beside = whole(channel, asked)
        shown[str(temperature)] = alone
        if not alone == beside == whole(channel, asked) or len(alone) != characters:
            raise SystemExit(f"at temperature {temperature} the text is another beside {READERS - 1} others")
    channel.close()
    return shown


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path, help="folder of a generator in a repository")
    arguments.add_argument("--realtime", action="store_true", help="before all other jobs of the machine (root)")
    arguments.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    arguments.add_argument("--samples", type=int, help="instead, texts of so many characters at four temperatures")
    arguments.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        kind, *rest = given.worker
        if kind == "loop":
            found: object = loop(given.model, given.seconds)
        elif kind == "samples":
            found = samples(rest[0], given.model.name, int(rest[1]))
        else:
            found = read(rest[0], given.model.name, int(rest[1]), int(rest[2]), given.seconds)
        sys.stdout.write(json.dumps(found))
        return
    measure(given.model.resolve(), given.seconds, given.samples, realtime=given.realtime)


def measure(model: Path, seconds: float, characters: int | None, *, realtime: bool) -> None:
    """Start the server; then loop and readers in turn, and the figures; or the samples."""
    sys.path.insert(0, str(Path(__file__).parent))
    from processes import GENERATOR_CORE, SERVER_CORE, Bench, Priority

    bench = Bench(Path(), Priority.REALTIME if realtime else Priority.NONE)
    version = max((each for each in model.iterdir() if each.name.isdigit()), key=lambda each: int(each.name))

    def worker(core: str, path: Path, *what: str) -> Any:
        command = [sys.executable, __file__, str(path), "--seconds", str(seconds), "--worker", *what]
        done = subprocess.run(bench.placed(core, command), stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    with tempfile.TemporaryDirectory() as folder:
        command = bench.forwardpass(model.parent)
        with bench.serving(command, Path(folder) / "server.log") as server:
            target = f"127.0.0.1:{server.port}"
            if characters is not None:
                for temperature, text in worker(GENERATOR_CORE, model, "samples", target, str(characters)).items():
                    sys.stdout.write(f"--- temperature {temperature}, seed 7\n{PROMPT}{text}\n\n")
                sys.stdout.write(f"each the same again, alone and beside {READERS - 1} others\n")
                return
            first_ms, ratios = [], []
            for _ in range(ROUNDS):
                ceiling = worker(SERVER_CORE, version / "model.onnx", "loop")
                crowd = worker(GENERATOR_CORE, model, "read", target, str(READERS), "2000")
                alone = worker(GENERATOR_CORE, model, "read", target, "1", "64")
                first_ms.append(alone["first_ms_p50"])
                ratios.append(crowd["characters_s"] / ceiling)
                sys.stdout.write(
                    f"loop {ceiling:7.0f} characters/s   {READERS} readers {crowd['characters_s']:7.0f}"
                    f"   ratio {ratios[-1]:.3f}   first piece {crowd['first_ms_p50']:.1f} ms"
                    f"   1 reader {alone['characters_s']:6.0f}   first piece {first_ms[-1]:.2f} ms\n"
                )
            sys.stdout.write(
                f"{READERS} readers: {statistics.median(ratios):.3f} of the loop; "
                f"1 reader: first piece p50 {statistics.median(first_ms):.2f} ms\n"
            )


if __name__ == "__main__":
    main()
