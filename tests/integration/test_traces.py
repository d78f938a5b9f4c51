"""Traces of a real server, taken by a stand-in for a collector that reads OTLP's own messages."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from forwardpass_proto import grpc_service_pb2 as pb

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER_SPAN = "inference.GRPCInferenceService/ModelInfer"


class Collector:
    """Takes spans at /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                message = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for each in message.resource_spans:
                    names = [pair.value.string_value for pair in each.resource.attributes if pair.key == "service.name"]
                    collector.services.update(names)
                    collector.spans += [span for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    started = Collector()
    yield started
    started.stop()


def ask(channel: grpc.Channel, model: str = "scale", width: int = 3, parent: str = "") -> Any:
    request = pb.ModelInferRequest(model_name=model, id="mine", raw_input_contents=[bytes(4 * width)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, width])
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    metadata = [("traceparent", parent)] if parent else []
    return call.future(request.SerializeToString(), timeout=30, metadata=metadata)


def attribute(span: Span, name: str) -> Any:
    (value,) = [pair.value for pair in span.attributes if pair.key == name]
    return value.string_value or value.int_value


def test_requests_come_to_the_collector_as_their_callers_children(
    serve: Any, publish: Any, collector: Collector
) -> None:
    publish("scale", 2.0, slow=200)
    with serve(f"--trace-endpoint={collector.endpoint}", "--trace-sample-ratio=0") as server:
        channel = server.client().channel
        sampled = [ask(channel, parent=f"00-{TRACE}-{number:016x}-01") for number in range(1, 17)]
        assert [future.code() for future in sampled] == [grpc.StatusCode.OK] * 16
        silent = [ask(channel), ask(channel, parent=f"00-{TRACE}-{SPAN}-00"), ask(channel, parent="nonsense")]
        wrong = [ask(channel, parent=f"00-{TRACE}-{SPAN}-01", **what) for what in ({"model": "nobody"}, {"width": 5})]
        assert [future.code() for future in silent] == [grpc.StatusCode.OK] * 3
        assert [future.code().name for future in wrong] == ["NOT_FOUND", "INVALID_ARGUMENT"]
        server.terminate()
        assert server.wait() == 0
    assert collector.services == {"forwardpass-server"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    requests = [span for span in collector.spans if span.name == SERVER_SPAN]
    parents = sorted(int(span.parent_span_id.hex(), 16) for span in requests)
    assert parents == [*range(1, 17), int(SPAN, 16), int(SPAN, 16)]
    assert sorted(attribute(span, "rpc.grpc.status_code") for span in requests) == [0] * 16 + [3, 5]
    assert {attribute(span, "forwardpass.request_id") for span in requests} == {"mine"}
    answered = {span.span_id: span for span in requests if not attribute(span, "rpc.grpc.status_code")}
    batches = {span.span_id: span for span in collector.spans if span.name == "batch"}
    runs = [span for span in collector.spans if span.name == "run"]
    queues = [span for span in collector.spans if span.name == "queue"]
    assert {span.parent_span_id for span in queues} == {span.parent_span_id for span in batches.values()} == {*answered}
    assert {span.parent_span_id for span in runs} == {*batches}
    for run in runs:
        batch = batches[run.parent_span_id]
        request = answered[batch.parent_span_id]
        assert request.start_time_unix_nano < batch.start_time_unix_nano <= run.start_time_unix_nano
        assert run.end_time_unix_nano <= batch.end_time_unix_nano <= request.end_time_unix_nano
        rode = attribute(batch, "forwardpass.batch.rows")
        assert len(batch.links) == rode - 1, "one row a request: whoever rode in it is linked"
        assert {link.span_id for link in batch.links} <= {*answered} - {request.span_id}
    assert any(batch.links for batch in batches.values())


def test_a_collector_that_is_not_there_harms_nobody(serve: Any, publish: Any) -> None:
    publish("scale", 2.0)
    with serve("--trace-endpoint=http://127.0.0.1:9/v1/traces", "--trace-sample-ratio=1") as server:
        client = server.client()
        client.infer("scale", np.ones((1, 3), np.float32))
        line = server.wait_for("traces are not taken")
        assert line["dropped"] == 1
        client.infer("scale", np.ones((1, 3), np.float32))
        server.terminate()
        assert server.wait() == 0
    assert all(raw.startswith("{") for raw in server.raw)


def test_an_endpoint_that_is_no_url_ends_the_start(serve: Any) -> None:
    with serve("--trace-endpoint=collector:4318") as server:
        assert server.wait() == 1
    assert "--trace-endpoint must be a URL" in "".join(server.raw)


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from forwardpass_server.app import Server\n"
        "from forwardpass_server.config import ServerConfig\n"
        "Server(ServerConfig(model_repository=Path('.'), device='cpu', metrics_port=None))\n"
        "assert 'opentelemetry' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
