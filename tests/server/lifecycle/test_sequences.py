"""`sequence_batching`, from a config.pbtxt to a version that keeps sequences: what is obeyed, and what is refused."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from forwardpass_server.errors import LoadFailed
from forwardpass_server.lifecycle import repository
from forwardpass_server.lifecycle.config_in_force import config_in_force
from forwardpass_server.lifecycle.config_pbtxt import parse
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.loader import Loader, LoadRules
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.repository import GoldenSet, VersionFolder
from forwardpass_server.runtime import control_flow, states
from forwardpass_server.runtime.providers import resolve
from forwardpass_server.runtime.session import Session
from forwardpass_server.runtime.states import StateSpec
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.fake import FakeResponder, make_request
from forwardpass_server.scheduling.runner import Run
from forwardpass_server.scheduling.sequence import Position
from forwardpass_server.scheduling.stateful import ControlKind, States
from forwardpass_server.tensors.signature import Signature

STATE = 'state { input_name: "h0" output_name: "h1" }'


def summing(
    batch: str | int = "batch", width: int | str = 2, control: Sequence[str | int] = ("batch", 1)
) -> onnx.ModelProto:
    """x FP32 [batch, time], h0 FP32 [batch, width], start BOOL [batch, 1] → y = sum of x + h0, h1 = y.

    `start` changes nothing but whether y is negated.
    """
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, "time"]),
        helper.make_tensor_value_info("h0", TensorProto.FLOAT, [batch, width]),
        helper.make_tensor_value_info("start", TensorProto.BOOL, [*control]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name in ("y", "h1")]
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "h0"], ["h1"]),
        helper.make_node("Neg", ["h1"], ["negated"]),
        helper.make_node("Where", ["start", "negated", "h1"], ["y"]),
    ]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    graph = helper.make_graph(nodes, "summing", inputs, outputs, [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


START = 'control_input { name: "start" control { kind: CONTROL_SEQUENCE_START bool_false_true: [ false, true ] } }'


class OnCpu:
    """The real runtime."""

    def __init__(self) -> None:
        self.opened: list[Session] = []

    def try_load(self, path: Path) -> None:
        pass

    def open(self, path: Path, signature: Signature, settings: ModelSettings) -> Session:
        self.opened.append(Session(path, signature, resolve("cpu"), settings.session))
        return self.opened[-1]

    def keep_states(
        self,
        session: Any,
        settings: ModelSettings,
        specs: Sequence[StateSpec],
        *,
        rows: int,
        outputs: Collection[int],
        batched: bool,
    ) -> tuple[Run, States]:
        return states.beside(session, resolve("cpu"), specs, rows=rows, outputs=outputs, batched=batched)

    def has_control_flow(self, path: Path) -> bool:
        return control_flow.has_control_flow(path)


class Loading:
    """Loads versions of a model with a configuration."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo
        self.runtime = OnCpu()
        self.loop = InlineLoop()
        self.loaded: list[LoadedVersion] = []

    def load(
        self, config: str, model: onnx.ModelProto | VersionFolder | None = None, processes: int = 1
    ) -> LoadedVersion:
        folder = (
            model if isinstance(model, VersionFolder) else self.repo.bare("m", len(self.loaded) + 1, model or summing())
        )
        rules = LoadRules(root=self.repo.root, max_batch_size=8, processes=processes)
        loader = Loader(rules, self.runtime, self.loop)
        self.loaded.append(loader(folder, parse(config, model="m"), lambda _state: None))
        return self.loaded[-1]

    def refused(self, config: str, model: onnx.ModelProto | None = None, **more: Any) -> str:
        with pytest.raises(LoadFailed) as caught:
            self.load(config, model, **more)
        return str(caught.value)

    def step(self, version: LoadedVersion, x: Sequence[float], *, starts: bool = False) -> list[Any]:
        """The outputs of one step of sequence 1."""
        wanted = tuple(range(len(version.signature.outputs)))
        request, responder = make_request([np.array([x], np.float32)], outputs=wanted)
        request.position = Position(1, starts)
        version.scheduler.submit(request)
        while self.loop.run_ready():
            pass
        return outputs_of(responder)


def outputs_of(responder: FakeResponder) -> list[Any]:
    responder.wait()
    assert responder.error is None, responder.error
    assert responder.outputs is not None
    return [output.tolist() for output in responder.outputs]


@pytest.fixture
def loading(repo: Any) -> Iterator[Loading]:
    it = Loading(repo)
    yield it
    for version in it.loaded:
        assert version.close(10)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("iterative_sequence: true", "sequence_batching.iterative_sequence is not supported"),
        ("oldest { preserve_ordering: true }", "sequence_batching.oldest.preserve_ordering is not supported"),
        ("oldest { max_candidate_sequences: -1 }", "sequence_batching.oldest.max_candidate_sequences is -1"),
        ("oldest { max_candidate_sequences: 70000 }", "it must be 1 to 65536"),
        ("direct { minimum_slot_utilization: 1.5 }", "sequence_batching.direct.minimum_slot_utilization is 1.5"),
        ('state { output_name: "h1" }', "sequence_batching.state[0].input_name is missing"),
        ('state { input_name: "h0" }', "sequence_batching.state[0].output_name is missing"),
        ('state { input_name: "h0" output_name: "h1" dims: [ -1 ] }', "sequence_batching.state[0].dims is [-1]"),
        ('state { input_name: "h0" output_name: "h1" data_type: TYPE_STRING }', "states are numbers"),
        (
            'state { input_name: "h0" output_name: "h1" initial_state { zero_data: true } initial_state { } }',
            "sequence_batching.state[0].initial_state is there 2 times",
        ),
        (
            'state { input_name: "h0" output_name: "h1" initial_state { name: "n" } }',
            "sequence_batching.state[0].initial_state[0] needs one of zero_data, data_file",
        ),
        (
            'state { input_name: "h0" output_name: "h1" data_type: TYPE_FP32 '
            "initial_state { data_type: TYPE_INT32 zero_data: true } }",
            "sequence_batching.state[0].initial_state[0].data_type is INT32",
        ),
        (
            'state { input_name: "h0" output_name: "h1" dims: [ 2 ] initial_state { dims: [ 3 ] zero_data: true } }',
            "sequence_batching.state[0].initial_state[0].dims is [3]",
        ),
        (
            'state { input_name: "h0" output_name: "h1" use_growable_memory: true }',
            "sequence_batching.state[0].use_growable_memory is not supported",
        ),
        ("control_input { control { } }", "sequence_batching.control_input[0].name is missing"),
        ('control_input { name: "c" }', "sequence_batching.control_input[0].control is there 0 times"),
        (
            'control_input { name: "c" control { kind: CONTROL_SEQUENCE_END } }',
            "sequence_batching.control_input[0].control[0] (CONTROL_SEQUENCE_END) needs exactly one of",
        ),
        (
            'control_input { name: "c" control { int32_false_true: [ 0 ] } }',
            "sequence_batching.control_input[0].control[0].int32_false_true is [0]",
        ),
        (
            'control_input { name: "c" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } }',
            "sequence_batching.control_input[0].control[0].data_type is FP32",
        ),
        (
            'control_input { name: "c" control { kind: CONTROL_SEQUENCE_CORRID fp32_false_true: [ 0, 1 ] } }',
            "fp32_false_true: a correlation id is given by data_type",
        ),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_its_field(text: str, part: str) -> None:
    with pytest.raises(UnsupportedConfig) as refused:
        parse(f"sequence_batching {{ {text} }}", model="m")
    assert part in str(refused.value)
    assert str(refused.value).startswith("config.pbtxt: ")


def test_answers_of_sequences_are_not_cached() -> None:
    with pytest.raises(UnsupportedConfig, match=r"response_cache\.enable with sequence_batching"):
        parse(f"response_cache {{ enable: true }} sequence_batching {{ {STATE} }}", model="m")


def test_what_is_obeyed_is_read() -> None:
    settings = parse(
        """
        max_batch_size: 4
        sequence_batching {
          max_sequence_idle_microseconds: 5000000
          direct { max_queue_delay_microseconds: 2000 minimum_slot_utilization: 0.5 }
          state { input_name: "a" output_name: "b" use_same_buffer_for_input_output: true }
          control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ -1, 2 ] } }
        }
        """,
        model="m",
    )
    sequences = settings.sequences
    assert sequences is not None
    assert sequences.idle_s == 5.0
    assert sequences.slots(4, instances=2) == 8
    assert (settings.max_queue_delay_s, sequences.enough_rows(4)) == (0.002, 2)
    (control,) = sequences.controls
    assert (control.kind, control.false, control.true) == (ControlKind.END, -1.0, 2.0)
    assert settings.hints == ("sequence_batching.state[0].use_same_buffer_for_input_output",)
    # Triton waits for nobody in `direct` unless a utilization is asked for, and lets a sequence idle for a second.
    without = parse("sequence_batching { direct { max_queue_delay_microseconds: 2000 } }", model="m")
    assert without.max_queue_delay_s == 0
    assert without.sequences is not None
    assert without.sequences.idle_s == 1.0


@pytest.mark.parametrize(
    ("batching", "part"),
    [
        ('state { input_name: "hx" output_name: "h1" }', "sequence_batching.state[0] is 'hx'; the model has"),
        ('state { input_name: "h0" output_name: "hx" }', "sequence_batching.state[0] is 'hx'; the model has 'y', 'h1'"),
        (f'{STATE} state {{ input_name: "h0" output_name: "y" }}', "which is there twice"),
        (
            'state { input_name: "h0" output_name: "h1" data_type: TYPE_INT32 }',
            "sequence_batching.state[0] ('h0') says TYPE_INT32; the model has FP32",
        ),
        (
            f'{STATE} control_input {{ name: "h0" control {{ fp32_false_true: [ 0, 1 ] }} }}',
            "sequence_batching.control_input[0].name is 'h0', and so is sequence_batching.state[0].input_name",
        ),
        (
            f'{STATE} control_input {{ name: "start" control {{ int32_false_true: [ 0, 1 ] }} }}',
            "sequence_batching.control_input[0] ('start') is INT32 by its control; the model has BOOL",
        ),
        (
            f'{STATE} control_input {{ name: "end" control {{ int32_false_true: [ 0, 1 ] }} }}',
            "sequence_batching.control_input[0].name is 'end'; the inputs of the model are 'x', 'h0', 'start'",
        ),
        (
            f'{STATE} {START} control_input {{ name: "x" control {{ fp32_false_true: [ 0, 1 ] }} }}',
            "sequence_batching: no input is left for callers",
        ),
        (
            f"{START} " + STATE.replace("}", 'initial_state { data_file: "none" } }'),
            "sequence_batching.state[0].initial_state[0].data_file: 'none' cannot be read",
        ),
    ],
)
def test_what_the_graph_does_not_have_is_refused_by_its_field(loading: Loading, batching: str, part: str) -> None:
    assert part in loading.refused(f"sequence_batching {{ {batching} }}")
    assert all(session._handle is None for session in loading.runtime.opened), "a session was left open"


def test_an_input_has_one_master(loading: Loading) -> None:
    config = f'max_batch_size: 4 input {{ name: "h0" dims: [ 2 ] }} sequence_batching {{ {STATE} {START} }}'
    assert "state[0].input_name is 'h0', and so is input[0]" in loading.refused(config)


def test_a_control_is_one_value_a_row(loading: Loading) -> None:
    refused = loading.refused(f"sequence_batching {{ {STATE} {START} }}", summing(control=("batch", 2)))
    assert "sequence_batching.control_input[0] ('start') has shape [batch, 2]" in refused


def test_several_processes_cannot_keep_sequences(loading: Loading) -> None:
    assert "sequence_batching needs --processes=1, got 2" in loading.refused(
        f"sequence_batching {{ {STATE} {START} }}", processes=2
    )


def test_dims_and_datatypes_come_from_the_graph(loading: Loading) -> None:
    version = loading.load(f"sequence_batching {{ {STATE} {START} }}")
    assert [spec.name for spec in version.signature.inputs] == ["x"]
    assert [spec.name for spec in version.signature.outputs] == ["y"]
    assert version.signature.max_batch_size == 8
    assert loading.step(version, [1, 2], starts=True) == [[[-3, -3]]]
    assert loading.step(version, [1]) == [[[4, 4]]]
    assert loading.step(version, [5], starts=True) == [[[-5, -5]]]
    config = config_in_force(version)
    assert config.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    assert config.sequence_batching.WhichOneof("strategy_choice") == "direct"
    assert [each.name for each in config.input] == ["x"]
    assert version.sequences is not None
    assert version.sequences.slots == 8


def test_open_dims_must_be_said(loading: Loading) -> None:
    open_ended = summing(width="width")
    assert "sequence_batching.state[0].dims is missing" in loading.refused(
        f"max_batch_size: 8 sequence_batching {{ {STATE} {START} }}", open_ended
    )
    said = STATE.replace("}", "dims: [ 3 ] }")
    version = loading.load(f"max_batch_size: 8 sequence_batching {{ {said} {START} }}", open_ended)
    assert loading.step(version, [1], starts=True) == [[[-1, -1, -1]]]


def test_a_state_that_is_listed_as_output_is_answered_too(loading: Loading) -> None:
    version = loading.load(
        f'max_batch_size: 8 output {{ name: "h1" dims: [ 2 ] }} sequence_batching {{ {STATE} {START} }}'
    )
    assert [spec.name for spec in version.signature.outputs] == ["h1"]
    assert loading.step(version, [1], starts=True) == [[[1, 1]]]
    assert loading.step(version, [1]) == [[[2, 2]]]


def test_a_model_without_batches_runs_one_sequence_at_a_time(loading: Loading) -> None:
    said = STATE.replace("}", "dims: [ 1, 2 ] }")
    model = summing(batch=1, control=(1, 1))
    version = loading.load(f"max_batch_size: 0 sequence_batching {{ {said} {START} }}", model)
    assert version.sequences is not None
    assert version.sequences.slots == 1
    assert loading.step(version, [1], starts=True) == [[[-1, -1]]]
    assert loading.step(version, [2]) == [[[3, 3]]]


def test_what_a_sequence_begins_with_comes_from_a_file(loading: Loading) -> None:
    folder = loading.repo.root / "m" / "initial_state"
    folder.mkdir(parents=True)
    config = f"sequence_batching {{ {START} " + STATE.replace("}", 'initial_state { data_file: "h" } }') + " }"
    (folder / "h").write_bytes(np.array([10, 20], np.float32).tobytes())
    version = loading.load(config)
    for _ in range(2):
        assert loading.step(version, [1], starts=True) == [[[-11, -21]]]
        assert loading.step(version, [1]) == [[[12, 22]]]
    (folder / "h").write_bytes(b"short")
    assert "has 5 bytes; a state of shape [2] has 8" in loading.refused(config)
    (folder / "h").unlink()
    (folder / "h").symlink_to("/etc/hostname")
    assert "sequence_batching.state[0].initial_state[0].data_file: 'h' cannot be read" in loading.refused(config)


def publish(root: Path, recorded: float) -> VersionFolder:
    """A version with one golden example, of the whole graph: states and controls among its inputs."""

    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(summing().SerializeToString())
        example = folder / "test_data_set_0"
        example.mkdir()
        x, h0 = np.ones((2, 3), np.float32), np.full((2, 2), 4, np.float32)
        for index, (name, array) in enumerate([("x", x), ("h0", h0), ("start", np.zeros((2, 1), np.bool_))]):
            (example / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
        for index, name in enumerate(("y", "h1")):
            answer = numpy_helper.from_array(np.full((2, 2), recorded, np.float32), name)
            (example / f"output_{index}.pb").write_bytes(answer.SerializeToString())
        return {"golden": [GoldenSet(folder="test_data_set_0", atol=1e-5, rtol=0.0)]}

    return repository.publish(root, "m", build)


def test_it_is_proved_by_examples_of_its_whole_graph(loading: Loading) -> None:
    config = f"sequence_batching {{ {STATE} {START} }}"
    version = loading.load(config, publish(loading.repo.root, recorded=7))
    assert version.proved
    assert loading.step(version, [1], starts=True) == [[[-1, -1]]], "what proved it left its traces"
    with pytest.raises(LoadFailed, match="golden example"):
        loading.load(config, publish(loading.repo.root, recorded=8))


def test_warm_up_requests_are_those_of_callers(loading: Loading) -> None:
    warmup = 'model_warmup { name: "w" batch_size: 3 inputs { key: "x" value { dims: [ 5 ] zero_data: true } } }'
    version = loading.load(f"max_batch_size: 8 {warmup} sequence_batching {{ {STATE} {START} }}")
    assert loading.step(version, [1], starts=True) == [[[-1, -1]]]
    refused = loading.refused(
        f"max_batch_size: 8 {warmup.replace('x', 'h0', 1)} sequence_batching {{ {STATE} {START} }}"
    )
    assert "model_warmup[0].inputs[h0]: the model has 'x'" in refused


def test_hundreds_of_slots_are_one_setting(loading: Loading) -> None:
    version = loading.load(f"sequence_batching {{ oldest {{ max_candidate_sequences: 300 }} {STATE} {START} }}")
    assert version.sequences is not None
    assert version.sequences.slots == 300
    assert config_in_force(version).sequence_batching.oldest.max_candidate_sequences == 300
