"""One load, stage by stage: with the real ONNX Runtime on tiny models, and with a fake where a fault is wanted."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from forwardpass_server.errors import LoadFailed, RunFailed
from forwardpass_server.lifecycle import loader
from forwardpass_server.lifecycle.config_pbtxt import parse
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.loader import CERTAIN, Loader, LoadRules
from forwardpass_server.lifecycle.model_settings import ModelSettings
from forwardpass_server.lifecycle.repository import VersionFolder
from forwardpass_server.lifecycle.states import State
from forwardpass_server.runtime import control_flow
from forwardpass_server.runtime.fake import FakeSession
from forwardpass_server.runtime.providers import resolve
from forwardpass_server.runtime.session import Session
from forwardpass_server.scheduling.cost import Cost, CostCurve
from forwardpass_server.scheduling.executor import InlineLoop
from forwardpass_server.scheduling.fake import make_request
from forwardpass_server.tensors.signature import Signature

STAGES = [State.VERIFYING, State.LOADING, State.WARMING, State.PROVING]


class OnCpu:
    """The real runtime, that remembers the sessions it opened; a trial load is only noted."""

    def __init__(self) -> None:
        self.tried: list[Path] = []
        self.opened: list[Any] = []
        self.trial: LoadFailed | None = None

    def try_load(self, path: Path) -> None:
        self.tried.append(path)
        if self.trial:
            raise self.trial

    def open(self, path: Path, signature: Signature, settings: ModelSettings) -> Any:
        self.opened.append(Session(path, signature, resolve("cpu"), settings.session))
        return self.opened[-1]

    def has_control_flow(self, path: Path) -> bool:
        return control_flow.has_control_flow(path)


class OnFake(OnCpu):
    """Sessions that a test programmes."""

    def __init__(self, session: FakeSession) -> None:
        super().__init__()
        self.session = session

    def open(self, path: Path, signature: Signature, settings: ModelSettings) -> Any:
        self.opened.append(self.session)
        return self.session


class Loading:
    """Loads versions of one repository, and closes them."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.rules = LoadRules(root=root, scratch=scratch, max_batch_size=8)
        self.runtime: OnCpu = OnCpu()
        self.inline = InlineLoop()
        self.stages: list[State] = []
        self.loaded: list[LoadedVersion] = []

    def load(self, folder: VersionFolder, config: str | None = None) -> LoadedVersion:
        settings = ModelSettings() if config is None else parse(config, model=folder.model)
        self.stages = []
        self.loaded.append(Loader(self.rules, self.runtime, self.inline)(folder, settings, self.stages.append))
        return self.loaded[-1]

    def refused(self, folder: VersionFolder, config: str | None = None) -> str:
        with pytest.raises(LoadFailed) as caught:
            self.load(folder, config)
        return str(caught.value)


@pytest.fixture
def loading(repo: Any, tmp_path: Path) -> Iterator[Loading]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    it = Loading(repo.root, scratch)
    yield it
    for version in it.loaded:
        assert version.close(10)
    assert list(scratch.iterdir()) == [], "a private copy was left behind"


def test_a_published_version_is_loaded_warmed_and_proved(loading: Loading, repo: Any) -> None:
    folder = repo.published()
    version = loading.load(folder)
    assert loading.stages == STAGES
    assert (version.model, version.number, version.proved) == ("m", 1, True)
    assert version.signature.max_batch_size == 8
    assert version.provider == "CPUExecutionProvider"
    assert version.sha256 == folder.manifest.files["model.onnx"].sha256
    assert version.properties["forwardpass.proved"] == "true"
    assert loading.runtime.tried == [], "what we published ourselves needs no trial"


def test_a_version_without_manifest_is_tried_in_a_child_first_and_is_unproved(loading: Loading, repo: Any) -> None:
    version = loading.load(repo.bare())
    assert len(loading.runtime.tried) == 1
    assert loading.runtime.tried[0].name == "model.onnx"
    assert not loading.runtime.tried[0].is_relative_to(repo.root), "the trial loads the private copy"
    assert (version.proved, version.properties["forwardpass.proved"]) == (False, "false")


def test_a_version_that_fails_its_trial_is_not_opened_here(loading: Loading, repo: Any) -> None:
    loading.runtime.trial = LoadFailed("model.onnx crashes the loader (SIGSEGV in a trial process)")
    assert "SIGSEGV" in loading.refused(repo.bare())
    assert loading.runtime.opened == []
    assert loading.stages == [State.VERIFYING]


def test_a_required_manifest_is_asked_for_before_anything_is_read(loading: Loading, repo: Any) -> None:
    loading.rules = dataclasses.replace(loading.rules, require_manifest=True)
    assert "--require-manifest" in loading.refused(repo.bare())
    assert loading.runtime.tried == []
    loading.load(repo.published())


def test_a_wrong_answer_ends_in_proving_and_closes_the_session(loading: Loading, repo: Any) -> None:
    assert "max error 6" in loading.refused(repo.published(factor=2.0, recorded=3.0))
    assert loading.stages == STAGES
    assert loading.runtime.opened[0]._handle is None


def test_an_answer_within_its_tolerance_passes(loading: Loading, repo: Any) -> None:
    assert loading.load(repo.published(factor=2.0, recorded=2.001, atol=0.01)).proved


def test_a_file_that_is_not_the_manifests_ends_in_verifying(loading: Loading, repo: Any) -> None:
    folder = repo.published()
    (folder.path / "model.onnx").write_bytes(b"other")
    assert "differs from manifest.json" in loading.refused(folder)
    assert loading.stages == [State.VERIFYING]


def test_a_graph_that_onnx_runtime_refuses_ends_in_loading_without_our_paths(
    loading: Loading, repo: Any, scaled_model: Callable[[float], onnx.ModelProto], tmp_path: Path
) -> None:
    model = scaled_model(2.0)
    model.graph.node[0].op_type = "NoSuchOperator"
    reason = loading.refused(repo.bare(content=model))
    assert "NoSuchOperator" in reason
    assert str(tmp_path) not in reason
    assert loading.stages == [State.VERIFYING, State.LOADING]


def test_an_operator_that_fails_at_every_run_ends_in_warming_or_proving(loading: Loading, repo: Any) -> None:
    session = FakeSession(error=RunFailed("the device died"), poison=1.0)
    loading.runtime = OnFake(session)
    assert "the model does not run: the device died" in loading.refused(repo.published())
    assert session.closed


def test_a_model_whose_rows_influence_each_other_is_not_batched(loading: Loading, repo: Any) -> None:
    mean = FakeSession(lambda inputs: [inputs[0] - np.mean(inputs[0], axis=0, keepdims=True)])  # type: ignore[arg-type]
    loading.runtime = OnFake(mean)
    version = loading.load(repo.bare())
    assert version.signature.max_batch_size == 0


def test_a_configured_batch_size_is_kept_but_such_rows_still_run_alone(loading: Loading, repo: Any) -> None:
    mean = FakeSession(lambda inputs: [inputs[0] - np.mean(inputs[0], axis=0, keepdims=True)])  # type: ignore[arg-type]
    loading.runtime = OnFake(mean)
    version = loading.load(repo.bare(), "max_batch_size: 4")
    assert version.signature.max_batch_size == 4
    assert version.scheduler._queue.limits.max_rows == 0


@pytest.mark.parametrize(("config", "size"), [(None, 8), ("", 8), ("max_batch_size: 4", 4), ("max_batch_size: 0", 0)])
def test_the_batch_size_is_the_configured_one_or_the_servers(
    loading: Loading, repo: Any, config: str | None, size: int
) -> None:
    version = loading.load(repo.published(), config)
    assert version.signature.max_batch_size == size
    assert version.scheduler._queue.limits.max_rows == size


def test_every_batch_size_that_will_be_served_is_run_before_it_serves(loading: Loading, repo: Any) -> None:
    session = FakeSession()
    loading.runtime = OnFake(session)
    loading.load(repo.bare())
    assert {1, 2, 4, 8} <= {run.rows for run in session.runs}


def test_a_fast_model_runs_on_the_loop_and_one_with_instances_or_a_delay_does_not(loading: Loading, repo: Any) -> None:
    folder = repo.published()
    threads = [
        loading.load(folder, "instance_group { count: 2 }"),
        loading.load(folder, "dynamic_batching { max_queue_delay_microseconds: 100 }"),
    ]
    for version in threads:
        assert type(version.scheduler._executor).__name__ == "ThreadExecutor"


def test_limits_come_from_the_configuration_or_the_server(loading: Loading, repo: Any) -> None:
    folder = repo.published()
    default = loading.load(folder).scheduler._queue.limits
    assert (default.max_requests, default.max_bytes) == (loading.rules.max_requests, loading.rules.max_queue_bytes)
    text = "dynamic_batching { max_queue_delay_microseconds: 300 default_queue_policy { max_queue_size: 5 } }"
    configured = loading.load(folder, text).scheduler._queue.limits
    assert configured.max_requests == 5
    assert configured.max_delay_s == pytest.approx(300e-6)


def test_a_stop_between_two_stages_leaves_nothing_behind(loading: Loading, repo: Any) -> None:
    class Stopped(LoadFailed):
        pass

    def enter(state: State) -> None:
        if state is State.PROVING:
            raise Stopped("the server stops")

    with pytest.raises(Stopped):
        Loader(loading.rules, loading.runtime, loading.inline)(repo.published(), ModelSettings(), enter)
    assert loading.runtime.opened[0]._handle is None


def test_the_metadata_of_the_file_is_among_the_properties(
    loading: Loading, repo: Any, scaled_model: Callable[[float], onnx.ModelProto]
) -> None:
    model = scaled_model(2.0)
    model.metadata_props.add(key="forwardpass.labels", value='["zero", "one"]')
    assert loading.load(repo.bare(content=model)).properties["forwardpass.labels"] == '["zero", "one"]'


def test_outputs_that_the_configuration_leaves_out_are_not_served(
    loading: Loading, repo: Any, scaled_model: Callable[[float], onnx.ModelProto]
) -> None:
    model = scaled_model(2.0)
    model.graph.node.append(onnx.helper.make_node("Neg", ["x"], ["first"]))
    negative = onnx.helper.make_tensor_value_info("first", onnx.TensorProto.FLOAT, ["batch", 3])
    model.graph.output.insert(0, negative)
    version = loading.load(repo.bare(content=model), 'output { name: "y" } instance_group { count: 2 }')
    assert [spec.name for spec in version.signature.outputs] == ["y"]
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(asked(version, x), 2 * x)


def asked(version: LoadedVersion, x: np.ndarray) -> np.ndarray:
    """The first output of a version whose instances have threads."""
    request, caller = make_request([x])
    version.scheduler.submit(request)
    assert caller.wait().outputs
    assert caller.outputs is not None
    return caller.outputs[0]


def quantised(tmp_path: Path) -> onnx.ModelProto:
    """A perceptron whose weights and activations are 8 bits wide, scaled over the whole batch as it comes."""
    rng = np.random.default_rng(0)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 16])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(rng.normal(size=(16, 4)).astype("f4"), "w")],
    )
    path = tmp_path / "float.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    quantize_dynamic(path, tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    return onnx.load(tmp_path / "int8.onnx")


def test_a_model_whose_rows_depend_on_each_other_runs_them_alone_and_says_so(
    loading: Loading, repo: Any, tmp_path: Path
) -> None:
    version = loading.load(repo.bare(content=quantised(tmp_path)), "max_batch_size: 8")
    assert version.scheduler.limits.max_rows == 0
    says = "false: output 'y' of a row depends on the other rows in its batch"
    assert version.properties["forwardpass.batched"] == says


def test_it_is_batched_where_its_configuration_allows_that(loading: Loading, repo: Any, tmp_path: Path) -> None:
    config = 'max_batch_size: 8 parameters { key: "allow_batch_dependent_answers" value { string_value: "true" } }'
    version = loading.load(repo.bare(content=quantised(tmp_path)), config)
    assert version.scheduler.limits.max_rows > 0
    assert version.properties["forwardpass.batched"] == "true"


def test_a_model_that_gains_nothing_from_batches_gets_none(
    loading: Loading, repo: Any, scaled_model: Callable[[float], onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = CostCurve(tuple(Cost(rows, rows * 0.03, rows * 0.03) for rows in (1, 2, 4, 8)))
    monkeypatch.setattr(loader, "warm", lambda *_, **__: linear)
    version = loading.load(repo.bare(content=scaled_model(2.0)))
    assert version.signature.max_batch_size == 8
    assert version.scheduler.limits.max_rows == 1
    assert version.scheduler.limits.shortest_run_s == pytest.approx(0.03 * CERTAIN)


RESHAPED = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [1, 3] reshape { shape: [3] } }
output { name: "y" data_type: TYPE_FP32 dims: [3, 1] reshape { shape: [3] } }
"""


def test_a_reshaped_model_is_proved_by_its_own_examples_and_served_in_the_other_shape(
    loading: Loading, repo: Any
) -> None:
    version = loading.load(repo.published(factor=2.0), RESHAPED)
    assert version.proved
    assert version.signature.inputs[0].shape == ("batch", 1, 3)
    request, responder = make_request([np.ones((2, 1, 3), np.float32)])
    version.scheduler.submit(request)
    while responder.outputs is None and responder.error is None:
        assert loading.inline.run_ready() or responder.wait()
    assert responder.error is None
    assert responder.outputs is not None
    assert responder.outputs[0].shape == (2, 3, 1)


def test_a_reshaped_model_that_answers_otherwise_than_recorded_does_not_serve(loading: Loading, repo: Any) -> None:
    assert "golden example" in loading.refused(repo.published(factor=2.0, recorded=3.0), RESHAPED)


def test_warm_ups_that_are_asked_for_are_run_and_must_succeed(loading: Loading, repo: Any) -> None:
    folder = repo.bare()
    session = FakeSession()
    loading.runtime = OnFake(session)
    warmup = (
        'model_warmup { name: "%s" batch_size: %d count: 3 inputs { key: "x" value { dims: [3] zero_data: true } } }'
    )
    loading.load(folder, "max_batch_size: 4 " + warmup % ("zeros", 3))
    zeros = [run for run in session.runs if run.rows == 3 and not np.any(run.inputs[0])]
    assert len(zeros) == 3
    loading.runtime = OnFake(FakeSession(poison=0.0))
    assert "the warm-up 'zeros' of config.pbtxt failed" in loading.refused(
        repo.bare(number=2), "max_batch_size: 4 " + warmup % ("zeros", 3)
    )
    assert "batch_size is 9" in loading.refused(repo.bare(number=3), "max_batch_size: 4 " + warmup % ("zeros", 9))


def test_queue_policies_reach_the_scheduler(loading: Loading, repo: Any) -> None:
    text = """
    dynamic_batching {
      priority_levels: 3
      default_priority_level: 2
      default_queue_policy { max_queue_size: 5 default_timeout_microseconds: 1500 allow_timeout_override: true }
      priority_queue_policy { key: 1 value { timeout_action: DELAY default_timeout_microseconds: 100 } }
    }
    """
    limits = loading.load(repo.bare(), text).scheduler.limits
    assert limits.max_requests == 1024 + 5 + 5, "each priority has its own room"
    first, second = limits.policies.of(1), limits.policies.of(2)
    assert (first.timeout_s, first.delays, first.max_requests) == (pytest.approx(1e-4), True, None)
    assert (second.timeout_s, second.delays, second.max_requests) == (pytest.approx(1.5e-3), False, 5)
    assert second.callers_may_shorten
