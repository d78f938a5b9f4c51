"""ModelConfig: complete, true, and in the shape that perf_analyzer computes with."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_proto import model_config_pb2 as config_pb
from forwardpass_server.lifecycle.config_pbtxt import parse
from forwardpass_server.rpc.status import Code
from forwardpass_server.scheduling.policy import Limits
from forwardpass_server.tensors import dtypes
from forwardpass_server.tensors.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Models, Server

CONFIG = "/inference.GRPCInferenceService/ModelConfig"
METADATA = "/inference.GRPCInferenceService/ModelMetadata"

UNBATCHED = Signature(
    (
        TensorSpec("x", dtypes.FP32, (3, "width")),
        TensorSpec("scale", dtypes.FP16, (), optional=True),
        TensorSpec("anything", dtypes.BYTES, (), ranked=False),
    ),
    (TensorSpec("y", dtypes.INT64, (None,)),),
    max_batch_size=0,
)


@pytest.fixture
def config(server: "Server") -> Callable[..., config_pb.ModelConfig]:
    def ask(name: str, version: str = "") -> config_pb.ModelConfig:
        request = pb.ModelConfigRequest(name=name, version=version)
        return server.get(pb.ModelConfigResponse, CONFIG, request).config

    return ask


@pytest.mark.parametrize(
    ("name", "version", "code"),
    [
        ("none", "", Code.NOT_FOUND),
        ("double", "7", Code.NOT_FOUND),
        ("double", "v1", Code.INVALID_ARGUMENT),
        ("", "", Code.NOT_FOUND),
    ],
)
def test_an_unknown_model_is_refused_as_by_inference(
    server: "Server", models: "Models", name: str, version: str, code: Code
) -> None:
    models.add("double", 1)
    assert server.ask(CONFIG, pb.ModelConfigRequest(name=name, version=version)).code == code


def test_a_model_without_config_pbtxt_has_all_of_it_derived(
    models: "Models", config: Callable[..., config_pb.ModelConfig]
) -> None:
    models.add("double", 3, limits=Limits(max_rows=8, max_requests=5))
    got = config("double")
    assert (got.name, got.platform, got.backend) == ("double", "onnxruntime_onnx", "onnxruntime")
    assert got.max_batch_size == 8
    assert [(each.name, each.data_type, [*each.dims]) for each in got.input] == [("x", config_pb.TYPE_FP32, [4])]
    assert [(each.name, each.data_type, [*each.dims]) for each in got.output] == [("y", config_pb.TYPE_FP32, [4])]
    assert got.version_policy.latest.num_versions == 1
    assert got.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert got.dynamic_batching.default_queue_policy.max_queue_size == 5
    assert [(group.name, group.count) for group in got.instance_group] == [("double_0", 1)]
    assert got.default_model_filename == "model.onnx"


def test_a_model_that_is_not_batched_has_its_full_shapes(
    models: "Models", config: Callable[..., config_pb.ModelConfig]
) -> None:
    models.add("whole", 1, UNBATCHED, limits=Limits(max_rows=0))
    got = config("whole")
    assert got.max_batch_size == 0
    assert got.WhichOneof("scheduling_choice") is None
    assert [(each.name, each.optional, [*each.dims]) for each in got.input] == [
        ("x", False, [3, -1]),
        ("scale", True, []),
        ("anything", False, []),
    ]
    assert [*got.output[0].dims] == [-1]


@pytest.mark.parametrize(("model", "signature"), [("double", None), ("whole", UNBATCHED)])
def test_shapes_agree_with_the_metadata_by_the_rule_of_the_batch(
    server: "Server",
    models: "Models",
    config: Callable[..., config_pb.ModelConfig],
    model: str,
    signature: Signature | None,
) -> None:
    models.add(model, 1, *([signature] if signature else []))
    about = server.get(pb.ModelMetadataResponse, METADATA, pb.ModelMetadataRequest(name=model))
    got = config(model)
    batch = [-1] if got.max_batch_size else []
    for described, configured in ((about.inputs, got.input), (about.outputs, got.output)):
        assert [each.name for each in described] == [each.name for each in configured]
        for each, other in zip(described, configured, strict=True):
            assert [*each.shape] == [*batch, *other.dims]


def test_what_config_pbtxt_says_is_kept(models: "Models", config: Callable[..., config_pb.ModelConfig]) -> None:
    text = """
        version_policy { all { } }
        instance_group { name: "pair" count: 2 }
        output { name: "y" label_filename: "labels.txt" }
        parameters { key: "slo_p99_ms" value { string_value: "40" } }
        response_cache { enable: true }
        metric_tags { key: "team" value: "vision" }
    """
    models.add("double", 1, settings=parse(text, model="double"), limits=Limits(max_rows=4, max_delay_s=0.0005))
    got = config("double")
    assert got.version_policy.WhichOneof("policy_choice") == "all"
    assert [(group.name, group.count) for group in got.instance_group] == [("pair", 2)]
    assert got.output[0].label_filename == "labels.txt"
    assert [*got.output[0].dims] == [4], "completed by the graph"
    assert got.parameters["slo_p99_ms"].string_value == "40"
    assert got.response_cache.enable
    assert dict(got.metric_tags) == {"team": "vision"}
    assert got.dynamic_batching.max_queue_delay_microseconds == 500


def test_a_batcher_that_was_asked_for_and_is_not_used_is_not_claimed(
    models: "Models", config: Callable[..., config_pb.ModelConfig]
) -> None:
    settings = parse("max_batch_size: 8 dynamic_batching { }", model="double")
    models.add("double", 1, settings=settings, limits=Limits(max_rows=0))
    assert config("double").WhichOneof("scheduling_choice") is None


def test_the_extension_is_listed(server: "Server") -> None:
    about = server.get(
        pb.ServerMetadataResponse, "/inference.GRPCInferenceService/ServerMetadata", pb.ServerMetadataRequest()
    )
    assert "model_configuration" in about.extensions
