"""Which requests are traced, and what of them leaves: chosen cheaply, told elsewhere, lost without harm."""

import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.observe import tracing
from forwardpass_server.observe.tracing import WAITING_MAX, Parent, Trace, Tracer, parent_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Told:
    """A teller that keeps what it is told, or fails as long as it is to."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.calls = 0
        self.failing = False
        self.closed = False
        self.hold: threading.Event | None = None

    def tell(self, traces: Sequence[Trace]) -> None:
        if self.hold is not None:
            self.hold.wait(30)
        self.calls += 1
        if self.failing:
            raise ConnectionError("nobody there")
        self.traces += traces

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE}-{SPAN}-01", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"00-{TRACE}-{SPAN}-00", Parent(int(TRACE, 16), int(SPAN, 16), False)),
        (f"00-{TRACE}-{SPAN}-03", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"42-{TRACE}-{SPAN}-01-what-comes-later", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"00-{TRACE}-{SPAN}-01-too-much", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        (f" 00-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("", None),
    ],
)
def test_a_callers_span_is_read_as_the_standard_says(header: str, parent: Parent | None) -> None:
    assert parent_of([("te", "trailers"), ("traceparent", header)]) == parent


def test_what_vendors_wrote_is_kept_unless_it_is_long() -> None:
    header = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    found = parent_of([header, ("tracestate", "congo=t61rcWkgMzE")])
    assert found is not None
    assert found.state == "congo=t61rcWkgMzE"
    found = parent_of([header, ("tracestate", "a=" + "x" * 512)])
    assert found is not None
    assert found.state == ""


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "x-bin"]), st.text() | st.binary())))
def test_no_metadata_breaks_it(metadata: list[tuple[str, str | bytes]]) -> None:
    parent_of(metadata)


def test_the_callers_decision_is_obeyed_and_chance_decides_for_the_others() -> None:
    never, always = Tracer(Told(), 0.0), Tracer(Told(), 1.0)
    yes, no = (("traceparent", f"00-{TRACE}-{SPAN}-{flag}") for flag in ("01", "00"))
    assert never.begin([yes], 1) is not None
    assert always.begin([no], 1) is None
    assert never.begin([], 1) is None
    assert always.begin([], 1) is not None
    half = Tracer(Told(), 0.5, chance=iter([0.49, 0.5]).__next__)
    assert [half.begin([], 1) is not None for _ in range(2)] == [True, False]


def test_traces_are_told_by_a_thread_of_its_own_and_all_of_them_at_the_end() -> None:
    told = Told()
    tracer = Tracer(told, 1.0)
    tracer.start()
    traces = [tracer.begin([], 1) for _ in range(100)]
    for trace in traces:
        assert trace is not None
        trace.end(0)
        trace.end(13)
    tracer.stop(30)
    assert told.traces == traces
    assert {trace.code for trace in told.traces} == {0}, "the first end counts"
    assert told.closed
    assert "traces" not in {thread.name for thread in threading.enumerate()}


def test_a_collector_that_hangs_costs_traces_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.01)
    monkeypatch.setattr(tracing, "SETTLED_NS", 0)
    told = Told()
    told.hold = threading.Event()
    tracer = Tracer(told, 1.0)
    tracer.start()
    for _ in range(4 * WAITING_MAX):  # one part waits, one and what came meanwhile is with the collector
        trace = tracer.begin([], 1)
        assert trace is not None
        trace.end(0)
    assert tracer.dropped >= WAITING_MAX
    began_s = time.monotonic()
    tracer.stop(0.05)
    assert time.monotonic() - began_s < 20
    told.hold.set()
    tracer.stop(30)


def test_a_collector_that_fails_is_said_once_and_once_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.01)
    monkeypatch.setattr(tracing, "SETTLED_NS", 0)
    caplog.set_level("INFO", "forwardpass_server")
    told = Told()
    told.failing = True
    tracer = Tracer(told, 1.0)
    tracer.start()

    def ended_until(enough: int) -> None:
        while told.calls < enough:
            trace = tracer.begin([], 1)
            assert trace is not None
            trace.end(0)
            time.sleep(0.001)

    ended_until(3)
    told.failing = False
    ended_until(told.calls + 2)
    tracer.stop(30)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["traces are not taken", "traces are taken again"]
    assert told.traces
    assert tracer.dropped
