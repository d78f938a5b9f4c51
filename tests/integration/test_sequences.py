"""Sequences as tritonclient drives them, against a real server: an accumulator that keeps its sum between requests."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

import forwardpass
from forwardpass_proto import model_config_pb2 as config_pb
from forwardpass_server.lifecycle import repository

if TYPE_CHECKING:
    from tests.integration.conftest import Process

WAIT_S = 30.0

CONFIG = """
max_batch_size: 8
input {{ name: "x" data_type: TYPE_INT32 dims: [ 1 ] }}
sequence_batching {{
  {strategy}
  max_sequence_idle_microseconds: {idle_us}
  state {{ input_name: "sum_in" output_name: "sum_out" data_type: TYPE_INT32 dims: [ 1 ]
          initial_state {{ data_type: TYPE_INT32 dims: [ 1 ] zero_data: true name: "zero" }} }}
  control_input {{ name: "id" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING }} }}
}}
"""


def accumulator(scale: int = 1) -> bytes:
    """x INT32 [b, 1], sum_in INT32 [b, 1], id STRING [b, 1] → sum = sum_out = sum_in + scale · x, who = id."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["b", 1]) for name in ("x", "sum_in")]
    inputs.append(helper.make_tensor_value_info("id", TensorProto.STRING, ["b", 1]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["b", 1]) for name in ("sum", "sum_out")]
    outputs.append(helper.make_tensor_value_info("who", TensorProto.STRING, ["b", 1]))
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "sum_in"], ["sum_out"]),
        helper.make_node("Identity", ["sum_out"], ["sum"]),
        helper.make_node("Identity", ["id"], ["who"]),
    ]
    weights = [numpy_helper.from_array(np.array([scale], np.int32), "scale")]
    graph = helper.make_graph(nodes, "accumulator", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def save(root: Path, name: str, *, strategy: str = "direct { }", idle_s: float = 60.0) -> None:
    """A model and its first version; published, as those need no trial in a process of its own."""
    (root / name).mkdir()
    (root / name / "config.pbtxt").write_text(CONFIG.format(strategy=strategy, idle_us=round(idle_s * 1e6)))
    publish(root, name)


def publish(root: Path, name: str, scale: int = 1) -> None:
    """The next version of a model."""

    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(accumulator(scale))
        return {}

    repository.publish(root, name, build)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    save(root, "sum")
    save(root, "many", strategy="oldest { max_candidate_sequences: 64 preferred_batch_size: [ 4 ] }")
    save(root, "few", strategy="oldest { max_candidate_sequences: 4 max_queue_delay_microseconds: 1000 }")
    save(root, "one", strategy="oldest { max_candidate_sequences: 1 }")
    save(root, "brief", strategy="oldest { max_candidate_sequences: 1 }", idle_s=0.5)
    save(root, "swapped")
    return root


@pytest.fixture(scope="module")
def process(root: Path, serve_all: Callable[..., "Process"]) -> "Process":
    """One server for all of them: each test has models or ids of its own."""
    return serve_all(root, "--max-queue-requests=20")


def value(number: int, rows: int = 1) -> list[Any]:
    x = triton.InferInput("x", [rows, 1], "INT32")
    x.set_data_from_numpy(np.full((rows, 1), number, np.int32))
    return [x]


class Client:
    """tritonclient, and what its stream heard."""

    def __init__(self, port: int) -> None:
        self.triton = triton.InferenceServerClient(f"127.0.0.1:{port}")
        self.heard: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def step(self, model: str, number: int, name: int | str, *, rows: int = 1, **flags: Any) -> tuple[int, str]:
        result = self.triton.infer(model, value(number, rows), sequence_id=name, client_timeout=WAIT_S, **flags)
        return int(result.as_numpy("sum")[0, 0]), result.as_numpy("who")[0, 0].decode()

    def refused(self, model: str, number: int, name: int | str, **flags: Any) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as caught:
            self.step(model, number, name, **flags)
        return caught.value.status().removeprefix("StatusCode."), caught.value.message()

    def open_stream(self) -> None:
        self.triton.start_stream(lambda result, error: self.heard.put((result, error)))

    def send(self, model: str, number: int, name: int | str, **flags: Any) -> None:
        self.triton.async_stream_infer(model, value(number), request_id=f"{name}/{number}", sequence_id=name, **flags)

    def hear(self) -> tuple[str, int]:
        """Id of the request, and its sum."""
        result, error = self.heard.get(timeout=WAIT_S)
        assert error is None, error
        return result.get_response().id, int(result.as_numpy("sum")[0, 0])


@pytest.fixture
def connect() -> Iterator[Callable[["Process"], Client]]:
    clients: list[Client] = []

    def make(process: "Process") -> Client:
        if not any(line["message"] == "serving" for line in process.lines):
            process.client()
        address = next(line["address"] for line in process.lines if line["message"] == "serving")
        clients.append(Client(int(address.rpartition(":")[2])))
        return clients[-1]

    yield make
    for client in clients:
        client.triton.close()


def gauge(process: "Process", name: str, **labels: str) -> float:
    """The value of a metric; labels that are not given are not looked at."""
    for line in process.metrics().splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{text}"' in line for key, text in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no {name} {labels}")


def wait_gauge(process: "Process", wanted: float, name: str, **labels: str) -> None:
    """Until a metric has a value: facts are waited for, by asking."""
    done = threading.Event()
    for _ in range(600):
        if gauge(process, name, **labels) == wanted:
            return
        done.wait(0.05)
    raise AssertionError(f"{name} {labels} is {gauge(process, name, **labels)}, not {wanted}")


def test_what_is_no_sequence_is_refused_in_tritons_words(process: "Process", connect: Any) -> None:
    client = connect(process)
    code, text = client.refused("sum", 1, 0)
    assert code == "INVALID_ARGUMENT"
    assert "must specify a non-zero or non-empty correlation ID" in text
    code, text = client.refused("sum", 1, 7)
    assert code == "INVALID_ARGUMENT"
    assert text == (
        "inference request for sequence 7 to model 'sum' must specify the START flag on the first request of the "
        "sequence"
    )
    code, text = client.refused("sum", 1, 7, rows=2, sequence_start=True)
    assert code == "INVALID_ARGUMENT"
    assert "must specify batch-size 1 due to requirements of sequence batcher" in text
    code, text = client.refused("sum", 1, "n" * 129, sequence_start=True)
    assert code == "INVALID_ARGUMENT"
    assert "at most 128" in text
    # A request that is refused leaves nothing behind, and one that does not fit leaves its sequence as it was.
    assert client.step("sum", 5, 7, sequence_start=True) == (5, "7")
    assert client.refused("sum", 1, 7, rows=2)[0] == "INVALID_ARGUMENT"
    assert client.step("sum", 6, 7) == (11, "7")
    # Ended, it must be started again; started again, it begins anew.
    assert client.step("sum", 1, 7, sequence_end=True) == (12, "7")
    _, text = client.refused("sum", 1, 7)
    assert "must specify the START flag" in text
    assert "its last request was answered" in text
    assert client.step("sum", 2, 7, sequence_start=True) == (2, "7")
    assert client.step("sum", 3, 7, sequence_start=True, sequence_end=True) == (3, "7")
    assert gauge(process, "sequences_active", model="sum") == 0
    assert gauge(process, "sequence_requests_refused_total", model="sum", reason="not_started") == 2
    assert gauge(process, "sequence_requests_refused_total", model="sum", reason="no_id") == 1
    assert gauge(process, "sequences_ended_total", model="sum", reason="restarted") == 1


def test_sums_of_interleaved_sequences_are_right_unary_and_streamed(process: "Process", connect: Any) -> None:
    names: list[int | str] = [1, 2, (1 << 63) - 1, "1", "a sequence with words"]
    client = connect(process)
    steps = 4

    def expected(number: int, step: int) -> int:
        return sum((number + 1) * 10**each for each in range(step + 1))

    for step in range(steps):
        for number, name in enumerate(names):
            flags = {"sequence_start": step == 0, "sequence_end": step == steps - 1}
            assert client.step("many", (number + 1) * 10**step, name, **flags) == (expected(number, step), str(name))
    # On a stream, all sent before one is answered: answers come in the order of the requests. Ids are used again at
    # once, behind the end of those before.
    client.open_stream()
    for _ in range(2):
        for step in range(steps):
            for number, name in enumerate(names):
                flags = {"sequence_start": step == 0, "sequence_end": step == steps - 1}
                client.send("many", (number + 1) * 10**step, name, **flags)
        for step in range(steps):
            for number, name in enumerate(names):
                assert client.hear() == (f"{name}/{(number + 1) * 10**step}", expected(number, step))
    client.triton.stop_stream()
    wait_gauge(process, 0, "sequences_active", model="many")
    assert gauge(process, "sequences_ended_total", model="many", reason="end") == 3 * len(names)


def test_many_clients_at_once_each_get_their_own_sums(process: "Process", connect: Any) -> None:
    """More sequences than slots, from as many threads: each waits for its slot, and none sees another's state."""
    clients = [connect(process) for _ in range(12)]
    wrong: list[object] = []
    done: list[int] = []

    def work(number: int) -> None:
        client = clients[number]
        for name in (number * 2 + 1, f"s{number}"):
            total = 0
            for step in range(5):
                total += number + step
                got = client.step("few", number + step, name, sequence_start=step == 0, sequence_end=step == 4)
                if got != (total, str(name)):
                    wrong.append((name, step, got, total))
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [*range(len(clients))]
    assert not wrong
    wait_gauge(process, 0, "sequences_active", model="few")
    assert gauge(process, "sequences_ended_total", model="few", reason="end") == 24


def test_an_idle_sequence_frees_its_slot_for_who_waits(process: "Process", connect: Any) -> None:
    client = connect(process)
    assert client.step("brief", 5, 1, sequence_start=True) == (5, "1")
    # The only slot is taken; the next sequence waits until its owner has been idle for too long.
    assert client.step("brief", 7, 2, sequence_start=True) == (7, "2")
    assert gauge(process, "sequences_ended_total", model="brief", reason="idle") == 1
    code, text = client.refused("brief", 6, 1)
    assert code == "INVALID_ARGUMENT"
    assert "it was idle for more than 0.5 s (max_sequence_idle_microseconds)" in text
    wait_gauge(process, 0, "sequences_active", model="brief")  # and nobody need wait for it


def test_a_broken_stream_frees_the_slots_of_its_sequences(process: "Process", connect: Any) -> None:
    client, other = connect(process), connect(process)
    client.open_stream()
    for name in (101, 102, 103):
        client.send("sum", 1, name, sequence_start=True)
        client.hear()
    client.send("sum", 1, 103, sequence_end=True)
    client.hear()
    assert other.step("sum", 1, 101) == (2, "101")  # it comes by another way now, and is not lost with the stream
    wait_gauge(process, 2, "sequences_active", model="sum")
    client.triton.stop_stream(cancel_requests=True)
    wait_gauge(process, 1, "sequences_active", model="sum")
    assert gauge(process, "sequences_ended_total", model="sum", reason="client_left") == 1
    _, text = other.refused("sum", 1, 102)
    assert "the stream broke" in text
    assert other.step("sum", 1, 101, sequence_end=True) == (3, "101")


def test_our_own_client_keeps_a_sequence_on_a_stream(process: "Process", connect: Any) -> None:
    connect(process)
    address = next(line["address"] for line in process.lines if line["message"] == "serving")
    with forwardpass.Client(address) as client:
        with client.sequence("many") as counted, client.sequence("many", "named") as named:
            for step in range(3):
                for sequence in (counted, named):
                    answer = sequence.infer({"x": np.full((1, 1), 10**step, np.int32)}, end=step == 2)
                    assert answer["sum"][0, 0] == sum(10**each for each in range(step + 1))
        with client.sequence("many") as left:
            left.infer({"x": np.ones((1, 1), np.int32)})
        wait_gauge(process, 0, "sequences_active", model="many")  # it did not say that this was its end


def test_a_slot_is_waited_for_until_there_is_no_room_or_no_time(process: "Process", connect: Any) -> None:
    client = connect(process)
    client.step("one", 1, "holder", sequence_start=True)
    code, text = client.refused("one", 1, 2, sequence_start=True, timeout=200_000)
    assert code == "DEADLINE_EXCEEDED"
    assert "waiting for one of the 1 slots of 'one'" in text
    client.open_stream()
    for name in range(1, 21):
        client.send("one", name, name, sequence_start=True, sequence_end=True)
    wait_gauge(process, 20, "sequences_waiting", model="one")
    code, text = client.refused("one", 1, 30, sequence_start=True)
    assert code == "RESOURCE_EXHAUSTED"
    assert "20 requests of sequences that wait for one of 1 slots" in text
    # The one who has the slot is let in, since nobody else can free it; then all have their turn.
    assert client.step("one", 1, "holder", sequence_end=True) == (2, "holder")
    assert [client.hear()[1] for _ in range(20)] == [*range(1, 21)]
    client.triton.stop_stream()


def test_what_clients_read_about_it(process: "Process", connect: Any) -> None:
    client = connect(process)
    assert "sequence" in client.triton.get_server_metadata().extensions
    metadata = client.triton.get_model_metadata("many")
    assert [(each.name, [*each.shape]) for each in metadata.inputs] == [("x", [-1, 1])]
    assert [each.name for each in metadata.outputs] == ["sum", "who"]
    config = client.triton.get_model_config("many").config
    ours = config_pb.ModelConfig.FromString(config.SerializeToString())
    assert [each.name for each in ours.input] == ["x"]
    assert ours.sequence_batching.oldest.max_candidate_sequences == 64
    assert ours.sequence_batching.max_sequence_idle_microseconds == 60_000_000
    assert ours.sequence_batching.state[0].output_name == "sum_out"
    assert not ours.HasField("dynamic_batching")
    assert gauge(process, "sequence_slots", model="many") == 64
    assert gauge(process, "sequence_slots", model="sum") == 8


def test_a_sequence_stays_with_the_version_it_began_on(root: Path, process: "Process", connect: Any) -> None:
    client = connect(process)
    assert client.step("swapped", 1, 1, sequence_start=True)[0] == 1
    assert client.step("swapped", 1, 2, sequence_start=True)[0] == 1
    publish(root, "swapped", scale=100)
    process.wait_for("version draining", model="swapped", version=1)
    assert client.step("swapped", 2, 1)[0] == 3  # version 1
    assert client.step("swapped", 2, 3, sequence_start=True)[0] == 200  # version 2
    assert client.step("swapped", 1, 2, sequence_start=True)[0] == 100  # started again: version 2
    assert client.step("swapped", 1, 2, sequence_end=True)[0] == 200
    assert client.refused("swapped", 1, 2)[0] == "INVALID_ARGUMENT"  # nothing is left of it in version 1
    assert client.step("swapped", 3, 1, sequence_end=True)[0] == 6
    process.wait_for("version unloaded", model="swapped", version=1)
    assert client.refused("swapped", 1, 1)[0] == "INVALID_ARGUMENT"
    # The stop does not wait for sequences whose clients have nothing under way.
    process.terminate()
    assert process.wait() == 0
