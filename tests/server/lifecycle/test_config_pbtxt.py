"""config.pbtxt: obeyed, accepted as a hint, or refused by the field's name."""

from pathlib import Path

import pytest

from forwardpass_server.lifecycle.config_pbtxt import ConfigReader, parse
from forwardpass_server.lifecycle.config_shapes import served
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.repository import ModelFolder
from forwardpass_server.lifecycle.versions import Every, Latest, Specific
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("image", dtypes.UINT8, ("batch", "height", 28)), TensorSpec("scale", dtypes.FP32, ("batch", 1))),
    (TensorSpec("label", dtypes.INT64, ("batch",)), TensorSpec("probabilities", dtypes.FP32, ("batch", 10))),
    64,
)


def refused(text: str, signature: Signature | None = None) -> str:
    with pytest.raises(UnsupportedConfig) as caught:
        served(parse(text, model="m"), signature or SIGNATURE)
    return str(caught.value)


def test_an_empty_file_says_nothing() -> None:
    settings = parse("", model="m")
    assert settings.message is not None
    assert settings == ModelSettings(message=settings.message)
    assert served(settings, SIGNATURE).signature == SIGNATURE


def test_a_file_as_triton_users_write_it_is_obeyed() -> None:
    settings = parse(
        """
        name: "m"  # the folder
        platform: "onnxruntime_onnx"
        max_batch_size: 16
        input [ { name: "image" data_type: TYPE_UINT8 dims: [ -1, 28 ] } ]
        output [ { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] } ]
        instance_group [ { count: 2 kind: KIND_GPU } ]
        dynamic_batching {
          preferred_batch_size: [ 4, 8 ]
          max_queue_delay_microseconds: 500
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy { max_queue_size: 32 }
        }
        version_policy: { latest: { num_versions: 2 } }
        default_model_filename: "net.onnx"
        parameters { key: "slo_p99_ms" value { string_value: "40" } }
        parameters { key: "refuse_nonfinite" value { string_value: "true" } }
        parameters { key: "xnnpack" value { string_value: "1" } }
        """,
        model="m",
    )
    assert (settings.max_batch_size, settings.instances, settings.queue_policies.default.max_requests) == (16, 2, 32)
    assert settings.max_queue_delay_s == pytest.approx(500e-6)
    assert (settings.policy, settings.filename) == (Latest(2), "net.onnx")
    assert (settings.priorities, settings.default_priority) == (3, 2)
    assert (settings.max_latency_s, settings.refuse_nonfinite) == (pytest.approx(0.04), True)
    assert not settings.allow_batch_dependent_answers
    assert settings.hints == (
        "dynamic_batching.preferred_batch_size",
        "parameters[xnnpack]",
    )


@pytest.mark.parametrize(
    ("key", "value", "wants"),
    [
        ("slo_p99_ms", "0", "a number above 0"),
        ("slo_p99_ms", "fast", "a number above 0"),
        ("slo_p99_ms", "inf", "a number above 0"),
        ("refuse_nonfinite", "1", "'true' or 'false'"),
        ("allow_batch_dependent_answers", "True", "'true' or 'false'"),
        ("intra_op_thread_count", "-1", "a number from 0 up"),
        ("intra_op_thread_count", "many", "a number from 0 up"),
        ("execution_mode", "2", "0 or 1"),
        ("enable_mem_arena", "maybe", "0 or 1"),
    ],
)
def test_a_parameter_with_a_senseless_value_is_refused(key: str, value: str, wants: str) -> None:
    with pytest.raises(UnsupportedConfig, match=rf"parameters\[{key}\] is '{value}'; it must be {wants}"):
        parse(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}', model="m")


@pytest.mark.parametrize(
    "levels", ["priority_levels: 2", "default_priority_level: 1", "priority_levels: 2 default_priority_level: 3"]
)
def test_priorities_need_a_default_among_them(levels: str) -> None:
    with pytest.raises(UnsupportedConfig, match="default_priority_level"):
        parse(f"dynamic_batching {{ {levels} }}", model="m")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ("version_policy { }", Latest(1)),
        ("version_policy { latest { } }", Latest(1)),
        ("version_policy { latest { num_versions: 3 } }", Latest(3)),
        ("version_policy { all { } }", Every()),
        ("version_policy { specific { versions: [1, 3] } }", Specific(frozenset({1, 3}))),
    ],
)
def test_every_version_policy_is_obeyed(text: str, policy: object) -> None:
    assert parse(text, model="m").policy == policy


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", None),
        ("# max_batch_size: 8", None),
        ("max_batch_size: 0", 0),
        ("max_batch_size: 8", 8),
        ("dynamic_batching { }", None),
        ('input { name: "image" dims: [ -1, -1, 28 ] }', 0),
    ],
)
def test_a_batch_size_that_is_not_written_is_left_to_us_unless_dims_imply_it(text: str, size: int | None) -> None:
    assert parse(text, model="m").max_batch_size == size


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("sequence_batching { iterative_sequence: true }", "sequence_batching.iterative_sequence"),
        ("sequence_batching { oldest { preserve_ordering: true } }", "sequence_batching.oldest.preserve_ordering"),
        (
            "sequence_batching { state { use_growable_memory: true } }",
            "sequence_batching.state[0].use_growable_memory",
        ),
        ("ensemble_scheduling { }", "ensemble_scheduling"),
        ('input { name: "image" is_shape_tensor: true }', "input[0].is_shape_tensor"),
        ('input { name: "image" allow_ragged_batch: true }', "input[0].allow_ragged_batch"),
        ('batch_input { target_name: "image" }', "batch_input[0].target_name"),
        ('batch_output { target_name: "image" }', "batch_output[0].target_name"),
        ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
        ('cc_model_filenames { key: "7.5" value: "other.onnx" }', "cc_model_filenames[7.5]"),
        ('model_operations { op_library_filename: "evil.so" }', "model_operations.op_library_filename"),
        ('model_repository_agents { agents { name: "a" } }', "model_repository_agents.agents[0].name"),
        ("instance_group { passive: true }", "instance_group[0].passive"),
        ('runtime: "other.so"', "runtime"),
    ],
)
def test_what_changes_answers_shapes_or_order_is_refused_by_its_field(text: str, field: str) -> None:
    assert f"config.pbtxt: {field} is not supported" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }',
        "optimization { input_pinned_memory { enable: true } }",
        'parameters { key: "memory.enable_memory_arena_shrinkage" value { string_value: "cpu:0" } }',
        'metric_tags { key: "team" value: "vision" }',
        "instance_group { rate_limiter { priority: 2 } }",
        'input { name: "image" format: FORMAT_NCHW }',
    ],
)
def test_a_promise_of_speed_is_accepted_and_remembered(text: str) -> None:
    assert parse(text, model="m").hints


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("max_batch_size: many", ["config.pbtxt: cannot be read", "line 1, column 17"]),
        ("max_batch_size: 8\n  no_such_field: 1", ["cannot be read", "line 2, column 3", "no_such_field"]),
        ("input {", ["cannot be read"]),
        ('name: "other"', ["'other'", "'m'"]),
        ('platform: "tensorrt_plan"', ["tensorrt_plan", "onnxruntime_onnx"]),
        ('backend: "python"', ["python", "onnxruntime"]),
        ("max_batch_size: -1", ["max_batch_size", "-1"]),
        ("instance_group { count: -2 }", ["instance_group.count", "-2"]),
        ('default_model_filename: "../x.onnx"', ["default_model_filename", "../x.onnx"]),
        ('default_model_filename: ".."', ["default_model_filename"]),
        ("instance_group { kind: KIND_MODEL }", ["instance_group[0].kind", "KIND_MODEL"]),
        ("instance_group { } instance_group { gpus: [0, 1] }", ["instance_group[1].gpus", "[0, 1]", "--device"]),
        ("instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU }", ["KIND_GPU, KIND_CPU", "one place"]),
        ("optimization { graph { level: 3 } }", ["optimization.graph.level", "3"]),
        (
            'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" '
            'parameters { key: "precision_mode" value: "INT8" } } } }',
            ["gpu_execution_accelerator[0].parameters[precision_mode]", "INT8", "FP16"],
        ),
        ("dynamic_batching { priority_queue_policy { key: 1 } }", ["priority_queue_policy[1]", "0 priority_levels"]),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 } }",
            ["priority_queue_policy[3]", "2 priority_levels"],
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_value(text: str, parts: list[str]) -> None:
    message = refused(text)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('input { name: "picture" }', ["input[0]", "'picture'", "'image', 'scale'"]),
        ('output { name: "image" }', ["output[0]", "'image'", "'label'"]),
        ('input { name: "image" data_type: TYPE_FP32 }', ["input[0]", "TYPE_FP32", "UINT8"]),
        ('max_batch_size: 4 input { name: "image" dims: [28] }', ["dims [28]", "[-1, 28] behind the batch dimension"]),
        ('max_batch_size: 4 input { name: "image" dims: [-1, 27] }', ["dims [-1, 27]"]),
        ('max_batch_size: 4 input { name: "image" dims: [-2, 28] }', ["dims [-2, 28]"]),
        ('input { name: "image" dims: [-1, 28] }', ["dims [-1, 28]", "[-1, -1, 28]"]),
        ('input { name: "image" optional: true }', ["optional", "required"]),
    ],
)
def test_what_contradicts_the_graph_is_refused_with_both_sides(text: str, parts: list[str]) -> None:
    message = refused(text)
    for part in parts:
        assert part in message


def test_batches_of_a_graph_without_a_dynamic_first_dimension_are_refused() -> None:
    fixed = Signature((TensorSpec("x", dtypes.FP32, (1, 3)),), (TensorSpec("y", dtypes.FP32, (1, 3)),), 0)
    assert "first dimension of 'x' is not dynamic" in refused("max_batch_size: 4", fixed)


def test_a_configured_dimension_fixes_one_that_the_graph_leaves_open() -> None:
    settings = parse('max_batch_size: 4 input { name: "image" dims: [32, 28] }', model="m")
    assert served(settings, SIGNATURE).signature.inputs[0].shape == ("batch", 32, 28)


def test_configured_outputs_leave_out_the_others() -> None:
    settings = parse('max_batch_size: 4 output { name: "probabilities" dims: [10] }', model="m")
    assert [spec.name for spec in served(settings, SIGNATURE).signature.outputs] == ["probabilities"]


def folder(path: Path, text: bytes | None) -> ModelFolder:
    path.mkdir(parents=True, exist_ok=True)
    config = path / "config.pbtxt"
    if text is None:
        return ModelFolder(name="m", path=path)
    config.write_bytes(text)
    return ModelFolder(name="m", path=path, config=config, stamp=(("config.pbtxt", len(text), hash(text), 1),))


def test_the_file_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    reader = ConfigReader(tmp_path)
    first = reader.settings(folder(tmp_path / "m", b"max_batch_size: 4"))
    assert isinstance(first, ModelSettings)
    assert reader.settings(folder(tmp_path / "m", b"max_batch_size: 4")) is first
    second = reader.settings(folder(tmp_path / "m", b"max_batch_size: 8"))
    assert isinstance(second, ModelSettings)
    assert second.max_batch_size == 8
    assert reader.settings(folder(tmp_path / "m", None)) == ModelSettings()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe", "cannot be read"), (b"#" * (1 << 20) + b"\n", "larger than"), (b"runtime: 'x'", "runtime")],
)
def test_a_bad_file_is_a_reason_and_not_an_exception(tmp_path: Path, content: bytes, reason: str) -> None:
    found = ConfigReader(tmp_path).settings(folder(tmp_path / "m", content))
    assert isinstance(found, UnsupportedConfig)
    assert reason in str(found)


def test_a_file_that_leads_out_of_the_repository_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("max_batch_size: 4")
    root = tmp_path / "root"
    (root / "m").mkdir(parents=True)
    (root / "m/config.pbtxt").symlink_to(tmp_path / "secret")
    found = ConfigReader(root).settings(ModelFolder(name="m", path=root / "m", config=root / "m/config.pbtxt"))
    assert "leads out of the repository" in str(found)
