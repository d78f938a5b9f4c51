"""An ensemble in a real server: answered through its steps, and not ready while one of them is not."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from forwardpass_proto import grpc_service_pb2 as pb

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Process, Serve

Bare = Callable[..., Path]

SIX = """
platform: "ensemble" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "six" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 3 ] }
ensemble_scheduling {
  step { model_name: "zthree" model_version: -1
         input_map { key: "x" value: "two" } output_map { key: "y" value: "six" } }
  step { model_name: "twice" model_version: 1
         input_map { key: "x" value: "x" } output_map { key: "y" value: "two" } }
  step { model_name: "zthree" model_version: -1
         input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }
}
"""


def ensemble(root: Path, name: str = "six", config: str = SIX) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)


@pytest.fixture
def process(root: Path, serve: "Serve", bare: Bare) -> "Process":
    bare("twice", 1, 2.0)
    bare("zthree", 1, 3.0)
    ensemble(root)
    return serve("--log-level=debug")


@pytest.fixture
def client(process: "Process") -> "Client":
    return process.client()


def answer(client: "Client", rows: np.ndarray) -> pb.ModelInferResponse:
    response = client.infer_future("six", rows).result()
    assert isinstance(response, pb.ModelInferResponse)
    return response


def test_a_request_passes_through_all_steps(process: "Process", client: "Client") -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = answer(client, rows)
    assert (found.model_name, found.model_version) == ("six", "1")
    assert [output.name for output in found.outputs] == ["six", "y"]
    six, three = (np.frombuffer(raw, np.float32).reshape(2, 3) for raw in found.raw_output_contents)
    assert (six == 6 * rows).all()
    assert (three == 3 * rows).all()
    request = pb.ModelStatisticsRequest()
    stats = {s.name: s for s in client.call("ModelStatistics", request, pb.ModelStatisticsResponse).model_stats}
    assert (stats["six"].inference_count, stats["six"].execution_count) == (2, 1)
    assert stats["six"].inference_stats.queue.count == 1
    assert (stats["twice"].inference_count, stats["zthree"].inference_count) == (2, 4)
    assert 'infer_requests_total{model="six",outcome="ok",version="1"} 1.0' in process.metrics()
    assert 'infer_inflight{model="six",version="1"} 0.0' in process.metrics()


def test_many_at_once_are_each_answered_with_their_own(client: "Client") -> None:
    calls = [client.infer_future("six", np.full((1 + n % 8, 3), n, np.float32)) for n in range(300)]
    for number, call in enumerate(calls):
        raw = call.result().raw_output_contents
        assert np.frombuffer(raw[0], np.float32).tolist() == [6.0 * number] * 3 * (1 + number % 8)


def test_what_it_says_of_itself(client: "Client") -> None:
    metadata = client.call("ModelMetadata", pb.ModelMetadataRequest(name="six"), pb.ModelMetadataResponse)
    assert (metadata.platform, list(metadata.versions)) == ("ensemble", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 3])]
    assert metadata.properties["forwardpass.steps"] == "zthree/1, twice/1, zthree/1"
    config = client.call("ModelConfig", pb.ModelConfigRequest(name="six"), pb.ModelConfigResponse).config
    assert (config.name, config.platform, config.max_batch_size) == ("six", "ensemble", 8)
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["zthree", "twice", "zthree"]


def test_what_does_not_fit_is_refused_as_for_any_model(client: "Client") -> None:
    for shape in ((9, 3), (1, 4)):
        with pytest.raises(grpc.RpcError) as caught:
            client.infer("six", np.ones(shape, np.float32))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_step_that_goes_takes_the_ensemble_with_it_and_brings_it_back(
    root: Path, process: "Process", client: "Client", bare: Bare
) -> None:
    assert client.ready("six")
    rmtree(root / "twice")
    process.wait_for("version failed", model="six")
    assert not client.ready("six")
    code, text = client.code("six")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "step 2 ('twice')" in text
    bare("twice", 1, 20.0)
    process.wait_for("version ready", model="six")
    found = answer(client, np.ones((1, 3), np.float32))
    assert np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == [60.0] * 3


def test_a_new_version_of_a_step_is_used_without_a_failed_request(
    process: "Process", client: "Client", bare: Bare
) -> None:
    rows = np.ones((1, 3), np.float32)
    calls = [client.infer_future("six", rows) for _ in range(50)]
    bare("zthree", 2, 30.0)
    process.wait_for("version loading", model="zthree", version=2)
    calls += [client.infer_future("six", rows) for _ in range(200)]
    process.wait_for("version ready", model="six")
    calls += [client.infer_future("six", rows) for _ in range(50)]
    six = [float(np.frombuffer(call.result().raw_output_contents[0], np.float32)[0]) for call in calls]
    assert set(six) <= {6.0, 60.0}
    assert (six[0], set(six[-50:])) == (6.0, {60.0})


def test_an_ensemble_of_models_that_are_not_there_says_so(root: Path, serve: "Serve", bare: Bare) -> None:
    bare("twice", 1, 2.0)
    ensemble(root)
    client = serve().client()
    assert not client.ready("six")
    code, text = client.code("six")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "step 1 ('zthree'): model 'zthree' is not found" in text


def test_an_ensemble_may_have_ensembles_for_steps(root: Path, serve: "Serve", bare: Bare) -> None:
    bare("twice", 1, 2.0)
    bare("zthree", 1, 3.0)
    ensemble(root)
    outer = SIX.replace("zthree", "six").replace(
        'output_map { key: "y" value: "six" }', 'output_map { key: "six" value: "six" }'
    )
    ensemble(root, "outer", outer)
    client = serve().client()
    found = client.infer_future("outer", np.ones((1, 3), np.float32)).result()
    assert np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == [12.0] * 3
