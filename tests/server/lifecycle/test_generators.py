"""Loading a generator: with the real ONNX Runtime, from files that are right and files that are not."""

import json
from collections.abc import Callable, Iterator
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
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.lifecycle.repository import GoldenSet, VersionFolder
from forwardpass_server.lifecycle.states import State
from forwardpass_server.runtime import control_flow
from forwardpass_server.runtime.fake_generator import INPUTS, FakeGeneratorRun, fake_generator, graph
from forwardpass_server.runtime.providers import resolve
from forwardpass_server.runtime.session import Session
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.generation import GenerationScheduler
from forwardpass_server.tensors.signature import Signature

GENERATION = "forwardpass.generation"


class Runtime:
    """The real one, without the trial in a child process; remembers its sessions."""

    def __init__(self) -> None:
        self.opened: list[Session] = []

    def try_load(self, path: Path) -> None:
        """Tried elsewhere."""

    def open(self, path: Path, signature: Signature, settings: ModelSettings) -> Session:
        self.opened.append(Session(path, signature, resolve("cpu"), settings.session))
        return self.opened[-1]

    def has_control_flow(self, path: Path) -> bool:
        return control_flow.has_control_flow(path)


class Loading:
    """Loads versions of one repository, and closes them."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        self.rules = LoadRules(root=root, scratch=scratch, max_batch_size=4, max_requests=50)
        self.runtime = Runtime()
        self.stages: list[State] = []
        self.loaded: list[LoadedVersion] = []

    def load(self, model: onnx.ModelProto | VersionFolder, config: str = "") -> LoadedVersion:
        folder = model
        if isinstance(folder, onnx.ModelProto):
            path = self.root / "bard" / "1" / "model.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(folder.SerializeToString())
            folder = repository.read_version("bard", 1, path.parent)
        settings = parse(config, model="bard") if config else ModelSettings()
        self.stages = []
        load = Loader(self.rules, self.runtime, InlineLoop())  # type: ignore[arg-type]
        self.loaded.append(load(folder, settings, self.stages.append))
        return self.loaded[-1]

    def refused(self, model: onnx.ModelProto | VersionFolder, config: str = "") -> str:
        with pytest.raises(LoadFailed) as caught:
            self.load(model, config)
        assert all(session._handle is None for session in self.runtime.opened), "a session was left open"
        return str(caught.value)


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[Loading]:
    (tmp_path / "repository").mkdir()
    (tmp_path / "scratch").mkdir()
    made = Loading(tmp_path / "repository", tmp_path / "scratch")
    yield made
    for version in made.loaded:
        assert version.close(10)


def published(root: Path, *, wrong: bool = False) -> VersionFolder:
    """With one golden example of two texts, one of which reads its prompt; `wrong`: of another model."""
    run = FakeGeneratorRun(fake_generator())
    forced = np.full((2, 6), -1)
    forced[1, :3] = [4, 5, 6]
    inputs: list[np.ndarray | None] = [
        np.array([[0], [3]]),
        forced,
        np.random.default_rng(0).random((2, 6), np.float32),
        np.ones((2, 1), np.float32),
        np.array([[0], [5]]),
        np.ones((2, 1), np.float32),
        np.zeros((2, 1), np.float32),
    ]
    tokens, state = run(inputs, [0, 1])

    def build(folder: Path) -> repository.Contents:
        (folder / "model.onnx").write_bytes(graph().SerializeToString())
        example = folder / "test_data_set_0"
        example.mkdir()
        for number, (spec, array) in enumerate(zip(INPUTS, inputs, strict=True)):
            assert array is not None
            (example / f"input_{number}.pb").write_bytes(numpy_helper.from_array(array, spec.name).SerializeToString())
        for number, (name, array) in enumerate((("tokens", tokens + wrong), ("s1", state))):
            (example / f"output_{number}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
        return {"golden": [GoldenSet(folder="test_data_set_0", atol=0.0, rtol=0.0)]}

    return repository.publish(root, "bard", build)


def stating(**changes: Any) -> onnx.ModelProto:
    """A file whose metadata say something else."""
    model = graph()
    for prop in model.metadata_props:
        if prop.key == GENERATION:
            prop.value = json.dumps(json.loads(prop.value) | changes)
    return model


def changed(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    model = graph()
    change(model)
    return model


def with_prop(key: str, value: str | None) -> onnx.ModelProto:
    model = graph()
    (prop,) = [each for each in model.metadata_props if each.key == key]
    if value is None:
        model.metadata_props.remove(prop)
    else:
        prop.value = value
    return model


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mood", TensorProto.FLOAT, ["batch", 1]))


def another_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("k", TensorProto.INT64, ["batch", 1]))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (with_prop(GENERATION, None), "the metadata have no forwardpass.generation"),
        (with_prop(GENERATION, "{"), "is no JSON"),
        (with_prop(GENERATION, "[" * 100_000), "is no JSON"),
        (with_prop(GENERATION, "[1]"), "is an object with format 1"),
        (stating(format=2), "is an object with format 1"),
        (stating(vocabulary="abc"), "vocabulary is a list of strings"),
        (stating(vocabulary=["a", 1]), "vocabulary is a list of strings"),
        (stating(vocabulary=["", ""]), "not all of them empty"),
        (stating(vocabulary=["a", "\ud800"]), "UTF-8 cannot carry"),
        (stating(steps_max=0), "steps_max is an integer from 1 to 1024, got 0"),
        (stating(steps_max=None), "steps_max is an integer"),
        (stating(replacement=29), "replacement is an integer from 0 to 28, got 29"),
        (stating(replacement=True), "replacement is an integer"),
        (stating(states="s0"), "states is a list of"),
        (stating(states=[{"input": "s9", "output": "s1"}]), "there is no state 's9' → 's1'"),
        (stating(states=[{"input": "token", "output": "s1"}]), "there is no state 'token' → 's1'"),
        (stating(states=[]), "neither known nor a state 's0'"),
        (stating(states=[{"input": "s0", "output": "tokens"}]), "output 'tokens' is FP32"),
        (stating(vocabulary=["a"]), "wrote tokens outside of its vocabulary of 1"),
        (changed(another_input), "neither known nor a state 'mood'"),
        (changed(another_output), "outputs are 'tokens' and each state once"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_says_it_is_a_generator_and_is_none_is_refused(
    loading: Loading, model: onnx.ModelProto, words: str
) -> None:
    assert words in loading.refused(model)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("dynamic_batching { }", "dynamic_batching is set, and the model is a generator"),
        ("response_cache { enable: true }", "response_cache is set"),
        ("instance_group { count: 2 }", "2 instances; a generator has one"),
        ('input { name: "token" data_type: TYPE_INT64 dims: [ 1 ] }', "input of a generator is 'prompt', BYTES"),
        ('input { name: "prompt" data_type: TYPE_STRING dims: [ 2 ] }', "input of a generator is 'prompt'"),
        ('output { name: "text" data_type: TYPE_FP32 dims: [ 1 ] }', "output of a generator is 'text'"),
    ],
)
def test_a_configuration_for_other_models_is_refused_by_its_field(loading: Loading, config: str, words: str) -> None:
    assert words in loading.refused(graph(), config)


def test_only_generators_are_decoupled(loading: Loading) -> None:
    x = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    plain = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "plain", x[:1], x[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    assert "decoupled is true, and the model is no generator" in loading.refused(
        plain, "model_transaction_policy { decoupled: true }"
    )
    loading.load(plain, "model_transaction_policy { decoupled: false }")


def test_a_wrong_golden_example_ends_the_load(loading: Loading) -> None:
    assert "golden example 'test_data_set_0', output 'tokens'" in loading.refused(published(loading.root, wrong=True))
    assert loading.stages == [State.VERIFYING, State.LOADING, State.WARMING, State.PROVING]


def test_a_generator_is_warmed_proved_and_shown_as_prompt_and_text(loading: Loading) -> None:
    version = loading.load(
        published(loading.root),
        'max_batch_size: 6 model_transaction_policy { decoupled: true } input { name: "prompt" data_type: TYPE_STRING '
        'dims: [ 1 ] } output { name: "text" }',
    )
    assert loading.stages == [State.VERIFYING, State.LOADING, State.WARMING, State.PROVING]
    assert isinstance(version.scheduler, GenerationScheduler)
    assert (version.proved, version.scheduler.slots, version.scheduler.max_texts) == (True, 6, 50)
    assert [spec.name for spec in version.signature.inputs] == ["prompt"]
    assert [spec.name for spec in version.signature.outputs] == ["text"]
    assert version.properties["forwardpass.slots"] == "6"
    assert version.properties["forwardpass.batched"] == "true"
    assert json.loads(version.properties[GENERATION])["steps_max"] == 32
    config = config_in_force(version)
    assert (config.model_transaction_policy.decoupled, config.max_batch_size) == (True, 0)
    assert [(each.name, [*each.dims]) for each in config.input] == [("prompt", [1])]
    assert version.scheduler.seconds_per_row > 0


def test_without_a_configuration_it_has_the_servers_batch_size(loading: Loading) -> None:
    version = loading.load(graph())
    assert isinstance(version.scheduler, GenerationScheduler)
    assert version.scheduler.slots == 4
    assert not version.proved


def test_texts_that_depend_on_what_is_beside_them_are_written_one_by_one(loading: Loading) -> None:
    """The first state of the whole batch is added to every row's."""
    model = graph()
    model.graph.node.insert(0, helper.make_node("ReduceSum", ["token"], ["all"], keepdims=1))
    model.graph.node.insert(1, helper.make_node("Cast", ["all"], ["all_f"], to=TensorProto.FLOAT))
    model.graph.node.insert(2, helper.make_node("Add", ["s0", "all_f"], ["s0_mixed"]))
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    scan.input[1] = "s0_mixed"
    version = loading.load(model)
    assert isinstance(version.scheduler, GenerationScheduler)
    assert version.scheduler.slots == 1
    assert "depends on the other rows" in version.properties["forwardpass.batched"]


def test_no_more_texts_than_their_states_may_take(loading: Loading) -> None:
    row_bytes = fake_generator().row_bytes
    assert row_bytes == 12
    loading.rules = type(loading.rules)(root=loading.root, scratch=loading.rules.scratch, max_queue_bytes=row_bytes * 7)
    version = loading.load(graph())
    assert isinstance(version.scheduler, GenerationScheduler)
    assert version.scheduler.max_texts == 7
