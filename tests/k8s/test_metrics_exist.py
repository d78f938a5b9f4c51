"""Every metric that an alert, a panel or an autoscaler asks for stands on the page of a server that runs.

A misspelt name is no error in PromQL: the alert never fires. What needs a GPU, a model that writes texts or one that
keeps sequences is not on the page of this server: those names are looked up in the code that makes them.
"""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

from forwardpass import Client

SERVER = Path(__file__).resolve().parents[2] / "server" / "forwardpass_server" / "observe"
PROMETHEUS_OWN = {"up"}
NOT_HERE = {"gpu_": "gpu.py", "generation_": "generation.py", "sequence": "sequences.py"}
"""Beginnings of names of what this server has not, and the file that makes them."""
NO_METRIC = {"and", "or", "unless", "offset", "bool"}


def expressions(value: Any) -> Iterator[str]:
    """Every PromQL expression of a rule, a dashboard or an autoscaler."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr":
                yield inner
            elif key == "query" and value.get("type") == "query":  # a variable of the dashboard
                yield re.sub(r"label_values\((.+), *\w+\)", r"\1", inner if isinstance(inner, str) else inner["query"])
            else:
                yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


def metric_names(expression: str) -> set[str]:
    """The names of metrics in it: what is no function, keyword, label or duration."""
    for part in (
        r'"[^"]*"',
        r"\{[^}]*\}",
        r"\[[^\]]*\]",
        r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",
        r"\boffset\s+\w+",
    ):
        expression = re.sub(part, " ", expression)
    names = re.findall(r"(?<![\w:$])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", expression)
    return set(names) - NO_METRIC


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the samples of a server of two processes that has answered a call for a model with an SLO."""
    root = tmp_path_factory.mktemp("repository")
    path = root / "same" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    promise = 'parameters { key: "slo_p99_ms" value { string_value: "1000" } }'
    (root / "same" / "config.pbtxt").write_text(promise)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    command = [sys.executable, "-m", "forwardpass_server", f"--model-repository={root}", "--processes=2"]
    command += ["--grpc-port=0", "--metrics-port=0", "--device=cpu", "--log-format=json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said: dict[str, str] = {}
            lines: list[str] = []
            while {"serving", "metrics page"} - set(said):
                lines.append(server.stderr.readline())
                assert lines[-1], f"the server ended; it said {''.join(lines)}"
                if lines[-1].startswith("{"):
                    fields = json.loads(lines[-1])
                    said[fields["message"]] = fields.get("address", "")
            with Client(said["serving"]) as client:
                client.infer("same", {"x": [[1.0]]})
            with urllib.request.urlopen(said["metrics page"], timeout=30) as answer:
                text = answer.read().decode()
        finally:
            server.terminate()
            server.communicate()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_every_metric_that_is_asked_for_exists(rendered: Any, page: set[str]) -> None:
    asked: dict[str, str] = {}
    recorded = set()
    for each in rendered["components/monitoring"]:
        whole = [each["spec"]] if each["kind"] == "PrometheusRule" else []
        if each["metadata"]["name"] == "forwardpass-server-dashboard":
            whole = [json.loads(text) for text in each["data"].values()]
        for expression in expressions(whole):
            asked |= dict.fromkeys(metric_names(expression), expression)
        for group in each["spec"]["groups"] if each["kind"] == "PrometheusRule" else []:
            recorded |= {rule["record"] for rule in group["rules"] if "record" in rule}
    for component in ("components/autoscaling-hpa", "components/autoscaling-keda"):
        for each in rendered[component]:
            for metric in each.get("spec", {}).get("metrics", []):
                asked[metric["pods"]["metric"]["name"]] = component
            for trigger in each.get("spec", {}).get("triggers", []):
                asked |= dict.fromkeys(metric_names(trigger["metadata"]["query"]), component)
    assert {"saturation_ratio", "infer_requests_total", "infer_queue_seconds_bucket"} <= set(asked)
    for name, where in asked.items():
        made_in = next((file for start, file in NOT_HERE.items() if name.startswith(start)), None)
        if made_in is not None:
            family = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert f'"{family}"' in (SERVER / made_in).read_text(), f"{name}, in {where}"
        else:
            assert name in page | recorded | PROMETHEUS_OWN, f"{name}, in {where}"


def test_a_misspelt_metric_is_found() -> None:
    expression = 'sum by (model) (rate(infer_reqests_total{outcome="ok"}[5m] offset 1h)) > 0.5 * forwardpass:slo and up'
    assert metric_names(expression) == {"infer_reqests_total", "forwardpass:slo", "up"}
