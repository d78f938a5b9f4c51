"""The dashboard and the rules against a real Prometheus that scrapes a real server at work: no panel stays empty.

    pytest tests/integration/test_dashboard.py -s        # prints panel → query → rows

A GPU and its metrics are played by a page of our own making with a stand-in reading: no machine of the tests has one.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.observe.gpu import Reading
from forwardpass_server.observe.metrics import Metrics
from forwardpass_server.observe.page import MetricsPage
from forwardpass_server.runtime import fake_generator

MONITORING = Path(__file__).resolve().parents[2] / "k8s/components/monitoring"
JOB = "forwardpass-server"
RATE_INTERVAL = "15s"
WAIT_S = 60.0

GPU_READING = Reading(
    gpu="0", uuid="GPU-stand-in", busy_ratio=0.5, memory_used_bytes=20e9, memory_total_bytes=80e9, power_watts=300.0,
    energy_joules=1e6,
)  # fmt: skip

TRITON = (
    "count(nv_inference_count)",
    "sum by (model) (rate(nv_inference_request_success[15s]))",
    "sum by (model, reason) (nv_inference_request_failure)",
    "sum by (model) (rate(nv_inference_compute_infer_duration_us[15s])) / 1000",
    "rate(nv_inference_queue_duration_us[15s]) / rate(nv_inference_request_success[15s])",
    "rate(nv_inference_count[15s]) / rate(nv_inference_exec_count[15s])",
    "sum(nv_inference_pending_request_count)",
    "sum(rate(nv_cache_num_hits_per_model[15s]))",
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes",
)
"""What dashboards made for Triton ask, by `--triton-metrics`."""

NAME = re.compile(r"\b[a-z_:][a-z0-9_:]*(?=[{\[ )]|$)")


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return content


def panels() -> list[tuple[str, str, str]]:
    """Row and title, letter and query of every target."""
    found, row = [], ""
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        found += [(f"{row} / {panel['title']}", each["refId"], each["expr"]) for each in panel.get("targets", [])]
    return found


def rules() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())["spec"]
    return spec


def filled(query: str) -> str:
    """A query with the dashboard's variables as Grafana fills them in when all is selected."""
    values = {"$__rate_interval": RATE_INTERVAL, "$namespace": ".*", "$model": ".*", "$job": JOB}
    for variable, value in values.items():
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


class Prometheus:
    """Debian's, with these targets, looking every two seconds."""

    def __init__(self, folder: Path, targets: list[str]) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("prometheus (Debian package prometheus) is not installed")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules(), width=1000))
        config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        command = [program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
        self._log = (folder / "prometheus.log").open("w+")
        self._process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{self._port}"], stdout=self._log, stderr=subprocess.STDOUT
        )

    def get(self, path: str, **parameters: str) -> Any:
        """What its API answers; None while it does not."""
        address = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)["data"]
        except (ConnectionError, urllib.error.URLError) as error:
            assert self._process.poll() is None, self.log()
            if isinstance(error, urllib.error.HTTPError) and error.code != 503:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error
            return None

    def query(self, query: str) -> list[dict[str, Any]]:
        data = self.get("query", query=query)
        return [] if data is None else [row for row in data["result"] if row["value"][1] != "NaN"]

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    started: list[Prometheus] = []

    def start(*targets: str) -> Prometheus:
        folder = tmp_path / "prometheus"
        folder.mkdir()
        started.append(Prometheus(folder, list(targets)))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def gpu_page() -> Iterator[str]:
    page = MetricsPage(
        Metrics(methods=[], build={}, gpus=lambda: [GPU_READING], triton_names=True).registry, "127.0.0.1", 0
    )
    yield f"127.0.0.1:{page.start()}"
    page.stop()


def remembering() -> bytes:
    """x FP32 [batch, 3], before FP32 [batch, 3] → y = after = x + before."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "before")]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("y", "after")]
    nodes = [helper.make_node("Add", ["x", "before"], ["after"]), helper.make_node("Identity", ["after"], ["y"])]
    graph = helper.make_graph(nodes, "remembering", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def described(panel: tuple[str, str, str], rows: list[dict[str, Any]]) -> str:
    """A panel, how many rows its query gave, and the first of them."""
    example = rows[0] if rows else {"metric": {}, "value": [0, "no data"]}
    labels = ", ".join(f"{name}={value[:12]}" for name, value in example["metric"].items())
    head = f"{panel[0]:50.50} {panel[1]} {len(rows):3} rows  {example['value'][1][:9]:>9}  {labels:.60}"
    return f"{head}\n    {panel[2]}\n"


def work(client: Any) -> None:
    """Something for every panel: answers in batches, answers from the cache, mistakes, and a text."""
    rows = np.ones((1, 3), np.float32)
    futures = [client.infer_future("scale", rows * n) for n in range(32)]
    futures += [client.infer_future("kept", rows) for _ in range(4)]
    futures += [client.infer_future("scale", np.ones((1, 2), np.float32)), client.infer_future("nobody", rows)]
    text = pb.ModelInferRequest(model_name="bard", raw_input_contents=[b"\x02\0\0\0ab"])
    text.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    text.parameters["max_tokens"].int64_param = 200
    for future in futures:
        future.exception()
    client.call("ModelInfer", text, pb.ModelInferResponse)
    step = pb.ModelInferRequest(model_name="sum", raw_input_contents=[bytes(12)])
    step.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    step.parameters["sequence_id"].int64_param = 7
    step.parameters["sequence_start"].bool_param = step.parameters["sequence_end"].bool_param = True
    client.call("ModelInfer", step, pb.ModelInferResponse)


def test_every_panel_has_data_and_every_rule_its_metrics(
    serve: Any, publish: Any, bare: Any, root: Path, gpu_page: str, start_prometheus: Any
) -> None:
    publish("scale", 2.0)
    (root / "scale" / "config.pbtxt").write_text('parameters { key: "slo_p99_ms" value { string_value: "500" } }')
    publish("kept", 3.0)
    (root / "kept" / "config.pbtxt").write_text("response_cache { enable: true }")
    bare("bard", 1).write_bytes(fake_generator.graph(fake_generator.CHARACTERS).SerializeToString())
    bare("sum", 1).write_bytes(remembering())
    (root / "sum" / "config.pbtxt").write_text(
        'sequence_batching { direct { } state { input_name: "before" output_name: "after" } }'
    )
    bare("broken", 1).write_bytes(b"no model")
    with serve("--triton-metrics") as server:
        client = server.client()
        address = next(line["address"] for line in server.lines if line["message"] == "metrics page")
        prometheus = start_prometheus(address.removeprefix("http://").removesuffix("/metrics"), gpu_page)
        wanted = [(title, letter, filled(query)) for title, letter, query in panels()]
        wanted += [("Triton's names", str(number), query) for number, query in enumerate(TRITON)]
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        give_up = time.monotonic() + WAIT_S
        while len(found) < len(wanted) and time.monotonic() < give_up:
            work(client)
            for panel in set(wanted) - found.keys():
                if rows := prometheus.query(panel[2]):
                    found[panel] = rows
        sys.stdout.write("".join(described(panel, found.get(panel, [])) for panel in wanted))
        names = set(prometheus.get("label/__name__/values"))
        groups = prometheus.get("rules")["groups"]
        loads = prometheus.query("sum by (model, state) (model_state)")
    assert not set(wanted) - found.keys(), prometheus.log()
    unhealthy = {
        rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule["health"] == "err"
    }
    assert not unhealthy
    assert {"model": "broken", "state": "failed"} in [row["metric"] for row in loads]
    asked = " ".join(
        [query for _, _, query in panels()] + [rule["expr"] for group in rules()["groups"] for rule in group["rules"]]
    )
    ours = {
        name
        for name in NAME.findall(asked)
        if name.startswith(("infer_", "model_", "event_", "process_", "grpc_server_", "generation_", "sequence"))
    }
    assert len(ours) > 20
    assert ours <= names


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    content = dashboard()
    assert content["uid"] == JOB
    ids = [panel["id"] for panel in content["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in content["panels"] if panel["type"] == "row"]
    assert titles == [
        "Traffic", "Where the time goes", "Capacity", "Batches", "Queue", "Versions", "Generation", "Sequences", "GPU",
        "Process",
    ]  # fmt: skip
    taken: dict[tuple[int, int], str] = {}
    for panel in content["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["legendFormat"] or panel["type"] == "table"
