"""Texts from a real server: crowds, swaps, stops, and tritonclient. Every text can be worked out by hand."""

import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.lifecycle import repository
from forwardpass_server.runtime.fake_generator import CHARACTERS, graph, right_text
from forwardpass_server.scheduling.text import Sampling

if TYPE_CHECKING:
    from tests.integration.conftest import Process, Serve

WAIT_S = 60.0
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
MIB = 1 << 20

HEAVY = (*CHARACTERS[:26], *(name * 8192 for name in "ABC"))
"""A vocabulary with words so long that readers who do not read are soon felt."""


def publish(root: Path, name: str, characters: tuple[str, ...] = CHARACTERS) -> int:
    """The next version of a generator."""

    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(graph(characters).SerializeToString())
        return {}

    return repository.publish(root, name, build).version


def request(prompt: str, request_id: str = "", model: str = "bard", **parameters: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, id=request_id)
    message.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(len(prompt.encode()).to_bytes(4, "little") + prompt.encode())
    for name, value in parameters.items():
        kind = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


class Stream:
    """One stream with one text."""

    def __init__(self, channel: grpc.Channel, asked: pb.ModelInferRequest) -> None:
        self.call = channel.stream_stream(
            STREAM, lambda message: message.SerializeToString(), pb.ModelStreamInferResponse.FromString
        )(iter([asked]), timeout=WAIT_S * 2)
        self.text = ""
        self.versions: set[str] = set()
        self.final: pb.ModelInferResponse | None = None

    def read(self) -> bool:
        """Take one piece; False when there is no more."""
        for response in self.call:
            assert not response.error_message, response.error_message
            assert self.final is None, "something came after the final response"
            answer = response.infer_response
            self.text += answer.raw_output_contents[0][4:].decode()
            self.versions.add(answer.model_version)
            if answer.parameters["triton_final_response"].bool_param:
                self.final = answer
            return True
        return False

    def read_all(self) -> str:
        while self.read():
            pass
        assert self.final is not None
        return self.text


@pytest.fixture
def process(root: Path, serve: "Serve") -> "Process":
    publish(root, "bard")
    return serve()


@pytest.fixture
def channels(process: "Process") -> Iterator[list[grpc.Channel]]:
    """Eight connections, whose windows do not grow: who does not read is soon felt."""
    process.client()
    address = next(line["address"] for line in process.lines if line["message"] == "serving")
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    made = [grpc.insecure_channel(address, options=own) for _ in range(8)]
    yield made
    for channel in made:
        channel.close()


def gauge(process: "Process", name: str, model: str = "bard") -> float:
    lines = [line for line in process.metrics().splitlines() if line.startswith(f'{name}{{model="{model}"')]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def until(condition: Any, what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < give_up, f"not so after {WAIT_S:g} s: {what}"
        pause.wait(0.01)


def resident_mib(process: "Process") -> float:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


def test_256_readers_of_whom_a_quarter_hangs_up_and_a_quarter_hardly_reads(
    root: Path, process: "Process", channels: list[grpc.Channel]
) -> None:
    """The rest get their texts, right; memory does not grow with what is not read; every slot is free in the end.

    What slow readers leave unread would be 160 MiB.
    """
    publish(root, "heavy", HEAVY)
    process.wait_for("version ready", model="heavy")
    Stream(channels[0], request("abc", model="heavy", max_tokens=500, seed=1)).read_all()
    before_mib, most_mib = resident_mib(process), 0.0
    luck = random.Random(6)
    wrong: list[str] = []
    rest_done = threading.Semaphore(0)
    all_done = threading.Event()

    def read(number: int, fate: str, leave_after: int) -> None:
        channel = channels[number % 4 + (4 if fate == "slow" else 0)]
        tokens = 3000 if fate == "slow" else 100 + number
        stream = Stream(channel, request("tobe", model="heavy", max_tokens=tokens, seed=number, temperature=0.9))
        try:
            if fate == "reads":
                text = stream.read_all()
                right = right_text("tobe", Sampling(max_tokens=tokens, seed=number, temperature=0.9), HEAVY)
                if text != right:
                    wrong.append(f"reader {number} got {len(text)} characters, not {len(right)}")
            else:
                pieces = 0
                while (fate == "leaves" and pieces < leave_after) or (fate == "slow" and not all_done.is_set()):
                    stream.read()
                    pieces += 1
                    if fate == "slow":
                        all_done.wait(0.5)
                stream.call.cancel()
        except Exception as error:  # noqa: BLE001 - told to the test's own thread
            wrong.append(f"reader {number} ({fate}): {error!r}")
        finally:
            if fate != "slow":
                rest_done.release()

    fates = ["reads", "reads", "leaves", "slow"] * 64
    luck.shuffle(fates)
    threads = [
        threading.Thread(target=read, args=(number, fate, luck.randint(0, 6))) for number, fate in enumerate(fates)
    ]
    for thread in threads:
        thread.start()
    for _ in range(192):
        assert rest_done.acquire(timeout=WAIT_S), f"{gauge(process, 'generation_active', 'heavy')} are still active"
        most_mib = max(most_mib, resident_mib(process))
    until(lambda: gauge(process, "generation_parked", "heavy") == 64, "those who hardly read are left out")
    assert gauge(process, "generation_active", "heavy") == 64
    most_mib = max(most_mib, resident_mib(process))
    all_done.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert wrong == []
    assert most_mib - before_mib < 64
    for name in ("generation_active", "generation_waiting", "generation_parked", "infer_inflight"):
        until(lambda name=name: gauge(process, name, "heavy") == 0, f"{name} is 0")  # type: ignore[misc]
    assert Stream(channels[0], request("abc", model="heavy", max_tokens=50, seed=1)).read_all() == right_text(
        "abc", Sampling(max_tokens=50, seed=1), HEAVY
    )


def test_a_text_is_the_same_alone_beside_63_others_and_whole(channels: list[grpc.Channel]) -> None:
    for temperature in (0.2, 0.5, 1.0, 1.2):
        asked = request("to be", max_tokens=400, temperature=temperature, seed=11)
        alone = Stream(channels[0], asked).read_all()
        assert alone == right_text("to be", Sampling(max_tokens=400, temperature=temperature, seed=11))
        others = [
            Stream(channels[n % 8], request("abcdefgh"[: 1 + n % 8], max_tokens=300 + n, seed=n)) for n in range(63)
        ]
        assert Stream(channels[0], asked).read_all() == alone
        whole = channels[0].unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            lambda message: message.SerializeToString(),
            pb.ModelInferResponse.FromString,
        )(asked, timeout=WAIT_S)
        assert whole.raw_output_contents[0][4:].decode() == alone
        for n, other in enumerate(others):
            assert other.read_all() == right_text("abcdefgh"[: 1 + n % 8], Sampling(max_tokens=300 + n, seed=n))


def test_a_text_ends_on_the_version_on_which_it_began(
    root: Path, process: "Process", channels: list[grpc.Channel]
) -> None:
    other = tuple(reversed(CHARACTERS))
    asked = request("to be", max_tokens=60_000, temperature=1.0, seed=3)
    streams = [Stream(channel, asked) for channel in channels[:4]]
    for stream in streams:
        assert stream.read()
    assert publish(root, "bard", other) == 2
    process.wait_for("version ready", model="bard", version=2)
    until(lambda: _version_of(channels[5]) == {"2"}, "new texts are written by version 2")
    right = right_text("to be", Sampling(max_tokens=60_000, seed=3))
    readers = [threading.Thread(target=stream.read_all) for stream in streams]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(WAIT_S)
    for stream in streams:
        assert (stream.text == right, stream.versions) == (True, {"1"})
    process.wait_for("version unloaded", model="bard", version=1)


def _version_of(channel: grpc.Channel) -> set[str]:
    stream = Stream(channel, request("a", max_tokens=1))
    stream.read_all()
    return stream.versions


def test_an_unload_is_answered_when_the_texts_are_at_their_end(root: Path, tmp_path: Path, serve: "Serve") -> None:
    token = "admin-token-0123456789"
    (tmp_path / "tokens").write_text(token)
    publish(root, "bard")
    process = serve(
        *("--model-control-mode=explicit", "--load-model=bard"),
        *("--enable-admin", f"--admin-token-file={tmp_path / 'tokens'}"),
    )
    channel = process.client().channel
    stream = Stream(channel, request("to be", max_tokens=20_000, seed=3))
    assert stream.read()
    unload = channel.unary_unary(
        "/inference.GRPCInferenceService/RepositoryModelUnload",
        lambda message: message.SerializeToString(),
        pb.RepositoryModelUnloadResponse.FromString,
    ).future(
        pb.RepositoryModelUnloadRequest(model_name="bard"),
        timeout=WAIT_S,
        metadata=(("authorization", f"Bearer {token}"),),
    )
    process.wait_for("version draining", model="bard")
    with pytest.raises(AssertionError, match="bard"):  # the error inside the stream
        Stream(channel, request("a", max_tokens=1)).read()
    assert stream.read_all() == right_text("to be", Sampling(max_tokens=20_000, seed=3))
    unload.result()
    process.wait_for("version unloaded", model="bard")


def test_a_stop_lets_texts_come_to_their_end(root: Path, serve: "Serve") -> None:
    publish(root, "bard")
    process = serve("--grace-s=120")
    stream = Stream(process.client().channel, request("to be", max_tokens=5000, seed=3))
    assert stream.read()
    process.terminate()
    assert stream.read_all() == right_text("to be", Sampling(max_tokens=5000, seed=3))
    assert process.wait() == 0


def test_a_text_that_outlives_the_grace_is_told_so(root: Path, serve: "Serve") -> None:
    publish(root, "bard")
    process = serve("--grace-s=0.05")
    stream = Stream(process.client().channel, request("to be", max_tokens=65_536, seed=3))
    assert stream.read()
    process.terminate()
    with pytest.raises(grpc.RpcError) as caught:
        stream.read_all()
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "this server is stopping; another replica will answer",
    )
    assert process.wait() == 1
    assert right_text("to be", Sampling(max_tokens=65_536, seed=3)).startswith(stream.text)


def test_tritonclient_streams_texts(process: "Process") -> None:
    process.client()
    address = next(line["address"] for line in process.lines if line["message"] == "serving")
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with triton.InferenceServerClient(address) as client:
        config = client.get_model_config("bard").config
        assert config.model_transaction_policy.decoupled
        client.start_stream(lambda result, error: answers.put((result, error)))
        prompt = triton.InferInput("prompt", [1], "BYTES")
        for number in range(3):
            prompt.set_data_from_numpy(np.array([b"to be"], dtype=np.object_))
            client.async_stream_infer(
                "bard",
                [prompt],
                request_id=f"r{number}",
                parameters={"max_tokens": 100, "seed": number, "top_k": 9},
                enable_empty_final_response=True,
            )
        texts, ended = dict.fromkeys(("r0", "r1", "r2"), ""), set()
        while len(ended) < 3:
            result, error = answers.get(timeout=WAIT_S)
            assert error is None
            response = result.get_response()
            texts[response.id] += result.as_numpy("text")[0].decode()
            if response.parameters["triton_final_response"].bool_param:
                assert response.parameters["generated_tokens"].int64_param == 100
                assert response.parameters["finish_reason"].string_param == "length"
                ended.add(response.id)
        client.stop_stream()
    for number in range(3):
        assert texts[f"r{number}"] == right_text("to be", Sampling(max_tokens=100, seed=number, top_k=9))


def test_tritonclient_gets_a_whole_text_by_an_ordinary_call(process: "Process") -> None:
    process.client()
    address = next(line["address"] for line in process.lines if line["message"] == "serving")
    with triton.InferenceServerClient(address) as client:
        prompt = triton.InferInput("prompt", [1], "BYTES")
        prompt.set_data_from_numpy(np.array([b"to be"], dtype=np.object_))
        result = client.infer("bard", [prompt], parameters={"max_tokens": 100, "seed": 1})
        assert result.as_numpy("text")[0].decode() == right_text("to be", Sampling(max_tokens=100, seed=1))
