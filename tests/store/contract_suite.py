"""The storage contract as tests: every promise of `spanloom.contract`.

An implementation subclasses ContractSuite and provides two fixtures, `writer` and `reader`
(which may be one object); nothing in here knows what is behind them.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from spanloom.contract import Batch, Reader, Writer
from spanloom.errors import QueryError, StoreClosedError
from spanloom.model import (
    MetricQuery,
    Operation,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    TraceQuery,
)
from tests.builders import (
    MS,
    T0,
    log,
    point,
    resource,
    span,
    span_id,
    trace_id,
    trace_of,
)
from tests.store.contract_inflight import InFlightContract
from tests.store.contract_search import TIMEOUT_S, SearchContract, found, put


class ContractSuite(InFlightContract, SearchContract):
    """All promises; see the module's docstring."""

    # --- protocol, unknown things, wrong things -------------------------------------------------

    def test_protocols(self, writer: Writer, reader: Reader) -> None:
        """Both sides have every method."""
        assert isinstance(writer, Writer)
        assert isinstance(reader, Reader)

    def test_an_empty_store_answers(self, reader: Reader) -> None:
        """Unknown traces, services and metrics are no errors."""
        assert reader.get_trace(trace_id(1)) is None
        assert reader.find_traces(TraceQuery()) == []
        assert reader.find_summaries(TraceQuery(service="nobody", tags={"a": "b"})) == []
        assert reader.trace_logs(trace_id(1)) == []
        assert reader.services() == []
        assert reader.operations("nobody") == []
        assert reader.metric_points(MetricQuery("nothing")) == []
        assert reader.metric_names() == []
        assert reader.metric_names("nobody") == []

    @pytest.mark.parametrize("bad", ["", "1", "0" * 31, "0" * 33, "X" * 32, "A" * 32, "ß" * 32])
    def test_a_malformed_trace_id_is_a_query_error(self, reader: Reader, bad: str) -> None:
        """Only 32 lowercase hex characters are a trace id."""
        with pytest.raises(QueryError):
            reader.get_trace(bad)
        with pytest.raises(QueryError):
            reader.trace_logs(bad)

    def test_an_empty_batch_is_acknowledged(self, writer: Writer) -> None:
        """OTLP allows empty requests."""
        assert writer.submit(Batch()).result(TIMEOUT_S) is None

    # --- traces ---------------------------------------------------------------------------------

    def test_a_whole_span_comes_back(self, writer: Writer, reader: Reader) -> None:
        """Every field survives, whatever the types of its attributes."""
        attributes = {
            "text": "检索 'quoted' \0 \n",
            "none": None,
            "list": (1, None, ("nested", b"\xff")),
            "map": {"a": {"b": 2**53 + 1}},
            "double": 0.1,
            "": "empty key",
        }
        rich = span(
            "名前",
            parent=9,
            error="失败",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            trace_state="a=b",
            flags=0x301,
            dropped_attributes_count=3,
            events=(SpanEvent(T0, "event", attributes, 4),),
            dropped_events_count=5,
            links=(SpanLink(trace_id(7), span_id(8), "c=d", attributes, 6, 1),),
            dropped_links_count=7,
        )
        put(writer, rich)

        assert reader.get_trace(rich.trace_id) == trace_of(rich)

    def test_one_span_comes_back_alone(self, writer: Writer, reader: Reader) -> None:
        """The same as in its trace; an id of another trace, or no id at all, is None."""
        put(writer, span("a", 1), span("b", 2, parent=1), span("other", 3, trace=2))
        trace = reader.get_trace(trace_id(1))
        assert trace is not None

        assert reader.get_span(trace_id(1), span_id(2)) == trace.spans[1]
        for unknown in (span_id(3), "", "1", "x" * 16, "../logs", "ß" * 16):
            assert reader.get_span(trace_id(1), unknown) is None
        assert reader.get_span(trace_id(9), span_id(1)) is None
        with pytest.raises(QueryError):
            reader.get_span("1", span_id(1))

    def test_times_of_the_full_range_survive(self, writer: Writer, reader: Reader) -> None:
        """OTLP times are unsigned 64-bit; a clock may also run backwards."""
        odd = [
            replace(span("far", 1), start_time_unix_nano=2**64 - 2, end_time_unix_nano=2**64 - 1),
            replace(span("zero", 2), start_time_unix_nano=0, end_time_unix_nano=0),
            replace(span("back", 3), end_time_unix_nano=T0 - 5),
        ]
        put(writer, *odd)

        assert reader.get_trace(trace_id(1)) == trace_of(*odd)
        assert found(reader) == [1]

    def test_spans_come_in_order_of_start(self, writer: Writer, reader: Reader) -> None:
        """However they arrived."""
        spans = [span(f"s{n}", n + 1, start_ms=(n * 37) % 100) for n in range(50)]
        for part in (spans[25:], spans[:25]):
            put(writer, *part)

        assert reader.get_trace(trace_id(1)) == trace_of(*spans)

    def test_traces_do_not_mix(self, writer: Writer, reader: Reader) -> None:
        """The same span id in two traces is two spans."""
        put(writer, span(trace=1), span(trace=2), span(trace=2, number=2))

        assert reader.get_trace(trace_id(1)) == trace_of(span(trace=1))
        assert reader.get_trace(trace_id(2)) == trace_of(span(trace=2), span(trace=2, number=2))

    # --- idempotence ----------------------------------------------------------------------------

    def test_a_span_sent_twice_is_stored_once(self, writer: Writer, reader: Reader) -> None:
        """Clients retry whole batches; also twice within one batch."""
        batch = [span("a", 1), span("b", 2), span("a", 1)]
        put(writer, *batch)
        put(writer, *batch)

        assert reader.get_trace(trace_id(1)) == trace_of(span("a", 1), span("b", 2))
        assert found(reader, operation="a") == [1]

    def test_the_later_span_wins(self, writer: Writer, reader: Reader) -> None:
        """Names, tags and services of the one it replaced are gone from every list."""
        old = span("old", attributes={"v": "1"}, resource=resource("old-service"))
        new = span("new", attributes={"v": "2"}, resource=resource("new-service"))
        put(writer, old)
        put(writer, new)

        assert reader.get_trace(trace_id(1)) == trace_of(new)
        assert reader.services() == ["new-service"]
        assert reader.operations("old-service") == []
        assert found(reader, tags={"v": "1"}) == []
        assert found(reader, tags={"v": "2"}) == [1]

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("incomplete_first", [True, False])
    def test_an_incomplete_span_never_replaces_a_complete_one(
        self, writer: Writer, reader: Reader, together: bool, incomplete_first: bool
    ) -> None:
        """What the reaper guessed gives way to the truth, in either order of arrival."""
        guess = span("guess", attributes={"spanloom.incomplete": True}, error="process died")
        truth = span("truth")
        order = [guess, truth] if incomplete_first else [truth, guess]
        if together:
            put(writer, *order)
        else:
            for each in order:
                put(writer, each)

        assert reader.get_trace(trace_id(1)) == trace_of(truth)

    def test_a_log_sent_twice_is_stored_once(self, writer: Writer, reader: Reader) -> None:
        """Equal in everything: one record. Different in anything: two."""
        records = [log("a"), log("a"), log("b"), log("a", service="other"), log("a", at_ms=1)]
        for _ in range(2):
            writer.submit(Batch(logs=records)).result(TIMEOUT_S)

        assert len(reader.trace_logs(trace_id(1))) == 4

    # --- summaries ------------------------------------------------------------------------------

    def test_a_summary_is_that_of_the_whole_trace(self, writer: Writer, reader: Reader) -> None:
        """As Trace.summary() computes it, also for spans that do not match the query."""
        spans = [
            span("late root", 1, start_ms=5, duration_ms=100, service="b"),
            span("chat", 2, parent=1, start_ms=10, tokens=(10, 5), cost=0.25, error="x"),
            span("chat", 3, parent=1, start_ms=20, tokens=(7, 3), cost=0.5, service="c"),
            span("tool", 4, parent=3, start_ms=30, attributes={"gen_ai.usage.input_tokens": 99}),
            span("orphan", 5, parent=77, start_ms=1, duration_ms=300),
        ]
        put(writer, *spans)
        (summary,) = reader.find_summaries(TraceQuery(operation="tool"))

        assert summary == trace_of(*spans).summary()
        assert summary.root_name == "orphan"
        assert summary.usage.cost_usd == 0.75

    @pytest.mark.parametrize(
        "spans",
        [
            [span("self", 1, parent=1), span("child", 2, parent=1, start_ms=1)],
            [span("a", 1, parent=2, start_ms=1), span("b", 2, parent=1, start_ms=2)],
            [span("a", 1, parent=2), span("b", 2, parent=1), span("top", 3, start_ms=50)],
            [span("huge", 1, tokens=(2**62, 2**62)), span("huge", 2, tokens=(2**62, 0))],
            [span("no cost", 1, tokens=(1, 1))],
            [replace(span("back", 1), end_time_unix_nano=1)],
        ],
    )
    def test_summaries_of_strange_traces(
        self, writer: Writer, reader: Reader, spans: list[Span]
    ) -> None:
        """Cycles, absurd numbers and clocks that run backwards do not break the list."""
        put(writer, *spans)
        (summary,) = reader.find_summaries(TraceQuery())
        expected = trace_of(*spans).summary()

        assert replace(summary, usage=expected.usage) == expected

    # --- logs, services, metrics ----------------------------------------------------------------

    def test_logs_of_a_trace(self, writer: Writer, reader: Reader) -> None:
        """Oldest first, whole, without other traces' and without our own events."""
        first = log("first", at_ms=1, span=3, attributes={"n": (1, None)})
        second = log({"结构": ("化", 2)}, at_ms=2, event_name="gen_ai.evaluation.result")
        observed = replace(log("observed", at_ms=3), time_unix_nano=0)
        observed = replace(observed, observed_time_unix_nano=T0 + 3 * MS)
        noise = [
            log("other", trace=2),
            log("outside", trace=None),
            log(None, event_name="spanloom.span.open"),
        ]
        writer.submit(Batch(logs=[observed, second, *noise, first])).result(TIMEOUT_S)

        assert reader.trace_logs(trace_id(1)) == [first, second, observed]
        assert reader.trace_logs(trace_id(1), limit=2) == [first, second]

    def test_services_and_operations(self, writer: Writer, reader: Reader) -> None:
        """Sorted, each once; a resource without a name is the unknown service."""
        put(
            writer,
            span("b", 1, service="检索"),
            span("a", 2, service="检索", kind=SpanKind.SERVER),
            span("a", 3, service="检索", kind=SpanKind.INTERNAL),
            span("a", 4, service="检索", kind=SpanKind.INTERNAL),
            span("z", 5, resource=replace(resource(), attributes={})),
        )

        assert reader.services() == ["unknown_service", "检索"]
        assert reader.operations("检索") == [
            Operation("a", SpanKind.INTERNAL),
            Operation("a", SpanKind.SERVER),
            Operation("b", SpanKind.INTERNAL),
        ]

    def test_metric_points(self, writer: Writer, reader: Reader) -> None:
        """By name, service and time, oldest first; sent twice, stored once."""
        points = [
            point("m", n, at_ms=n, service="a" if n % 2 else "b", attributes={"n": n})
            for n in (3, 1, 2, 4)
        ]
        for _ in range(2):
            writer.submit(Batch(metrics=[*points, point("other")])).result(TIMEOUT_S)
        ordered = sorted(points, key=lambda p: p.time_unix_nano)

        assert reader.metric_points(MetricQuery("m")) == ordered
        assert reader.metric_points(MetricQuery("m", limit=2)) == ordered[:2]
        assert reader.metric_points(MetricQuery("m", service="a")) == ordered[::2]
        within = MetricQuery("m", start_ns=T0 + 2 * MS, end_ns=T0 + 4 * MS)
        assert reader.metric_points(within) == ordered[1:3]
        assert reader.metric_names() == ["m", "other"]
        assert reader.metric_names("b") == ["m"]

    # --- several threads, and the end -----------------------------------------------------------

    def test_four_writers_and_four_readers(self, writer: Writer, reader: Reader) -> None:
        """What a thread has been told is stored, every reader sees, whole batches only."""
        done = threading.Event()

        def write(lane: int) -> None:
            for turn in range(25):
                number = lane * 1000 + turn + 1
                put(writer, *(span(f"s{n}", n + 1, trace=number) for n in range(10)))
                trace = reader.get_trace(trace_id(number))
                assert trace is not None
                assert len(trace.spans) == 10

        def read() -> None:
            while not done.is_set():
                for trace in reader.find_traces(TraceQuery(service="agent", limit=50)):
                    assert len(trace.spans) == 10
                reader.find_summaries(TraceQuery(tags={"a": "b"}))
                reader.services()

        with ThreadPoolExecutor(8) as threads:
            reads = [threads.submit(read) for _ in range(4)]
            writes = [threads.submit(write, lane) for lane in range(4)]
            try:
                for future in writes:
                    future.result(60)
            finally:
                done.set()
            for future in reads:
                future.result(60)

        assert len(reader.find_summaries(TraceQuery(limit=1000))) == 100

    def test_after_close_everything_is_refused(self, writer: Writer, reader: Reader) -> None:
        """Every call raises StoreClosedError; closing again is allowed."""
        put(writer, span())
        writer.close()
        reader.close()
        writer.close()
        reader.close()

        with pytest.raises(StoreClosedError):
            writer.submit(Batch())
        for call in (
            lambda: reader.get_trace(trace_id(1)),
            lambda: reader.get_span(trace_id(1), span_id(1)),
            lambda: reader.find_traces(TraceQuery()),
            lambda: reader.find_summaries(TraceQuery()),
            lambda: reader.trace_logs(trace_id(1)),
            reader.services,
            lambda: reader.operations("agent"),
            lambda: reader.metric_points(MetricQuery("m")),
            reader.metric_names,
        ):
            with pytest.raises(StoreClosedError):
                call()

    def test_close_stores_what_is_queued(self, writer: Writer) -> None:
        """No future is left behind."""
        futures = [writer.submit(Batch(spans=[span(trace=n)])) for n in range(1, 200)]
        writer.close()

        assert all(future.done() and future.exception() is None for future in futures)
