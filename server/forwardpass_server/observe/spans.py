"""Traces as OpenTelemetry's spans, sent by OTLP over HTTP. The only file that names it, imported when tracing is on.

Of each request:

    inference.GRPCInferenceService/ModelInfer   the caller's child: message arrived to answer given
      queue                                     waiting for an instance
      batch                                     taken to answered, linked to the requests that rode with it
        run                                     the model

HTTP, so that it has a socket of its own and nothing in gRPC's core, whose threads and whose end are the transport's.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from time import monotonic_ns, time_ns

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from forwardpass_server.logs import escaped
from forwardpass_server.observe.tracing import Parent, Trace

SERVICE, METHOD = "inference.GRPCInferenceService", "ModelInfer"
TIMEOUT_S = 2.0
"""How long a collector may take for one message, in seconds, with the retries."""
LINKS_MAX = 64
"""Batch-mates that are linked; a batch with more of them is rare, and the first say it all."""
OUR_FAULT = frozenset({2, 4, 12, 13, 14, 15})
"""Codes that make a server's span an error, by OpenTelemetry's conventions: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED,
INTERNAL, UNAVAILABLE, DATA_LOSS."""

Attributes = dict[str, str | int]


class NotTaken(Exception):
    """The collector could not be reached, or refused."""


def otlp(endpoint: str) -> SpanExporter:
    """An exporter to `http://collector:4318/v1/traces`. Headers come from OTEL_EXPORTER_OTLP_HEADERS, as usual."""
    # Its own lines would repeat what a failed `tell` says, for every message and with tracebacks.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S)


class SpanTeller:
    """Makes spans of traces and exports them. A `tracing.Teller`.

    Args:
        exporter: where they go.
        version: of the server.
        clock_ns, wall_ns: the clock of the stamps, and the time of day; their difference now is taken for then.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        version: str,
        clock_ns: Callable[[], int] = monotonic_ns,
        wall_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._exporter = exporter
        self._clock_ns, self._wall_ns = clock_ns, wall_ns
        self._ids = RandomIdGenerator()
        self._resource = _resource(version)
        self._scope = InstrumentationScope("forwardpass_server", version)

    def tell(self, traces: Sequence[Trace]) -> None:
        """Export the spans of these requests.

        Raises:
            NotTaken: the collector could not be reached, or refused.
        """
        shift_ns = self._wall_ns() - self._clock_ns()
        contexts = [self._context(trace.parent) for trace in traces]
        riders: dict[object, list[SpanContext]] = {}
        for trace, context in zip(traces, contexts, strict=True):
            riders.setdefault(_run_of(trace), []).append(context)
        spans = [
            span
            for trace, context in zip(traces, contexts, strict=True)
            for span in self._spans(trace, context, riders[_run_of(trace)], shift_ns)
        ]
        if self._exporter.export(spans) is not SpanExportResult.SUCCESS:
            raise NotTaken(f"the collector did not take {len(spans)} spans")

    def close(self) -> None:
        """Close the exporter."""
        self._exporter.shutdown()

    def _context(self, parent: Parent | None) -> SpanContext:
        """A new span's ids: in the caller's trace, or in a new one."""
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        state = TraceState.from_header([parent.state]) if parent is not None and parent.state else TraceState()
        return SpanContext(
            trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(1), trace_state=state
        )

    def _child(self, of: SpanContext) -> SpanContext:
        return SpanContext(
            of.trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=of.trace_flags,
            trace_state=of.trace_state,
        )  # fmt: skip

    def _spans(
        self, trace: Trace, context: SpanContext, riders: Sequence[SpanContext], shift_ns: int
    ) -> Iterator[ReadableSpan]:
        def span(
            name: str,
            of: SpanContext,
            parent: SpanContext | None,
            start_ns: int,
            end_ns: int,
            attributes: Attributes | None = None,
            *,
            kind: SpanKind = SpanKind.INTERNAL,
            links: Sequence[Link] = (),
            status: Status | None = None,
        ) -> ReadableSpan:
            return ReadableSpan(
                name=name,
                context=of,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                links=links,
                kind=kind,
                status=status or Status(StatusCode.UNSET),
                start_time=start_ns + shift_ns,
                end_time=end_ns + shift_ns,
                instrumentation_scope=self._scope,
            )

        yield span(
            f"{SERVICE}/{METHOD}",
            context,
            _remote(trace.parent),
            trace.received_ns,
            trace.ended_ns,
            _attributes(trace),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR) if trace.code in OUR_FAULT else None,
        )
        timeline = trace.timeline
        if timeline is None or not timeline.queued_ns or not timeline.taken_ns:
            return
        yield span("queue", self._child(context), context, timeline.queued_ns, timeline.taken_ns)
        if not timeline.run_end_ns:
            return
        batch = self._child(context)
        mates = [Link(rider) for rider in riders if rider is not context][:LINKS_MAX]
        ended_ns = timeline.encoded_ns or timeline.run_end_ns
        rows: Attributes = {"forwardpass.batch.rows": timeline.batch_rows}
        yield span("batch", batch, context, timeline.taken_ns, ended_ns, rows, links=mates)
        yield span("run", self._child(batch), batch, timeline.run_start_ns, timeline.run_end_ns)


def _resource(version: str) -> Resource:
    """Who we are, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise."""
    found = Resource.create({"service.version": version})
    if str(found.attributes["service.name"]).startswith("unknown_service"):
        return found.merge(Resource({"service.name": "forwardpass-server"}))
    return found


def _remote(parent: Parent | None) -> SpanContext | None:
    if parent is None:
        return None
    return SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(int(parent.sampled)))


def _run_of(trace: Trace) -> object:
    """What requests of one run have in common, and no others; a request that did not run is alone."""
    timeline = trace.timeline
    if timeline is None or not timeline.run_end_ns:
        return trace
    return (trace.model, trace.version, timeline.taken_ns, timeline.run_start_ns, timeline.run_end_ns)


def _attributes(trace: Trace) -> Attributes:
    """Names and ids come from callers: on one line, and cut."""
    found: Attributes = {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": METHOD,
        "rpc.grpc.status_code": trace.code,
        "forwardpass.model": escaped(trace.model),
    }
    if trace.version:
        found["forwardpass.version"] = escaped(trace.version)
    if trace.request_id:
        found["forwardpass.request_id"] = escaped(trace.request_id)
    return found
