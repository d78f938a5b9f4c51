"""The spans of requests, in OpenTelemetry's own in-memory exporter."""

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from forwardpass_server.observe.spans import LINKS_MAX, NotTaken, SpanTeller
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.observe.tracing import Parent, Trace, Tracer

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
DAY_NS = 86_400 * 10**9


class Kept:
    """What a tracer would give."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.teller = SpanTeller(self.exporter, "1.2.3", clock_ns=lambda: 1000, wall_ns=lambda: DAY_NS + 1000)
        self.tracer = Tracer(self.teller, 1.0, clock_ns=lambda: 900)

    def trace(self, parent: Parent | None = None, *, ran: bool = True, code: int = 0, queued_ns: int = 200) -> Trace:
        trace = Trace(self.tracer, parent, 100)
        trace.model, trace.version = "mnist", "3"
        trace.timeline = timeline = Timeline(100)
        timeline.decoded_ns, timeline.queued_ns, timeline.taken_ns = 150, queued_ns, 300
        if ran:
            timeline.run_start_ns, timeline.run_end_ns, timeline.encoded_ns = 400, 700, 800
            timeline.batch_rows = 5
        trace.code, trace.ended_ns = code, 900
        return trace

    def spans(self, *traces: Trace) -> list[ReadableSpan]:
        self.exporter.clear()
        self.teller.tell(traces)
        return [*self.exporter.get_finished_spans()]


def test_a_request_has_its_queue_its_batch_and_its_run() -> None:
    server, queue, batch, run = Kept().spans(Kept().trace(Parent(TRACE, SPAN, True, "congo=1")))
    assert [span.name for span in (server, queue, batch, run)] == [
        "inference.GRPCInferenceService/ModelInfer", "queue", "batch", "run"
    ]  # fmt: skip
    times = [(span.start_time - DAY_NS, span.end_time - DAY_NS) for span in (server, queue, batch, run)]
    assert times == [(100, 900), (200, 300), (300, 800), (400, 700)]
    assert server.kind is SpanKind.SERVER
    assert server.parent is not None
    assert (server.parent.trace_id, server.parent.span_id, server.parent.is_remote) == (TRACE, SPAN, True)
    assert server.context.trace_state.get("congo") == "1"
    assert queue.parent == batch.parent == server.context
    assert run.parent == batch.context
    assert {span.context.trace_id for span in (server, queue, batch, run)} == {TRACE}
    assert len({span.context.span_id for span in (server, queue, batch, run)}) == 4
    assert dict(server.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "forwardpass.model": "mnist",
        "forwardpass.version": "3",
    }
    assert dict(batch.attributes or {}) == {"forwardpass.batch.rows": 5}
    assert server.resource.attributes["service.name"] == "forwardpass-server"
    assert server.resource.attributes["service.version"] == "1.2.3"


def test_a_batch_is_linked_to_those_who_rode_in_it_and_to_nobody_else() -> None:
    kept = Kept()
    riders = [kept.trace(queued_ns=200 + each) for each in range(3)]
    stranger = kept.trace()
    assert stranger.timeline is not None
    stranger.timeline.run_end_ns += 1
    spans = kept.spans(*riders, stranger)
    servers = [span.context.span_id for span in spans if span.kind is SpanKind.SERVER]
    batches = [span for span in spans if span.name == "batch"]
    linked = [{link.context.span_id for link in batch.links} for batch in batches]
    assert linked == [{*servers[:3]} - {own} for own in servers[:3]] + [set()]
    assert len({span.context.trace_id for span in spans}) == 4, "each its own trace"
    crowd = kept.spans(*[kept.trace() for _ in range(100)])
    assert max(len(span.links) for span in crowd) == LINKS_MAX


def test_a_request_that_was_refused_has_only_what_it_came_to() -> None:
    kept = Kept()
    refused = kept.trace(code=8)
    refused.timeline = None
    (span,) = kept.spans(refused)
    assert span.status.status_code is StatusCode.UNSET, "full is not broken"
    dropped = kept.trace(ran=False, code=4)
    assert [span.name for span in kept.spans(dropped)] == ["inference.GRPCInferenceService/ModelInfer", "queue"]
    assert kept.spans(kept.trace(code=13))[0].status.status_code is StatusCode.ERROR


def test_what_callers_wrote_is_on_one_line_and_cut() -> None:
    kept = Kept()
    trace = kept.trace()
    trace.model, trace.request_id = "no\nsuch\x1b[31m model", "x" * 100_000
    attributes = kept.spans(trace)[0].attributes or {}
    assert attributes["forwardpass.model"] == "no\\nsuch\\x1b[31m model"
    assert len(str(attributes["forwardpass.request_id"])) < 300


def test_ids_are_well_formed_and_new() -> None:
    kept = Kept()
    spans = kept.spans(*[kept.trace() for _ in range(50)])
    assert len({span.context.span_id for span in spans}) == 200
    assert all(len(format_trace_id(span.context.trace_id)) == 32 for span in spans)
    assert all(int(format_span_id(span.context.span_id), 16) for span in spans)


def test_a_collector_that_refuses_is_an_error() -> None:
    class Refusing(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.FAILURE

    with pytest.raises(NotTaken, match="4 spans"):
        SpanTeller(Refusing(), "1").tell([Kept().trace()])


def test_the_operators_own_attributes_of_the_resource_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=staging")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ranker")
    (span, *_) = Kept().spans(Kept().trace())
    assert span.resource.attributes["deployment.environment"] == "staging"
    assert span.resource.attributes["service.name"] == "ranker"
