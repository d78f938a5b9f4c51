"""What can be wrong with an ensemble, found when it is loaded and said by name; and which of many is loaded first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf import text_format

from forwardpass_proto import POOL
from forwardpass_proto import model_config_pb2 as pb
from forwardpass_server.errors import LoadFailed, NotReady
from forwardpass_server.lifecycle import config_pbtxt, ensemble
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.states import State
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

TWO_STEPS = """
platform: "ensemble" max_batch_size: 8
input { name: "picture" data_type: TYPE_UINT8 dims: [ 4 ] }
output { name: "score" data_type: TYPE_FP32 dims: [ 2 ] }
ensemble_scheduling {
  step {
    model_name: "classify" model_version: 3
    input_map { key: "x" value: "scaled" } output_map { key: "p" value: "score" }
  }
  step {
    model_name: "scale" model_version: -1
    input_map { key: "raw" value: "picture" } output_map { key: "y" value: "scaled" }
  }
}
"""

SCALE = Signature(
    (TensorSpec("raw", dtypes.UINT8, ("n", 4)),), (TensorSpec("y", dtypes.FP32, ("n", None)),), max_batch_size=8
)
CLASSIFY = Signature(
    (TensorSpec("x", dtypes.FP32, ("batch", 4)),), (TensorSpec("p", dtypes.FP32, (None, 2)),), max_batch_size=16
)


def config(text: str = TWO_STEPS) -> pb.ModelConfig:
    return text_format.Parse(text, pb.ModelConfig(), descriptor_pool=POOL)


def changed(old: str, new: str) -> pb.ModelConfig:
    assert old in TWO_STEPS
    return config(TWO_STEPS.replace(old, new))


def test_steps_are_ordered_by_the_tensors_they_need() -> None:
    found = ensemble.steps_of(config())
    assert [(step.model, step.version) for step in found] == [("classify", "3"), ("scale", "")]
    ordered = ensemble.in_order(found, ensemble.signature_of(config()))
    assert [str(step) for step in ordered] == ["step 2 ('scale')", "step 1 ('classify')"]


def test_the_signature_has_the_batch_before_the_dims() -> None:
    signature = ensemble.signature_of(config())
    assert [(s.name, s.dtype, s.wire_shape) for s in (*signature.inputs, *signature.outputs)] == [
        ("picture", dtypes.UINT8, (-1, 4)),
        ("score", dtypes.FP32, (-1, 2)),
    ]
    alone = ensemble.signature_of(changed("max_batch_size: 8", ""))
    assert [s.wire_shape for s in alone.inputs] == [(4,)]
    assert ensemble.signature_of(changed("dims: [ 4 ]", "dims: [ -1, 3 ]")).inputs[0].wire_shape == (-1, -1, 3)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('value: "picture"', 'value: "pikture"', "'pikture', which step 2 .'scale'. needs, is made by no step"),
        ('value: "score"', 'value: "points"', "'score', which the ensemble's output needs, is made by no step"),
        ('value: "picture"', 'value: "score"', "circle|taken by no step"),
        (
            'input_map { key: "raw" value: "picture" }',
            'input_map { key: "raw" value: "picture" } input_map { key: "again" value: "score" }',
            r"in a circle: step \d .* → step \d .* → step \d",
        ),
        ('value: "score" }', 'value: "scaled" }', r"'scaled' is made by step 1 \('classify'\) and by step 2"),
        (
            'output_map { key: "p" value: "score" }',
            'output_map { key: "p" value: "score" } output_map { key: "q" value: "picture" }',
            "'picture' is made by the ensemble's input and by step 1",
        ),
        ('key: "raw" value: "picture"', 'key: "raw" value: "scaled"', "taken by no step|circle"),
    ],
)
def test_tensors_that_do_not_connect_are_named(old: str, new: str, words: str) -> None:
    made = changed(old, new)
    with pytest.raises(UnsupportedConfig, match=words):
        ensemble.in_order(ensemble.steps_of(made), ensemble.signature_of(made))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('model_name: "scale"', "", r"step\[1\] needs model_name"),
        ('output_map { key: "p" value: "score" }', "", r"step\[0\] needs model_name, input_map and output_map"),
        ("model_version: 3", "model_version: -2", r"step\[0\].model_version is -2"),
    ],
)
def test_a_step_that_says_too_little_is_named(old: str, new: str, words: str) -> None:
    with pytest.raises(UnsupportedConfig, match=words):
        ensemble.steps_of(changed(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("data_type: TYPE_UINT8", "", r"input\[0\] of an ensemble needs name, data_type"),
        ('output { name: "score" data_type: TYPE_FP32 dims: [ 2 ] }', "", "an ensemble needs output"),
    ],
)
def test_tensors_must_be_stated(old: str, new: str, words: str) -> None:
    with pytest.raises(UnsupportedConfig, match=words):
        ensemble.signature_of(changed(old, new))


def check(made: pb.ModelConfig, scale: Signature = SCALE, classify: Signature = CLASSIFY) -> None:
    signature = ensemble.signature_of(made)
    steps = ensemble.in_order(ensemble.steps_of(made), signature)
    ensemble.check(steps, [{"scale": scale, "classify": classify}[step.model] for step in steps], signature)


def test_tensors_that_agree_are_accepted() -> None:
    check(config())
    check(config(), scale=Signature(SCALE.inputs, (TensorSpec("y", dtypes.FP32, (), ranked=False),), 8))


@dataclass
class Unfit:
    """A change to one of the parts, and the words that name it."""

    words: str
    old: str = "platform"
    new: str = "platform"
    scale: Signature = SCALE
    classify: Signature = CLASSIFY


@pytest.mark.parametrize(
    "unfit",
    [
        Unfit("'picture' is FP32 as the ensemble makes it, and UINT8 as step 2", "TYPE_UINT8", "TYPE_FP32"),
        Unfit("'score' is FP32 as step 1 .* and INT64 as the ensemble has it", "TYPE_FP32", "TYPE_INT64"),
        Unfit(r"'picture' has shape \[batch, 5\] as the ensemble makes it, and \[n, 4\]", "dims: [ 4 ]", "dims: [ 5 ]"),
        Unfit(r"'score' has shape \[\?, 2\] as step 1 .* \[batch, 2, 1\]", "dims: [ 2 ]", "dims: [ 2, 1 ]"),
        Unfit(r"step 2 \('scale'\): the model has no input 'raw'; it has 'x'", scale=CLASSIFY),
        Unfit(r"step 1 \('classify'\): the model has no output 'q'; it has 'p'", 'key: "p"', 'key: "q"'),
        Unfit(
            "takes at most 4 rows, and max_batch_size of the ensemble is 8",
            classify=Signature(CLASSIFY.inputs, CLASSIFY.outputs, 4),
        ),
        Unfit(
            "nothing is given to input 'more' of the model",
            classify=Signature(
                (*CLASSIFY.inputs, TensorSpec("more", dtypes.FP32, ("batch",))), CLASSIFY.outputs, max_batch_size=16
            ),
        ),
        Unfit(
            "'scaled' is FP32 as step 2 .* and FP16 as step 1",
            classify=Signature((TensorSpec("x", dtypes.FP16, ("batch", 4)),), CLASSIFY.outputs, 16),
        ),
    ],
    ids=lambda unfit: unfit.words[:40],
)
def test_tensors_that_do_not_agree_are_named_with_both_sides(unfit: Unfit) -> None:
    with pytest.raises(LoadFailed, match=unfit.words):
        check(changed(unfit.old, unfit.new), unfit.scale, unfit.classify)


@pytest.mark.parametrize(
    ("names", "models", "expected"),
    [
        ("cab", {}, "abc"),
        ("abc", {"a": ["c"]}, "cab"),
        ("abcd", {"a": ["b"], "b": ["d", "c"]}, "dcba"),
        ("ab", {"a": ["missing"]}, "ab"),
        ("abc", {"a": ["b"], "b": ["c"], "c": ["a"]}, "cba"),
        ("a", {"a": ["a"]}, "a"),
    ],
)
def test_steps_come_before_their_ensemble(names: str, models: dict[str, list[str]], expected: str) -> None:
    assert "".join(ensemble.steps_first(names, models)) == expected


def test_the_models_of_steps_are_told_as_requests_write_them() -> None:
    assert ensemble.models_of(ModelSettings(message=config())) == (("classify", "3"), ("scale", ""))
    assert ensemble.models_of(ModelSettings()) == ()
    assert ensemble.models_of(LoadFailed("x")) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'platform: "onnxruntime_onnx" ensemble_scheduling { step { model_name: "a" } }',
            "platform is 'onnxruntime_onnx'",
        ),
        ('ensemble_scheduling { step { model_name: "a" } }', "platform is ''"),
        ('platform: "ensemble"', "platform is 'ensemble'"),
        (
            'platform: "ensemble" ensemble_scheduling { step { model_name: "a" model_namespace: "n" } }',
            r"ensemble_scheduling.step\[0\].model_namespace is not supported",
        ),
    ],
)
def test_a_configuration_that_is_half_an_ensemble_is_refused(text: str, words: str) -> None:
    with pytest.raises(UnsupportedConfig, match=words):
        config_pbtxt.parse(text, model="m")


def test_a_step_that_does_not_serve_is_the_reason() -> None:
    def find(model: str, _version: str) -> LoadedVersion:
        raise NotReady(f"model '{model}' has no ready version")

    def never(*_: Any) -> Any:
        raise AssertionError

    load = ensemble.EnsembleLoader(never, find=find, lend=never, on_loop=never, max_requests=1)
    entered: list[State] = []
    enter: Callable[[State], None] = entered.append
    with pytest.raises(LoadFailed, match=r"^step 1 \('classify'\): model 'classify' has no ready version$"):
        load(None, config_pbtxt.parse(TWO_STEPS, model="m"), enter)  # type: ignore[arg-type]
    assert entered == [State.VERIFYING, State.LOADING]
